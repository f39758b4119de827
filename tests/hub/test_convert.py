"""hyperllava convert of repositories: by id and revision, bases and towers by id, pickles last."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from hyperllava_hf.cli.app import main
from hyperllava_hf.conversion import convert
from tests.conversion.layout_writers import write_llava_hf, write_original, write_projector
from tests.conversion.results import assert_same_tensors, list_names, read_base
from tests.hub_server import HubServer


def upload(folder: Path, repository: str, revision: str = "main") -> None:
    api = huggingface_hub.HfApi(endpoint=huggingface_hub.constants.ENDPOINT)
    api.create_repo(repository, exist_ok=True)
    if revision != "main":
        api.create_branch(repository, branch=revision)
    api.upload_folder(repo_id=repository, folder_path=folder, revision=revision)


def test_repository_is_converted_by_id_and_revision(hub: HubServer, tmp_path: Path) -> None:
    source = write_llava_hf(tmp_path / "source")
    upload(source.path, "user/llava-1.5-tiny", "dev")
    report = convert("user/llava-1.5-tiny", tmp_path / "out", revision="dev")
    assert report.layout == "llava-hf"
    assert_same_tensors(read_base(tmp_path / "out"), source.expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: user/llava-1.5-tiny" in card or "- user/llava-1.5-tiny" in card
    with pytest.raises(ValueError, match="could not be downloaded"):
        convert("user/llava-1.5-tiny", tmp_path / "none", revision="nowhere")
    assert "none" not in list_names(tmp_path)


def test_tower_and_base_are_fetched_by_their_ids(hub: HubServer, tmp_path: Path) -> None:
    source = write_projector(tmp_path / "source")
    base = source.options["base_llm"]
    tower = json.loads((source.path / "config.json").read_text())["mm_vision_tower"]
    upload(Path(base), "user/base.llm")
    upload(Path(tower), "user/clip-tower")
    upload(source.path, "user/stage-1")
    convert(
        "user/stage-1", tmp_path / "out", base_llm="user/base.llm", vision_tower="user/clip-tower"
    )
    assert_same_tensors(read_base(tmp_path / "out"), source.expected)


def test_pickles_are_fetched_only_where_there_is_no_safetensors(
    hub: HubServer, tmp_path: Path
) -> None:
    source = write_original(tmp_path / "source", kind="safetensors", num_shards=1)
    (source.path / "pytorch_model.bin").write_bytes(b"never fetched")
    upload(source.path, "user/both")
    convert("user/both", tmp_path / "out", verify=False, **source.options)
    assert_same_tensors(read_base(tmp_path / "out"), source.expected)
    cached = list((tmp_path / "hub_cache").rglob("pytorch_model.bin"))
    assert cached == []
    pickled = write_original(tmp_path / "pickled", kind="bin")
    upload(pickled.path, "user/pickled")
    convert("user/pickled", tmp_path / "out-of-bin", verify=False, **pickled.options)
    assert_same_tensors(read_base(tmp_path / "out-of-bin"), pickled.expected)


def test_missing_repository_is_one_line_and_code_2(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "user/nowhere", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "user/nowhere" in err
    assert "out" not in list_names(tmp_path)
