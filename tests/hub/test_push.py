"""hyperllava_hf.push against the server, with whichever client is installed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import hyperllava_hf
from hyperllava_hf.hub.hub_errors import HubError
from hyperllava_hf.modeling import HyperLlavaForConditionalGeneration
from hyperllava_hf.modeling.configuration_hyperllava import AUTO_MAP
from hyperllava_hf.shipped_code import load_shipped_code
from tests.hub.conftest import connect, reset_client
from tests.hub.hub_state import StoredFile
from tests.hub_server import HubServer

REPO = "user/tiny.hyper-llava-0.1"
# One of each kind that issue and ecosystem ask for.
EXPECTED = {
    "LICENSE-CODE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_one_commit_holds_a_complete_repository(hub: HubServer, folder: Path) -> None:
    report = hyperllava_hf.push(folder, REPO)
    repository = hub.repositories[REPO]
    assert [commit.message for commit in repository.commits.values()] == [
        "initial commit",
        "Upload HyperLLaVA",
    ]
    assert report.commit == repository.refs["refs/heads/main"]
    assert report.url == f"{hub.endpoint}/{REPO}"
    files = repository.files()
    assert set(files) == EXPECTED | set(load_shipped_code()) | {".gitattributes"}
    assert json.loads(files["config.json"].content)["auto_map"] == AUTO_MAP
    assert [path for path, file in files.items() if file.is_lfs] == ["model.safetensors"]
    for path in folder.iterdir():
        assert files[path.name].content == path.read_bytes()


def test_large_files_travel_in_parts_where_the_hub_asks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(part_size=50_000) as server:
        connect(monkeypatch, server, tmp_path / "cache")
        hyperllava_hf.push(folder, REPO)
        assert server.count("PUT", r"/lfs/\w+/\d+") > 1
        files = server.repositories[REPO].files()
    assert files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()


def test_new_repository_is_private_if_asked(hub: HubServer, folder: Path) -> None:
    hyperllava_hf.push(folder, REPO, private=True)
    assert hub.repositories[REPO].private


def test_public_repository_is_not_pushed_to_as_private(hub: HubServer, folder: Path) -> None:
    repository = hub.create(REPO)
    with pytest.raises(HubError, match="exists and is public, --private would change nothing"):
        hyperllava_hf.push(folder, REPO, private=True)
    assert set(repository.files()) == {".gitattributes"}


def test_revision_is_created_and_main_stays(hub: HubServer, folder: Path) -> None:
    report = hyperllava_hf.push(folder, REPO, revision="half/precision")
    repository = hub.repositories[REPO]
    assert repository.refs["refs/heads/half/precision"] == report.commit
    assert set(repository.files()) == {".gitattributes"}
    again = hyperllava_hf.push(folder, REPO, revision="half/precision")
    assert again.commit == report.commit  # nothing had changed, so there is no commit


def test_pull_request_leaves_main_alone(hub: HubServer, folder: Path) -> None:
    repository = hub.create(REPO)
    report = hyperllava_hf.push(folder, REPO, create_pr=True)
    assert report.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"
    assert set(repository.files()) == {".gitattributes"}
    assert "model.safetensors" in repository.files("refs/pr/1")


def test_dry_run_needs_no_token_and_sends_nothing(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (folder / "optimizer.pt").write_bytes(b"x")
    plan = hyperllava_hf.push(folder, REPO, dry_run=True).plan
    assert hub.requests == []
    assert {file.path for file in plan.files} == EXPECTED | set(load_shipped_code())
    assert {f.path for f in plan.files if f.is_generated} == {"README.md", "LICENSE-CODE"}
    sizes = {file.path: file.num_bytes for file in plan.files}
    assert sizes["model.safetensors"] == os.path.getsize(folder / "model.safetensors")
    assert list(plan.left_out) == ["optimizer.pt"]


def save_shards(folder: Path) -> int:
    model = HyperLlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return len(list(folder.glob("model-*.safetensors")))


def test_interrupted_push_sends_only_what_is_missing(hub: HubServer, folder: Path) -> None:
    num_shards = save_shards(folder)
    assert num_shards > 3
    victim = hashlib.sha256(sorted(folder.glob("model-*.safetensors"))[1].read_bytes()).hexdigest()
    hub.fail("PUT", victim, 403)
    with pytest.raises(HubError, match=r"run the push again|may not write"):
        hyperllava_hf.push(folder, REPO)
    repository = hub.repositories[REPO]
    assert set(repository.files()) == {".gitattributes"}  # all of the commit, or nothing
    arrived = set(hub.lfs)
    assert victim not in arrived
    hub.requests.clear()
    hyperllava_hf.push(folder, REPO)
    assert hub.count("PUT", "/lfs/") == num_shards - len(arrived)
    assert "model.safetensors.index.json" in repository.files()


def test_weights_that_the_new_ones_replace_are_deleted(hub: HubServer, folder: Path) -> None:
    hyperllava_hf.push(folder, REPO)
    repository = hub.repositories[REPO]
    repository.files()["notes.txt"] = StoredFile(b"mine", False)
    save_shards(folder)
    report = hyperllava_hf.push(folder, REPO)
    # Loading would have taken the old file before the new index.
    assert report.deleted == ["model.safetensors"]
    assert "model.safetensors" not in repository.files()
    assert "notes.txt" in repository.files()


def test_card_of_the_folder_is_kept(hub: HubServer, folder: Path) -> None:
    card = "---\nlicense: apache-2.0\n---\n# Mine\n"
    (folder / "README.md").write_text(card)
    report = hyperllava_hf.push(folder, REPO)
    files = hub.repositories[REPO].files()
    assert files["README.md"].content.decode() == card
    assert "LICENSE" in files  # Apache-2.0 for weights and code alike
    assert "README.md of the folder is kept as it is." in report.plan.notes


def test_card_of_the_repository_is_kept_if_a_person_wrote_it(hub: HubServer, folder: Path) -> None:
    repository = hub.create(REPO)
    repository.files()["README.md"] = StoredFile(b"# By hand\n", False)
    report = hyperllava_hf.push(folder, REPO)
    assert repository.files()["README.md"].content == b"# By hand\n"
    assert report.notes == ["README.md of the repository was written by hand, so it is kept."]


def test_card_that_cannot_be_read_stops_the_push(hub: HubServer, folder: Path) -> None:
    hub.create(REPO).files()["README.md"] = StoredFile(b"# By hand\n", False)
    hub.fail("HEAD", r"README\.md", 404, times=99)
    with pytest.raises(HubError, match="cannot be reached"):
        hyperllava_hf.push(folder, REPO)
    assert hub.count("POST", "/commit/") == 0


def test_generated_card_is_renewed(hub: HubServer, folder: Path) -> None:
    hyperllava_hf.push(folder, REPO)
    hyperllava_hf.push(folder, REPO, datasets=["user/pictures"])
    card = hub.repositories[REPO].files()["README.md"].content.decode()
    assert "user/pictures" in card


def test_llama_2_base_brings_its_notice(hub: HubServer, folder: Path) -> None:
    report = hyperllava_hf.push(folder, REPO, base_models=["llava-hf/llava-1.5-7b-hf"])
    files = hub.repositories[REPO].files()
    assert b"LLAMA 2 Community License" in files["Notice"].content
    assert b"license: llama2" in files["README.md"].content
    assert [note for note in report.plan.notes if "asks for a copy of itself" in note]


def test_folder_is_not_changed(hub: HubServer, folder: Path, edit_json: Callable) -> None:
    edit_json(folder / "config.json", lambda config: config.pop("auto_map"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    hyperllava_hf.push(folder, REPO)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["model", "a/b/c", "user/", "user/na--me", "user/x.git", "../x"])
def test_names_that_no_repository_has_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"; expected a repository such as user/"):
        hyperllava_hf.push(folder, name, dry_run=True)


def test_missing_token_is_an_error(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"found no token; .*hf auth login`, or set HF_TOKEN"):
        hyperllava_hf.push(folder, REPO)
    assert hub.requests == []


def test_offline_mode_is_an_error(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"offline mode is on \(HF_HUB_OFFLINE\)"):
        hyperllava_hf.push(folder, REPO)


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_reader", REPO, "this token may only read"),
        ("hf_unknown", REPO, r"does not know this token \(401\)"),
        ("hf_writer", "stranger/model", r"may not write to stranger/model \(403\)"),
    ],
)
def test_refused_tokens_are_explained_and_not_repeated(
    hub: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo: str,
    message: str,
) -> None:
    hub.create("stranger/model")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        hyperllava_hf.push(folder, repo)
    assert token not in str(caught.value)
    assert hub.count("POST", "/commit/") == 0


def test_token_that_a_server_repeats_is_hidden(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "s3cret" * 6
    hub.accounts[secret] = hub.accounts["hf_writer"]
    monkeypatch.setenv("HF_TOKEN", secret)
    hub.fail("POST", "/commit/", 400)
    hub.error_message = f"Bad request of {secret}"
    with pytest.raises(HubError) as caught:
        hyperllava_hf.push(folder, REPO)
    assert secret not in str(caught.value)
    assert "***" in str(caught.value)


def test_another_commit_meanwhile_is_explained(hub: HubServer, folder: Path) -> None:
    hub.create(REPO)
    hub.fail("POST", "/commit/", 412)
    with pytest.raises(HubError, match=r"got another commit meanwhile \(412\)"):
        hyperllava_hf.push(folder, REPO)


def test_hub_out_of_reach_is_explained(folder: Path, hub: HubServer) -> None:
    hub.http.shutdown()
    hub.http.server_close()
    reset_client()
    with pytest.raises(HubError, match=r"cannot be reached .*run the push again"):
        hyperllava_hf.push(folder, REPO)
    hub.http = type("Stopped", (), {"shutdown": lambda s: None, "server_close": lambda s: None})()


def test_broken_weights_are_not_pushed(hub: HubServer, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    shutil.copy(Path(__file__), folder / "README.md")  # even with a card of the folder's own
    with pytest.raises(ValueError, match="no whole safetensors file"):
        hyperllava_hf.push(folder, REPO)
    assert hub.requests == []


def test_weights_are_pushed_as_they_are(hub: HubServer, folder: Path) -> None:
    model = HyperLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    hyperllava_hf.push(folder, REPO)
    stored = hub.repositories[REPO].files()["model.safetensors"].content
    assert stored == (folder / "model.safetensors").read_bytes()
