"""Tokenizers, processors, generation settings and code of converted folders, on both lines."""

import hashlib
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

import hyperllava_hf
from hyperllava_hf import HyperLlavaProcessor
from hyperllava_hf.conversion.config_export import build_llava_config, build_llava_hf_config
from hyperllava_hf.conversion.config_translation import build_hyperllava_config
from hyperllava_hf.conversion.generation_settings import build_generation_config
from hyperllava_hf.conversion.llava_text_files import (
    write_llava_hf_text_files,
    write_llava_text_files,
)
from hyperllava_hf.conversion.sentencepiece_models import load_sentencepiece_model
from hyperllava_hf.conversion.text_files import (
    build_converted_processor,
    write_hyperllava_text_files,
)
from hyperllava_hf.conversion.tokenizer_loading import add_llava_tokens, load_source_tokenizer
from hyperllava_hf.shipped_code import load_shipped_code
from tests.conversion.tiny_llava import IMAGE, PAD, VOCABULARY, llava_fields
from tests.conversion.tokenizer_files import SPECIALS, write_fast, write_json, write_sentencepiece

SYSTEM = "A chat between a curious user and an artificial intelligence assistant."
PROMPT = f"{SYSTEM} USER: <image>\nWhat is shown? ASSISTANT: A red 7</s>USER: Why? ASSISTANT:"
ODD_TEXTS = [
    *("", " ", "  a", "a  b", "\n", "\nWhat", "a\n\n b", " \n a", "\t x ", "USER: ", "\x00"),
    *(
        "\u00e9\u6771\u4eac\U0001f642",
        "\u2581x",
        "nai\u0308ve",
        "\u00a0x",
        "\ufb01 \u2460",
        "e" * 40,
    ),
]
PUBLISHED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def random_texts():
    chooser = random.Random(0)
    signs = "  \n\tabcdee.USER:?123<>/\u00e9\u6771\U0001f642"
    return ["".join(chooser.choices(signs, k=chooser.randrange(40))) for _ in range(300)]


def hyperllava_config():
    return build_hyperllava_config({**llava_fields(), "bos_token_id": 1, "eos_token_id": 2})


def load_tokenizer(folder, **arguments):
    tokenizer = load_source_tokenizer([folder], VOCABULARY + 5, **arguments)
    assert add_llava_tokens(tokenizer) == (IMAGE, PAD)
    return tokenizer


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def processor(source):
    write_sentencepiece(source)
    return build_converted_processor(hyperllava_config(), load_tokenizer(source))[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": False},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    ],
)
def test_ids_are_those_of_the_sentencepiece_library(source, settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sees a red 7.", "the dog is here: na\u00efve"] * 9),
        model_writer=model,
        **{
            "vocab_size": 330,
            "model_type": "bpe",
            "byte_fallback": True,
            "hard_vocab_limit": False,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **settings,
        },
    )
    (source / "tokenizer.model").write_bytes(model.getvalue())
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = load_source_tokenizer([source], len(expected))
    assert len(tokenizer) == len(expected)
    for text in [*ODD_TEXTS, *random_texts()]:
        # The library takes the texts of special tokens literally, a tokenizer does not.
        if not any(token in text for token in SPECIALS.values()):
            assert tokenizer(text, add_special_tokens=False).input_ids == expected.encode(text), (
                text
            )
            assert tokenizer(text).input_ids[0] == expected.bos_id()


def test_the_prompt_has_the_tokens_of_the_original_around_images(source):
    write_sentencepiece(source)
    tokenizer = load_tokenizer(source)
    library = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    before, after = PROMPT.split("</s>")[0].split("<image>")
    turn = PROMPT.split("</s>")[1]
    # The original puts a space before each stretch around <image>; llava-hf after </s> too.
    expected = [1, *library.encode(before), IMAGE, *library.encode(after), 2, *library.encode(turn)]
    assert tokenizer(PROMPT).input_ids == expected
    assert tokenizer.convert_ids_to_tokens(library.encode(after)[:2]) == ["\u2581", "<0x0A>"]


def test_a_model_and_a_fast_tokenizer_of_the_same_pieces_agree(source, tmp_path):
    write_sentencepiece(source)
    write_fast(tmp_path)
    slow, fast = load_tokenizer(source), load_tokenizer(tmp_path)
    for text in [PROMPT, *ODD_TEXTS, *random_texts()]:
        assert slow(text).input_ids == fast(text).input_ids


def test_a_converted_tokenizer_keeps_its_tokens(source):
    write_fast(source, with_image=True)
    tokenizer = load_tokenizer(source)
    assert (len(tokenizer), tokenizer.pad_token) == (VOCABULARY + 2, "<pad>")


def test_vicunas_padding_token_is_replaced_by_one_of_its_own(source):
    write_sentencepiece(source)
    tokenizer = load_source_tokenizer([source], VOCABULARY)
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.model_max_length == 2048
    add_llava_tokens(tokenizer)
    assert tokenizer.pad_token == "<pad>"


def test_tokens_that_the_source_added_keep_their_ids(source):
    write_sentencepiece(source, added=("<im_patch>", "<x>"))
    tokenizer = load_source_tokenizer([source], VOCABULARY + 2)
    assert tokenizer("a<x>").input_ids[-1] == VOCABULARY + 1
    write_json(source / "added_tokens.json", {"<x>": VOCABULARY + 7})
    with pytest.raises(
        ValueError, match=rf"'<x>' with id {VOCABULARY + 7}, but tokenizer.model has"
    ):
        load_source_tokenizer([source], VOCABULARY + 9)


def test_the_slow_tokenizer_wins_where_the_originals_code_would_read_it(source):
    write_sentencepiece(source)
    write_fast(source, num_pieces=VOCABULARY - 3)
    assert len(load_source_tokenizer([source], VOCABULARY)) == VOCABULARY - 3
    tokenizer = load_source_tokenizer([source], VOCABULARY, prefer_sentencepiece=True)
    assert len(tokenizer) == VOCABULARY


def test_the_bases_tokenizer_is_taken_where_the_source_has_none(source, tmp_path):
    write_sentencepiece(source)
    (tmp_path / "adapter").mkdir()
    assert len(load_source_tokenizer([tmp_path / "adapter", source], VOCABULARY)) == VOCABULARY


def test_bad_tokenizers_are_refused(source):
    with pytest.raises(ValueError, match=r"found no tokenizer in .*tokenizer.model.*--base-llm"):
        load_source_tokenizer([source], VOCABULARY)
    write_sentencepiece(source)
    with pytest.raises(ValueError, match=rf"{VOCABULARY} tokens, more tokens than .*\(300\)"):
        load_source_tokenizer([source], 300)
    with pytest.raises(ValueError, match=rf"{VOCABULARY} tokens, far fewer tokens than .*32000"):
        load_source_tokenizer([source], 32000)
    model = source / "tokenizer.model"
    whole = model.read_bytes()
    for content in (whole[: len(whole) // 2 + 1], b"", b"version https://git-lfs", b"\xff" * 99):
        model.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no sentencepiece model .*Get it again"):
            load_source_tokenizer([source], VOCABULARY)
    (source / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match="is no tokenizer that can be read"):
        load_source_tokenizer([source], VOCABULARY)


def test_a_unigram_model_is_refused(source):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sees a red 7."] * 9),
        model_writer=model,
        vocab_size=20,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (source / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match="of kind unigram, expected BPE"):
        load_source_tokenizer([source], 20)


def test_no_code_that_a_tokenizers_folder_names_is_run(source, tmp_path):
    write_fast(source)
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    evil = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    write_json(path, {**config, **evil})
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_source_tokenizer([source], VOCABULARY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("aspect", "pads"),
    [("pad", True), ("anyres", True), ("anyres_max_9", True), ("square", False), (None, True)],
)
def test_the_aspect_ratio_of_the_original_decides_the_padding(source, aspect, pads):
    write_sentencepiece(source)
    clip = {"image_processor_type": "CLIPImageProcessor", "size": 28, "crop_size": 28}
    write_json(source / "preprocessor_config.json", clip)
    processor, notes = build_converted_processor(
        hyperllava_config(), load_tokenizer(source), source, aspect
    )
    assert processor.image_processor.do_pad is pads
    assert processor.image_seq_length == 16
    assert len(notes) == (aspect is None)


def test_image_settings_of_another_size_are_refused(source):
    write_sentencepiece(source)
    write_json(source / "preprocessor_config.json", {"size": 336, "crop_size": 336})
    with pytest.raises(ValueError, match="336 x 336 pixels, but the vision tower takes 28 x 28"):
        build_converted_processor(hyperllava_config(), load_tokenizer(source), source)


def test_a_sources_own_chat_template_is_kept_and_the_published_one_is_not(source):
    write_fast(source, with_image=True)
    write_json(source / "chat_template.json", {"chat_template": PUBLISHED})
    arguments = (hyperllava_config(), load_tokenizer(source), source)
    processor, notes = build_converted_processor(*arguments)
    assert SYSTEM in processor.chat_template
    assert any("vicuna_v1" in note for note in notes)
    (source / "chat_template.jinja").write_text("{{ 'own' }}")
    assert build_converted_processor(*arguments)[0].chat_template == "{{ 'own' }}"
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "brief.jinja").write_text("{{ 'brief' }}")
    templates = build_converted_processor(*arguments)[0].chat_template
    assert templates == {"default": "{{ 'own' }}", "brief": "{{ 'brief' }}"}


def test_a_hyperllava_folder_has_all_files_and_the_same_code(processor, tmp_path):
    config = hyperllava_config()
    assert write_hyperllava_text_files(tmp_path / "out", config, processor) == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        *load_shipped_code(),
    }
    package = Path(hyperllava_hf.__file__).parent
    sources = [
        *package.glob("modeling/*_hyperllava.py"),
        *package.glob("processing/*_hyperllava.py"),
    ]
    assert sorted(path.name for path in sources) == list(load_shipped_code())
    for path in sources:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


WRITE = """
import sys, tests.conversion.test_text_files as module
module.write_all(sys.argv[1], sys.argv[2])
"""


def write_all(source, target):
    """Write all three kinds of folder; run under the other line too."""
    source, target, config = Path(source), Path(target), hyperllava_config()
    tokenizer = load_tokenizer(source)
    processor, _ = build_converted_processor(config, tokenizer, None, "pad")
    write_hyperllava_text_files(target / "hyperllava", config, processor, source)
    hf = build_llava_hf_config(config)
    write_llava_hf_text_files(target / "llava-hf", hf, processor, source)
    original = build_llava_config(config, VOCABULARY, "tower")
    write_llava_text_files(target / "llava", original, tokenizer, VOCABULARY, source)


def hash_folder(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("write_source", [write_sentencepiece, write_fast])
def test_both_lines_write_the_same_bytes(source, tmp_path, other_python, write_source):
    write_source(source)
    write_json(source / "generation_config.json", {"temperature": 0.9, "eos_token_id": 2})
    write_all(source, tmp_path / "here")
    arguments = [str(source), str(tmp_path / "there")]
    subprocess.run(
        [other_python, "-c", WRITE, *arguments], check=True, cwd=Path(__file__).parents[2]
    )
    assert hash_folder(tmp_path / "here") == hash_folder(tmp_path / "there")
    # Again from the result: nothing changes any more.
    again = tmp_path / "here" / "hyperllava"
    write_all(again, tmp_path / "again")
    assert hash_folder(tmp_path / "again" / "hyperllava") == hash_folder(again)


READ = """
import json, sys
from transformers import AutoProcessor, GenerationConfig
import numpy as np, hashlib
from PIL import Image
processor = AutoProcessor.from_pretrained(sys.argv[1])
image = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
found = processor(text=json.loads(sys.argv[2]), images=image)
GenerationConfig.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])
print(type(processor).__name__, np.asarray(found["input_ids"]).tolist())
np.save(sys.argv[3] + "/pixels.npy", np.asarray(found["pixel_values"]))
"""


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_transformers_own_processor_gives_the_same_inputs(source, tmp_path, other_python, aspect):
    write_sentencepiece(source)
    config = hyperllava_config()
    processor, _ = build_converted_processor(config, load_tokenizer(source), None, aspect)
    folder = tmp_path / "out"
    notes = write_llava_hf_text_files(folder, build_llava_hf_config(config), processor)
    assert len(notes) == (aspect == "pad")
    image = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
    expected = processor(text=PROMPT, images=image, return_tensors="np")
    for python in (sys.executable, other_python):
        out = subprocess.run(
            [python, "-c", READ, str(folder), json.dumps(PROMPT), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.strip() == f"LlavaProcessor {expected['input_ids'].tolist()}"
        pixels = np.load(tmp_path / "pixels.npy")
        np.testing.assert_allclose(pixels, expected["pixel_values"], atol=1e-6, rtol=0)


def test_the_written_processor_gives_the_same_inputs(processor, tmp_path):
    write_hyperllava_text_files(tmp_path, hyperllava_config(), processor)
    loaded = HyperLlavaProcessor.from_pretrained(tmp_path)
    assert loaded(text=PROMPT.replace("<image>", "")).input_ids == (
        processor(text=PROMPT.replace("<image>", "")).input_ids
    )
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.chat_template == processor.chat_template


def test_the_original_form_has_its_own_vocabulary_back(processor, source, tmp_path):
    config = build_llava_config(hyperllava_config(), VOCABULARY, "tower")
    assert write_llava_text_files(tmp_path, config, processor.tokenizer, VOCABULARY) == []
    model = (tmp_path / "tokenizer.model").read_bytes()
    assert model == (source / "tokenizer.model").read_bytes()
    assert not (tmp_path / "added_tokens.json").exists()
    assert not (tmp_path / "tokenizer.json").exists()
    tokenizer = load_source_tokenizer([tmp_path], VOCABULARY)
    assert (len(tokenizer), tokenizer.pad_token) == (VOCABULARY, "<unk>")
    assert tokenizer("What\n</s>a").input_ids == processor.tokenizer("What\n</s>a").input_ids


def test_the_original_form_keeps_tokens_that_the_source_added(source, tmp_path):
    write_sentencepiece(source, added=("<im_patch>",))
    tokenizer = load_source_tokenizer([source], VOCABULARY + 1)
    add_llava_tokens(tokenizer)
    config = build_llava_config(hyperllava_config(), VOCABULARY + 1, "tower")
    write_llava_text_files(tmp_path, config, tokenizer, VOCABULARY + 1)
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"<im_patch>": VOCABULARY}


def test_without_a_sentencepiece_model_the_fast_tokenizer_loses_the_added_tokens(source, tmp_path):
    write_fast(source)
    tokenizer = load_tokenizer(source)
    config = build_llava_config(hyperllava_config(), VOCABULARY, "tower")
    (note,) = write_llava_text_files(tmp_path, config, tokenizer, VOCABULARY)
    assert "no tokenizer.model" in note
    assert len(load_source_tokenizer([tmp_path], VOCABULARY)) == VOCABULARY


@pytest.mark.parametrize(
    ("settings", "kept", "num_notes"),
    [
        (None, {}, 0),
        ({"_from_model_config": True, "transformers_version": "4.31.0", "pad_token_id": 0}, {}, 0),
        ({"max_length": 4096}, {"max_length": 4096}, 0),
        ({"temperature": 0.9, "top_p": 0.6, "max_length": 9}, {"max_length": 9}, 1),
        ({"do_sample": True, "top_p": 0.6}, {"do_sample": True, "top_p": 0.6}, 0),
        ({"length_penalty": 2.0}, {}, 1),
        ({"num_beams": 2, "length_penalty": 2.0}, {"num_beams": 2, "length_penalty": 2.0}, 0),
        ({"max_new_tokens": -1}, {}, 1),
        ([], {}, 1),
    ],
)
def test_generation_settings_can_be_saved_again(source, settings, kept, num_notes):
    if settings is not None:
        (source / "generation_config.json").write_text(json.dumps(settings))
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 5}
    found, notes = build_generation_config(config, source)
    assert found == {**config, **kept}
    assert len(notes) == num_notes


def test_a_sentencepiece_file_is_read_without_its_library(source):
    write_sentencepiece(source)
    model = load_sentencepiece_model(source / "tokenizer.model")
    library = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    assert [piece.text for piece in model.pieces] == [
        library.id_to_piece(number) for number in range(VOCABULARY)
    ]
    assert [piece.score for piece in model.pieces] == [
        library.get_score(number) for number in range(VOCABULARY)
    ]
    assert model.ids == {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
