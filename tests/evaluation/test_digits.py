"""The measuring command, with a stand-in that knows the answers and one that sees nothing."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BatchFeature

from hyperllava_hf.evaluation import digits
from hyperllava_hf.evaluation.answering import answer_questions, build_prompt
from hyperllava_hf.evaluation.digit_questions import FAMILIES
from hyperllava_hf.evaluation.digit_scenes import SPLITS, draw_scene
from hyperllava_hf.evaluation.question_file import build_questions

QUESTIONS = build_questions("validation", 12)


class Oracle:
    """A model and processor in one: it looks the answer up by question and picture."""

    def __init__(self) -> None:
        self.known = {}
        for asked in QUESTIONS:
            pixels = draw_scene(asked.scene).tobytes()
            self.known[asked.question, pixels] = asked.answer
            self.known[asked.held_out_question, pixels] = (
                asked.answer.upper().removesuffix(".") + "."
            )
        self.device = torch.device("cpu")
        self.batches = []

    def apply_chat_template(self, prompts, images, **arguments):
        assert arguments["add_generation_prompt"]
        assert arguments["padding"]
        self.texts = []
        for i, (message,) in enumerate(prompts):
            question = message["content"][-1]["text"]
            pixels = images[i][0].tobytes() if images else None
            self.texts.append(self.known.get((question, pixels), "nothing"))
        self.batches.append(len(prompts))
        return BatchFeature({"input_ids": torch.zeros(len(prompts), 3, dtype=torch.long)})

    def generate(self, input_ids, **arguments):
        assert arguments["do_sample"] is False
        new = torch.arange(len(self.texts))[:, None]
        return torch.cat([input_ids, new], dim=1)

    def batch_decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return [self.texts[int(row[0])] for row in tokens]


def test_oracle_is_right_when_it_sees_and_wrong_when_it_does_not() -> None:
    oracle = Oracle()
    metrics = digits.measure_model(oracle, oracle, QUESTIONS, batch_size=5)
    for family in FAMILIES:
        assert metrics["accuracy"][family]["accuracy"] == 1.0
        assert metrics["accuracy"][family]["interval"] == [1.0, 1.0]
        assert metrics["accuracy"][family]["num_questions"] == 12
        assert metrics["held_out_phrasings"][family]["accuracy"] == 1.0
        assert metrics["baselines"]["question_only"][family]["accuracy"] == 0.0
        assert metrics["baselines"]["majority_answer"][family]["accuracy"] < 1.0
    assert set(metrics["accuracy"]["counting"]["forms"]) == {
        "counting_all",
        "counting_ink",
        "counting_digit",
    }
    assert max(oracle.batches) == 5


def test_answers_come_back_in_the_order_of_the_questions() -> None:
    oracle = Oracle()
    asked = QUESTIONS[::-1]
    images = [draw_scene(question.scene) for question in asked]
    texts = [question.question for question in asked]
    groups = [question.form for question in asked]
    answers = answer_questions(oracle, oracle, texts, images, groups, batch_size=7)
    assert answers == [question.answer for question in asked]


def test_shuffled_images_are_those_of_other_questions_of_the_form() -> None:
    images = [SimpleNamespace(number=i) for i in range(len(QUESTIONS))]
    shuffled = digits.shuffle_images(QUESTIONS, images)
    assert sorted(image.number for image in shuffled) == list(range(len(QUESTIONS)))
    for i, image in enumerate(shuffled):
        assert image.number != i
        assert QUESTIONS[image.number].form == QUESTIONS[i].form


@pytest.mark.parametrize(("split", "count"), [("validation", 3), ("test", 2)])
def test_questions_of_a_split_show_its_handwriting(split: str, count: int) -> None:
    questions = digits.load_split_questions(split, count)
    assert [q.family for q in questions] == [f for f in FAMILIES for _ in range(count)]
    samples = {entry["sample"] for q in questions for entry in q.scene["digits"]}
    assert samples <= set(SPLITS[split])


def test_record_names_command_and_versions_and_no_path() -> None:
    record = digits.describe_run("test", 1000, test_file=True)
    assert record["split"] == "test"
    assert set(record["versions"]) == {"python", "torch", "transformers"}
    assert "/" not in record["command"]


def test_prompt_has_the_image_first() -> None:
    assert build_prompt("Q?", with_image=True) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]}
    ]
