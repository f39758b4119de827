"""What a push adds to a folder that is not complete."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperllava_hf.hub.folder_check import check_folder
from hyperllava_hf.hub.repository_files import complete_repository
from hyperllava_hf.modeling.configuration_hyperllava import AUTO_MAP
from hyperllava_hf.shipped_code import load_shipped_code


def complete(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    return complete_repository(check_folder(folder).kept)


def test_what_save_pretrained_writes_is_complete(folder: Path) -> None:
    assert complete(folder) == ({}, [])


def test_full_auto_map_replaces_one_of_another_repository(
    folder: Path, edit_json: Callable
) -> None:
    remote = {
        "AutoConfig": "user/name--configuration_hyperllava.HyperLlavaConfig",
        "AutoOwn": "a.B",
    }
    edit_json(folder / "config.json", lambda config: config.update(auto_map=remote))
    added, notes = complete(folder)
    assert list(added) == ["config.json"]
    assert json.loads(added["config.json"])["auto_map"] == {**AUTO_MAP, "AutoOwn": "a.B"}
    assert "config.json did not map" in notes[0]
    assert "user/name--" in (folder / "config.json").read_text()  # the folder stays as it was


def test_missing_code_is_added(folder: Path) -> None:
    for path in folder.glob("*.py"):
        path.unlink()
    added, _ = complete(folder)
    assert added == load_shipped_code()


def test_differing_code_is_kept_and_named(folder: Path) -> None:
    (folder / "modeling_hyperllava.py").write_text("VERSION = 2\n")
    added, notes = complete(folder)
    assert added == {}
    assert notes == [
        "1 code files differ from this package's and are pushed as they are: "
        "modeling_hyperllava.py."
    ]


def test_code_of_two_versions_is_refused(folder: Path) -> None:
    (folder / "modeling_hyperllava.py").write_text("VERSION = 2\n")
    (folder / "experts_hyperllava.py").unlink()
    with pytest.raises(ValueError, match=r"modeling_hyperllava.py\) that lacks experts_hyper"):
        complete(folder)


def test_older_form_of_the_processor_is_made_from_the_newer(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    expected = json.loads(path.read_text())
    path.unlink()
    added, _ = complete(folder)
    assert json.loads(added["preprocessor_config.json"]) == expected


def test_newer_form_of_the_processor_is_made_from_the_older(
    folder: Path, edit_json: Callable
) -> None:
    path = folder / "processor_config.json"
    expected = json.loads(path.read_text())
    edit_json(path, lambda config: config.pop("image_processor"))
    added, _ = complete(folder)
    assert json.loads(added["processor_config.json"]) == expected


def test_image_settings_in_neither_file_are_an_error(folder: Path, edit_json: Callable) -> None:
    edit_json(folder / "processor_config.json", lambda config: config.pop("image_processor"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="found no image settings"):
        complete(folder)


def test_default_chat_template_is_added(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    expected = path.read_bytes()
    path.unlink()
    added, _ = complete(folder)
    assert added == {"chat_template.jinja": expected}


def test_licence_is_the_repository_s_own() -> None:
    root = Path(__file__).parents[2]
    assert (root / "src/hyperllava_hf/hub/LICENSE").read_bytes() == (root / "LICENSE").read_bytes()
