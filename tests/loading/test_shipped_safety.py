"""What shipped code may do, read off its syntax trees: no socket, no process, no evaluated text."""

import ast
import json
import sys
from pathlib import Path

import pytest

import hyperllava_hf
from hyperllava_hf import HyperLlavaForConditionalGeneration
from tests.modeling.tiny_models import tiny_model

PACKAGE = Path(hyperllava_hf.__file__).parent
FOLDERS = ("modeling", "processing", "hyperllava-digits")
FILES = sorted(path for folder in FOLDERS for path in (PACKAGE / folder).glob("*.py"))
ALLOWED = {"numpy", "PIL", "torch", "transformers"}
# Imported where the user asked for it, inside `try:`.
OPTIONAL = {"bitsandbytes"}
FORBIDDEN_MODULES = {
    "asyncio", "builtins", "code", "codeop", "ctypes", "ftplib", "http", "imaplib", "marshal",
    "multiprocessing", "pickle", "poplib", "pty", "runpy", "shelve", "smtplib", "socket",
    "socketserver", "ssl", "subprocess", "telnetlib", "urllib", "webbrowser", "xmlrpc", "zipimport",
}  # fmt: skip
FORBIDDEN_CALLS = {"__import__", "compile", "eval", "exec", "globals", "input", "open_url"}
# Attributes by which the allowed modules would start a process, fetch a file or read a pickle.
FORBIDDEN_ATTRIBUTES = {
    "torch": {"hub", "load", "multiprocessing", "package", "jit"},
    "os": {"execv", "execve", "fork", "kill", "popen", "posix_spawn", "spawnv", "startfile",
           "system"},
    "np": {"load", "fromregex"},
    "numpy": {"load", "fromregex"},
    "importlib": {"import_module"},
}  # fmt: skip

each_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def read_tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def roots(tree):
    """The first names of all absolute imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@each_file
def test_only_the_allowed_packages_are_imported(path):
    tree = read_tree(path)
    found = set(roots(tree)) - set(sys.stdlib_module_names)
    assert found <= ALLOWED | OPTIONAL
    guarded = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.body
        for name in roots(statement)
    }
    assert found & OPTIONAL <= guarded


@each_file
def test_no_socket_process_or_pickle_module_is_imported(path):
    assert not set(roots(read_tree(path))) & FORBIDDEN_MODULES


@each_file
def test_no_text_is_evaluated_and_nothing_is_run(path):
    for node in ast.walk(read_tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in FORBIDDEN_ATTRIBUTES.get(node.value.id, set())


def test_every_shipped_file_was_read():
    assert {path.parent.name for path in FILES} == set(FOLDERS)
    assert len(FILES) > 30


def test_loading_never_needs_a_pickle(tmp_path, monkeypatch):
    """A folder holds safetensors, and torch.load is never reached."""
    import torch

    tiny_model().save_pretrained(tmp_path)
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes <= {".json", ".py", ".safetensors", ".md", ".jinja"}

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hyperllava"
