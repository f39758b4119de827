"""What README.md and MODEL_CARD.md say: their tables, their links, and the code that they show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "MODEL_CARD.md")
GUIDES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))


def load_update_tables():
    spec = importlib.util.spec_from_file_location(
        "update_tables", ROOT / "scripts" / "update_tables.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_say_what_the_result_files_say(name: str) -> None:
    update_tables = load_update_tables()
    text = (ROOT / name).read_text(encoding="utf-8")
    assert update_tables.BLOCK.search(text)
    assert update_tables.update_text(text) == text


def test_checkpoint_carries_its_card() -> None:
    card = load_update_tables().CHECKPOINT / "README.md"
    assert card.read_text(encoding="utf-8") == (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_checkpoint_holds_our_code_and_fits_the_package() -> None:
    folder = load_update_tables().CHECKPOINT
    shipped = {
        path.name: path.read_bytes()
        for part in ("modeling", "processing")
        for path in (ROOT / "src" / "hyperllava_hf" / part).glob("*_hyperllava.py")
    }
    assert {path.name: path.read_bytes() for path in folder.glob("*.py")} == shipped
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6


def test_bundled_checkpoint_reaches_every_floor() -> None:
    update_tables = load_update_tables()
    metrics = update_tables.json.loads(update_tables.METRICS.read_text(encoding="utf-8"))
    assert metrics["split"] == "test"
    measured = metrics["accuracy"]
    below = [
        family
        for family, floor in update_tables.FLOORS.items()
        if family != "counting" and 100 * measured[family]["accuracy"] < floor
    ]
    counting = measured["counting"]["forms"]
    floors = {form: 90 if "digit" in form else 95 for form in counting}
    below += [form for form, floor in floors.items() if 100 * counting[form]["accuracy"] < floor]
    assert below == []
    assert len(counting) == 3
    assert 90 in floors.values()


@pytest.mark.parametrize("path", [*map(Path, DOCUMENTS), *GUIDES], ids=str)
def test_links_lead_to_files(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (ROOT / path.parent / target).exists()] == []


def test_python_of_the_readme_runs_as_it_stands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert re.fullmatch(r"An? \w+ \d in the .*\.", printed.strip())
