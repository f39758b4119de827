"""The folder ships to the Hub: transformers' rules for it, and loading without the package.

Each fresh process loads through every auto class of its line, saves, and loads what it saved.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import hyperllava_hf.modeling
import hyperllava_hf.processing
from tests.modeling.tiny_models import ROWS, batch, logits, tiny_model

MODELING = Path(hyperllava_hf.modeling.__file__).parent
PROCESSING = Path(hyperllava_hf.processing.__file__).parent
FILES = [*sorted(MODELING.glob("*.py")), *sorted(PROCESSING.glob("*.py"))]
SHIPPED = [path for path in FILES if path.name != "__init__.py"]
MODELING_ENTRIES = ["configuration_hyperllava.py", "modeling_hyperllava.py"]
ENTRIES = [
    *(MODELING / name for name in MODELING_ENTRIES),
    PROCESSING / "processing_hyperllava.py",
    PROCESSING / "image_processing_hyperllava.py",
]
ALLOWED = {"numpy", "PIL", "torch", "transformers"}

# Imports from inside transformers: few, and each a thing that a release may move.
INSIDE_TRANSFORMERS = {
    "cache_utils: Cache",
    "cache_utils: DynamicCache",
    "masking_utils: create_causal_mask",
    "modeling_outputs: BaseModelOutputWithPast",
    "modeling_utils: PreTrainedModel",
    "models.llama.modeling_llama: LlamaDecoderLayer",
    "models.llama.modeling_llama: LlamaModel",
    "models.llama.modeling_llama: LlamaRMSNorm",
    "models.llama.modeling_llama: LlamaRotaryEmbedding",
    "models.llava.configuration_llava: LlavaConfig",
    "models.llava.modeling_llava: LlavaForConditionalGeneration",
    "models.llava.modeling_llava: LlavaModel",
    "models.llava.modeling_llava: LlavaMultiModalProjector",
    "utils.output_capturing: capture_outputs",
    "utils.output_capturing: maybe_install_capturing_hooks",
    "utils: generic",
    "utils: logging",
}

each_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def imports_of(path):
    """(dots, module, names) of every import statement, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


@each_file
def test_relative_imports_name_a_sibling(path):
    for dots, module, names in imports_of(path):
        if dots:
            assert dots == 1, f"{path.name} imports upward"
            assert module, f"{path.name}: 'from . import {names}' is not seen by the Hub's loader"
            assert "." not in module
            assert (path.parent / f"{module}.py").exists()
            assert "*" not in names


@each_file
def test_no_line_of_a_string_looks_like_a_relative_import(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"^\s*(from|import)\s+\.", node.value, re.MULTILINE)


@each_file
def test_third_party_imports_are_the_allowed_ones(path):
    """By transformers' own reading, which leaves out try: and if is_..._available():."""
    assert set(get_imports(str(path))) - set(sys.stdlib_module_names) <= ALLOWED


@each_file
def test_the_package_is_never_imported_by_name(path):
    assert not [m for _, m, _ in imports_of(path) if m.split(".")[0] == "hyperllava_hf"]


def test_every_file_belongs_to_an_entry():
    closure = {Path(file) for entry in ENTRIES for file in get_relative_import_files(str(entry))}
    assert closure | set(ENTRIES) == set(SHIPPED)


def test_the_two_folders_are_closed():
    for entry in ENTRIES:
        files = {Path(file).parent for file in get_relative_import_files(str(entry))}
        assert files <= {entry.parent}


def test_base_names_are_unique_and_say_whose_they_are():
    names = [path.name for path in SHIPPED]
    assert len(names) == len(set(names))
    assert all(name.endswith("_hyperllava.py") for name in names)


@each_file
def test_no_isinstance_on_classes_of_another_entry(path):
    """Each entry of a local folder is a module copy of its own."""
    own = {"HyperLlavaConfig", "HyperLlavaModel", "HyperLlavaForConditionalGeneration"}
    own |= {"HyperLlavaProcessor", "HyperLlavaImageProcessor"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "isinstance",
            "issubclass",
        ):
            named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not named & own


def test_imports_from_inside_transformers_are_the_golden_list():
    found = set()
    for path in MODELING.glob("*.py"):
        for dots, module, names in imports_of(path):
            if not dots and module.startswith("transformers."):
                found |= {f"{module.removeprefix('transformers.')}: {name}" for name in names}
    assert found == INSIDE_TRANSFORMERS


def test_nothing_opens_a_socket_a_process_or_a_pickle():
    forbidden = {"socket", "subprocess", "multiprocessing", "urllib", "http", "pickle", "ctypes"}
    for path in SHIPPED:
        assert not {m.split(".")[0] for _, m, _ in imports_of(path)} & forbidden, path.name


# fresh processes


@pytest.fixture(scope="module", params=["token", "prompt"])
def scope(request):
    return request.param


@pytest.fixture(scope="module")
def saved(tmp_path_factory, scope):
    """A folder, and an input with what the model here says to it."""
    folder = tmp_path_factory.mktemp("remote") / "my.model-v1.5"
    model = tiny_model(visual_expert="both", language_guidance_scope=scope)
    model.save_pretrained(folder)
    inputs = batch(ROWS)
    if scope == "prompt":
        inputs["guidance_mask"] = inputs["attention_mask"]
    arrays = {name: value.numpy() for name, value in inputs.items()}
    np.savez(folder.parent / "inputs.npz", expected=logits(model, **inputs).numpy(), **arrays)
    return folder


def run_fresh(tmp_path, saved, **job):
    """Run `fresh_process.py` far from the package, with caches of its own."""
    job = {"hide": True, "trust": True, "before": "", "target": "", **job}
    job["inputs"] = str(saved.parent / "inputs.npz")
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    if not job["hide"]:
        environment["PYTHONPATH"] = str(MODELING.parents[1])
    environment |= {
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_HUB_CACHE", None)
    script = Path(__file__).with_name("fresh_process.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "job.json")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(found, remote):
    for place, name in found["classes"].items():
        whole = "HyperLlavaForConditionalGeneration"
        assert name == ("HyperLlavaModel" if place.endswith(" AutoModel") else whole)
    assert found["errors"]
    assert max(found["errors"].values()) < 1e-4
    prefix = "transformers_modules." if remote else "hyperllava_hf."
    assert {
        module for module in found["modules"].values() if not module.startswith(prefix)
    } == set()


def as_hub_cache(home, repository, folder):
    """Lay a folder out as huggingface_hub caches a repository."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)


def test_a_folder_and_a_hub_repository_load_without_the_package(tmp_path, saved):
    """The local folder is saved anew on the way, and loaded from there too."""
    as_hub_cache(tmp_path / "home", "some-user/my.model-v1.5", saved)
    sources = [str(saved), "some-user/my.model-v1.5"]
    found = run_fresh(tmp_path, saved, sources=sources, target=str(tmp_path / "again"))
    check(found, remote=True)
    assert any(place.startswith(str(tmp_path / "again")) for place in found["classes"])
    again = {path.name for path in (tmp_path / "again").iterdir()}
    assert {path.name for path in MODELING.glob("*_hyperllava.py")} <= again
    first, second = (
        json.loads((folder / "config.json").read_text()) for folder in (saved, tmp_path / "again")
    )
    assert second["auto_map"] == first["auto_map"]


ORDERS = {
    "package first": "import hyperllava_hf, transformers",
    "transformers first": "import transformers, hyperllava_hf",
    "a submodule": "import hyperllava_hf.modeling",
}


@pytest.mark.parametrize("scope", ["token"], indirect=True, scope="module")
@pytest.mark.parametrize("order", ORDERS)
def test_with_the_package_imported_no_trust_is_needed(tmp_path, saved, order):
    found = run_fresh(
        tmp_path, saved, sources=[str(saved)], hide=False, trust=None, before=ORDERS[order]
    )
    check(found, remote=False)


def test_the_name_auto_model_for_vision2seq_works_on_both_lines(tmp_path):
    from hyperllava_hf import AutoModelForVision2Seq

    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVision2Seq.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    inputs = batch(ROWS)
    assert torch.allclose(logits(loaded, **inputs), logits(model, **inputs), atol=1e-4)
