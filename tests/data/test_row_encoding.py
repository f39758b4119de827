"""Cutting rows to the context length: only text, only behind the images, all columns alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperllava_hf.data.row_conversations import parse_conversation
from hyperllava_hf.data.row_encoding import Row, RowEncoder
from hyperllava_hf.data.row_faults import RowFault
from tests.data.builders import build_red, say
from tests.processing.builders import build_small_processor

PROCESSOR = build_small_processor("metaspace")
IGNORED = -100
TEXTS = st.text(alphabet="ab .\n", min_size=1, max_size=30).filter(lambda text: text.strip())


def encode(turns: list[str], num_images: int, limit: int | None) -> Row:
    row = {"conversations": say(*turns), "image": ["a"] * num_images}
    conversation = parse_conversation(row)
    images = [build_red()] * num_images
    return RowEncoder(PROCESSOR, "vicuna_v1", limit).encode(conversation, images)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(TEXTS, st.integers(0, 2), TEXTS), min_size=1, max_size=3),
    share=st.floats(0.5, 1.1),
)
def test_a_cut_row_is_a_prefix_with_all_images_and_a_part_of_an_answer(
    turns: list[tuple[str, int, str]], share: float
) -> None:
    texts = [text for ask, marks, say_ in turns for text in ("<image>" * marks + ask, say_)]
    num_images = sum(marks for _, marks, _ in turns)
    whole = encode(texts, num_images, None)
    limit = max(PROCESSOR.image_seq_length + 1, round(len(whole) * share))
    mark = PROCESSOR.image_token_id
    images_end = max((i + 1 for i, token in enumerate(whole.input_ids) if token == mark), default=0)
    learns = any(label != IGNORED for label in whole.labels[:limit])
    if len(whole) > limit and (images_end > limit or not learns):
        with pytest.raises(RowFault, match=rf"{len(whole)} tokens.*{limit}") as caught:
            encode(texts, num_images, limit)
        assert caught.value.kind == "too_long"
        return
    row = encode(texts, num_images, limit)
    assert row.input_ids == whole.input_ids[:limit]
    assert row.labels == whole.labels[:limit]
    assert row.guidance_mask == whole.guidance_mask[:limit]
    assert row.input_ids.count(mark) == 4 * num_images
    assert row.num_tokens == len(whole)
    assert (row.pixel_values is None) == (num_images == 0)


def test_the_last_image_may_end_with_the_last_token_that_fits() -> None:
    turns = ["a", "b", "<image>", "c"]
    whole = encode(turns, 1, None)
    end = len(whole) - whole.input_ids[::-1].index(PROCESSOR.image_token_id)
    assert len(encode(turns, 1, end)) == end
    with pytest.raises(RowFault, match=f"end at token {end}, expected them within .* {end - 1} "):
        encode(turns, 1, end - 1)


def test_without_a_limit_the_tokenizers_own_counts() -> None:
    processor = build_small_processor("metaspace", chat_template=None)
    processor.tokenizer.model_max_length = 200
    encoder = RowEncoder(processor, "vicuna_v1", None)
    conversation = parse_conversation({"conversations": say("a", "b" * 300)})
    assert len(encoder.encode(conversation, [])) == 200


def test_a_limit_within_one_image_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_length 4, expected more than the 4 tokens of one"):
        RowEncoder(PROCESSOR, "vicuna_v1", 4)


def test_an_unknown_template_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no chat template 'v1'"):
        RowEncoder(PROCESSOR, "v1", None)
