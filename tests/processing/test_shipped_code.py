"""The folder ships to the Hub as remote code: what transformers accepts there, as rules."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import (
    get_imports,
    get_relative_import_files,
    get_relative_imports,
)

import hyperllava_hf.processing

FOLDER = Path(hyperllava_hf.processing.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
SHIPPED = [path for path in FILES if path.name != "__init__.py"]
ENTRIES = [FOLDER / "processing_hyperllava.py", FOLDER / "image_processing_hyperllava.py"]
ALLOWED = {"numpy", "PIL", "torch", "transformers"}
# Reached without a socket or a process of their own.
FORBIDDEN = {"socket", "subprocess", "multiprocessing", "urllib", "http", "pickle", "ctypes"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


@each_file
def test_imports_are_siblings_or_allowed(path):
    imported = set(get_imports(str(path))) - set(sys.stdlib_module_names)
    assert imported <= ALLOWED
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module
            assert "." not in node.module
            assert (FOLDER / f"{node.module}.py").exists()
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN


@each_file
def test_no_text_looks_like_a_relative_import(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"^\s*(from|import)\s+\.", node.value, re.MULTILINE)


@each_file
def test_nothing_evaluates_text(path):
    called = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_names_are_unique_to_the_model():
    assert all(path.stem.endswith("_hyperllava") for path in SHIPPED)


def test_every_file_is_in_the_closure_of_an_entry():
    closure = {Path(file) for entry in ENTRIES for file in get_relative_import_files(str(entry))}
    assert closure | set(ENTRIES) == set(SHIPPED)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda path: path.name)
def test_an_entry_names_its_whole_closure_itself(entry):
    """transformers 4.57 copies no more than that out of a local folder."""
    closure = {Path(file).stem for file in get_relative_import_files(str(entry))}
    assert set(get_relative_imports(str(entry))) == closure
