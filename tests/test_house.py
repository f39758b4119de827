"""The repository itself: its metadata, its pins, its file tree, and what every file keeps to."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hyperllava_hf"
DIGITS = PACKAGE / "hyperllava-digits"
# Made by tools, never part of the repository.
GENERATED = re.compile(
    r"\.git|\.venv|\.nox|\.\w+_cache|\.hypothesis|__pycache__|build|dist|.*\.egg-info"
)
TEXT_SUFFIXES = {
    "",
    ".cfg",
    ".cff",
    ".jinja",
    ".md",
    ".py",
    ".toml",
    ".txt",
    ".typed",
    ".yaml",
    ".yml",
}


def list_files(top: Path = ROOT) -> list[Path]:
    """List the files of the repository below a folder, as paths relative to its root."""
    found = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if not GENERATED.fullmatch(name)]
        found += [Path(folder, name).relative_to(ROOT) for name in names]
    return sorted(found)


TEXT_FILES = [path for path in list_files() if path.suffix in TEXT_SUFFIXES]
SOURCE_FILES = [
    path for path in list_files(PACKAGE) if path.suffix == ".py" and DIGITS.name not in path.parts
]


def read_metadata() -> configparser.ConfigParser:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    return metadata


def read_pins(line: str) -> dict[str, str]:
    """Read the pins of one transformers line, the common ones included."""
    texts = [
        (ROOT / "constraints" / name).read_text()
        for name in (f"transformers-{line}.txt", "common.txt")
    ]
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(texts), re.MULTILINE))


def read_file_tree() -> list[str]:
    """Read the paths of the README's file tree: the lines `path  what it is` of its tree block."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```tree\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, "README.md holds one block that starts with ```tree"
    lines = blocks[0].splitlines()
    assert [line for line in lines if not re.fullmatch(r"\S+  +\S.*", line)] == []
    return [line.split()[0] for line in lines]


def test_readme_tree_names_only_what_exists() -> None:
    tree = read_file_tree()
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path in tree if (ROOT / path).is_dir() != path.endswith("/")] == []
    assert len(tree) == len(set(tree))


def test_readme_tree_names_every_file() -> None:
    tree = set(read_file_tree())

    def is_covered(path: Path) -> bool:
        # A folder's line stands for all that lies below it, except below src, where every file has
        # a line of its own; what lies in folders of data (the checkpoint, recipes) needs none.
        folders = {f"{folder.as_posix()}/" for folder in path.parents}
        is_data = bool({DIGITS.name, "recipes"} & set(path.parts))
        return path.as_posix() in tree or (
            bool(folders & tree) and (path.parts[0] != "src" or is_data)
        )

    exempt = {"__init__.py", "py.typed"}
    assert [str(p) for p in list_files() if p.name not in exempt and not is_covered(p)] == []


def test_extras_exist() -> None:
    extras = read_metadata()["options.extras_require"]
    assert set(extras) == {"4bit", "convert", "flash", "plot", "train", "triton", "zero", "dev"}


def test_both_transformers_lines_are_pinned() -> None:
    four, five = read_pins("4"), read_pins("5")
    assert re.fullmatch(r"4\.57\.\d+", four["transformers"])
    assert re.fullmatch(r"5\.\d+\.\d+", five["transformers"])
    assert four["torch"] == five["torch"]


def test_every_dependency_of_ci_is_pinned() -> None:
    metadata = read_metadata()
    lines = metadata["options"]["install_requires"].splitlines()
    for extra in ("dev", "plot", "train"):
        lines += metadata["options.extras_require"][extra].splitlines()
    names = {re.match(r"[\w.-]+", line).group() for line in lines if line}
    names.discard("hyperllava-hf")
    assert [
        name for name in sorted(names) if name not in read_pins("4") or name not in read_pins("5")
    ] == []


def test_this_run_uses_a_pinned_line() -> None:
    from transformers import __version__ as found

    assert found in {read_pins(line)["transformers"] for line in ("4", "5")}


def test_the_other_interpreter_has_the_other_line(other_python: str) -> None:
    from transformers import __version__ as here

    code = "import importlib.metadata as m; print(m.version('transformers'))"
    there = subprocess.check_output([other_python, "-c", code], text=True).strip()
    assert {here, there} == {read_pins(line)["transformers"] for line in ("4", "5")}


@pytest.mark.parametrize("path", TEXT_FILES, ids=str)
def test_text_is_ascii_without_machine_paths(path: Path) -> None:
    text = (ROOT / path).read_bytes().decode("ascii")
    machine_path = re.compile(r"(?<![\w.])/(home|root|Users|work|opt|mnt)/")
    assert [line for line in text.splitlines() if machine_path.search(line)] == []
    assert text == "" or text.endswith("\n")


@pytest.mark.parametrize("path", SOURCE_FILES, ids=str)
def test_source_keeps_to_the_size_limits(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, functions):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            lines = node.end_lineno - node.lineno + 1 - documented
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_model_card_metadata_is_valid() -> None:
    card = ModelCard.load(ROOT / "MODEL_CARD.md", ignore_metadata_errors=False)
    data = card.data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.language
    # What the Hub checks on upload, as far as it can be checked without it.
    assert all(isinstance(tag, str) for tag in data.tags)
    for result in data.eval_results or []:
        assert isinstance(result.metric_value, float | int)


def test_every_command_of_make_help_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    offered = re.findall(r'echo "make (\w+) ', makefile)
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    documented = {"bench", "demo", "evidence", "test", "setup", "style", "quality", "checkpoint"}
    assert documented | {"clean"} == set(offered)
    assert set(offered) <= targets


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the wheel from a copy of the sources and list what it holds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(command, check=True, cwd=folder)
    with zipfile.ZipFile(next(folder.glob("dist/*.whl"))) as wheel:
        return set(wheel.namelist())


def test_wheel_carries_the_package_and_its_data(wheel_names: set[str]) -> None:
    expected = {path.relative_to("src").as_posix() for path in list_files(PACKAGE)}
    assert expected - wheel_names == set()
    assert "hyperllava_hf/py.typed" in wheel_names
    assert "hyperllava_hf/hyperllava-digits/model.safetensors" in wheel_names
