"""A processor's folder: written the same by both transformers lines, read the same by both."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer

from hyperllava_hf.processing import (
    HyperLlavaProcessor,
    build_processor,
    image_processing_hyperllava,
)
from hyperllava_hf.processing.chat_templates_hyperllava import PLAIN, VICUNA_V1
from tests.processing.builders import (
    TOKENIZERS,
    ask,
    build_image,
    build_legacy_llama_tokenizer,
    build_small_processor,
    build_word_tokenizer,
    escape,
)
from tests.processing.isolated_process import describe_processor

SCRIPT = Path(__file__).with_name("isolated_process.py")
CODE = Path(image_processing_hyperllava.__file__).parent
TOKENIZER_MODEL = b"stands for a SentencePiece model"


def run_isolated(
    python: str, jobs: list[tuple[str, Path]], scratch: Path, **env: str
) -> list[dict[str, Any]]:
    """Run the script in a fresh process, away from the source, with an empty module cache."""
    scratch.mkdir()
    request = scratch / "jobs.json"
    rows = [{"source": str(source), "target": str(target)} for source, target in jobs]
    request.write_text(json.dumps(rows))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1", **env}
    finished = subprocess.run(
        [python, "-I", str(SCRIPT), str(request)],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_llama_processor(folder: Path) -> HyperLlavaProcessor:
    """A processor around a Llama tokenizer as checkpoints carry it, tokenizer.model included."""
    folder.mkdir()
    build_legacy_llama_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
        "model_max_length": 2048,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(TOKENIZER_MODEL)
    return build_processor(AutoTokenizer.from_pretrained(folder), image_size=28)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Folders that this line saved, by kind of tokenizer."""
    root = tmp_path_factory.mktemp("saved")
    folders = {kind: root / kind for kind in [*TOKENIZERS, "llama_class", "more_specials"]}
    for kind in TOKENIZERS:
        build_small_processor(kind).save_pretrained(folders[kind])
    build_llama_processor(root / "source").save_pretrained(folders["llama_class"])
    extras = {"cls_token": "<cls>", "additional_special_tokens": ["<y>", "<x>"]}
    tokenizer = build_word_tokenizer(model_max_length=512, **extras)
    build_processor(tokenizer, image_size=28).save_pretrained(folders["more_specials"])
    return folders


def build_hub_cache(folder: Path, hub: Path) -> str:
    """Lay a folder out as a downloaded repository; returns its id."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "models--some-one--tiny.llava-v1"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    # A repository with a model has one; offline, transformers 5 asks for it even for a tokenizer.
    (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "hyperllava"}')
    return "some-one/tiny.llava-v1"


def test_folders_and_repositories_cross_to_the_other_line_and_back(saved, other_python, tmp_path):
    """Read and written by the other line, then by this one, each time without the package."""
    expected = [describe_processor(HyperLlavaProcessor.from_pretrained(p)) for p in saved.values()]
    expected.append(expected[0])
    originals = [*saved.values(), saved["words"]]
    hub = tmp_path / "hub"
    repository = build_hub_cache(saved["words"], hub)
    sources = [*map(str, saved.values()), repository]
    for step, python in (("there", other_python), ("back", sys.executable)):
        targets = [tmp_path / step / str(index) for index in range(len(sources))]
        jobs = list(zip(sources, targets, strict=True))
        found = run_isolated(python, jobs, tmp_path / f"{step}-scratch", HF_HUB_CACHE=str(hub))
        assert found == expected
        for original, target in zip(originals, targets, strict=True):
            assert read_folder(target) == read_folder(original)
        sources = [*map(str, targets[:-1]), repository]


def test_the_folder_holds_what_each_line_looks_for(saved):
    files = read_folder(saved["words"])
    code = {path.name for path in CODE.glob("*.py")} - {"__init__.py"}
    data = {
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(files) == code | data
    assert all(files[name] == (CODE / name).read_bytes() for name in code)
    processor = json.loads(files["processor_config.json"])
    images = json.loads(files["preprocessor_config.json"])
    assert processor["patch_size"] == 14
    assert processor["num_additional_image_tokens"] == 1
    assert processor["vision_feature_select_strategy"] == "default"
    assert processor["image_token"] == "<image>"
    assert images.pop("processor_class") == processor["processor_class"] == "HyperLlavaProcessor"
    assert processor["image_processor"] == images
    assert processor["auto_map"] == images["auto_map"]
    assert json.loads(files["tokenizer_config.json"]) == {
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "HyperLlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": "right",
        "unk_token": "<unk>",
    }
    assert files["chat_template.jinja"].decode() == VICUNA_V1


def test_tokenizer_model_stays_with_the_checkpoint(saved):
    assert (saved["llama_class"] / "tokenizer.model").read_bytes() == TOKENIZER_MODEL


def test_saving_leaves_no_padding_of_the_last_call_behind(tmp_path, processor):
    processor.tokenizer(["A", "A red"], padding=True, truncation=True, max_length=2)
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert content["padding"] is None
    assert content["truncation"] is None


def test_saving_over_a_folder_leaves_no_other_dialect(tmp_path, processor):
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).write_text('{"bos_token": "wrong"}')
    written = processor.save_pretrained(tmp_path)
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    assert HyperLlavaProcessor.from_pretrained(tmp_path).tokenizer.bos_token == "<s>"


def test_saving_to_a_file_is_refused(tmp_path, processor):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=escape("is a file", "Choose another path")):
        processor.save_pretrained(tmp_path / "file")


def test_saving_may_push(tmp_path, processor, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        HyperLlavaProcessor, "push_to_hub", lambda self, *a, **k: pushed.append((a, k))
    )
    processor.save_pretrained(tmp_path / "tiny", push_to_hub=True)
    processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="one/tiny", private=True)
    assert pushed == [(("tiny",), {}), (("one/tiny",), {"private": True})]


def test_own_and_further_templates_are_kept(tmp_path, processor):
    processor.chat_template = {"default": PLAIN, "short": "{{ messages | length }}"}
    processor.save_pretrained(tmp_path)
    loaded = HyperLlavaProcessor.from_pretrained(tmp_path)
    image = build_image()
    assert loaded.apply_chat_template([ask("", image)]) == "<image>"
    assert loaded.apply_chat_template([ask("", image)], chat_template="short") == "1"
    assert "USER" in loaded.apply_chat_template([ask("", image)], chat_template="vicuna_v1")
    processor.chat_template = {"default": PLAIN, "../x": ""}
    with pytest.raises(ValueError, match="is no file name"):
        processor.save_pretrained(tmp_path)


def test_arguments_replace_what_the_folder_says(saved):
    loaded = HyperLlavaProcessor.from_pretrained(
        saved["words"], patch_size=7, vision_feature_select_strategy="full", do_pad=False, size=14
    )
    assert loaded.image_seq_length == 5
    assert not loaded.image_processor.do_pad


def test_a_llava_hf_folder_becomes_a_processor_of_ours(tmp_path):
    """The files of llava-hf/llava-1.5-7b-hf in miniature: another class, another template."""
    tokenizer = build_small_processor("legacy_llama").tokenizer
    tokenizer.save_pretrained(tmp_path)
    template = (
        "{% for m in messages %}{{ m['role'].upper() }}: "
        "{% for p in m['content'] if p['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }} {% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    edge = {"height": 336, "width": 336}
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": edge,
            "do_center_crop": True,
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
        },
        "config.json": {"model_type": "llava"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    processor = HyperLlavaProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.do_pad
    assert processor.image_seq_length == 576
    conversation = [ask("What?", build_image())]
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == (
        "USER: <image>\nWhat? ASSISTANT:"
    )
    found = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (found["input_ids"] == processor.image_token_id).sum() == 576
    assert "USER" in processor.apply_chat_template(conversation, chat_template="vicuna_v1")


def test_a_folder_without_a_patch_size_says_what_to_pass(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    del config["patch_size"]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=escape("patch_size is None", "patch_size=14")):
        HyperLlavaProcessor.from_pretrained(tmp_path)
    assert HyperLlavaProcessor.from_pretrained(tmp_path, patch_size=14).patch_size == 14


def test_a_folder_without_a_named_tokenizer_loads_or_says_so(tmp_path):
    processor = build_small_processor()
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    if transformers.__version__.startswith("4."):
        with pytest.raises(
            ValueError, match=r"expected a tokenizer_config\.json with tokenizer_cl"
        ):
            HyperLlavaProcessor.from_pretrained(tmp_path)
    else:
        loaded = HyperLlavaProcessor.from_pretrained(tmp_path)
        assert loaded(text="A")["input_ids"] == processor(text="A")["input_ids"]


@pytest.mark.parametrize("edited", ["preprocessor_config.json", "processor_config.json"])
def test_image_settings_that_differ_between_both_files_are_refused(edited, tmp_path):
    build_small_processor().save_pretrained(tmp_path)
    path = tmp_path / edited
    stated = json.loads(path.read_text())
    settings = stated.get("image_processor", stated)
    settings["image_mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"found image_mean = .* expected the same"):
        HyperLlavaProcessor.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises((ValueError, OSError), match=f"{edited}.* (is no|is not a valid) JSON"):
        HyperLlavaProcessor.from_pretrained(tmp_path)
