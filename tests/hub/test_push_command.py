"""hyperllava push: what it prints, its exit codes; inspect and ask of what was pushed, by id."""

import json
from pathlib import Path

import pytest

from hyperllava_hf.cli.app import main
from tests.hub.conftest import build_environment, finish, start
from tests.hub_server import HubServer

REPO = "user/tiny.hyper-llava-0.1"


def test_dry_run_lists_files_with_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".env").write_text("SECRET=1")
    assert main(["push", str(folder), REPO, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "  model.safetensors" in out
    assert [line for line in lines if line.endswith("README.md  (made by the push)")]
    assert lines[-1].endswith(f" MB in {len(lines) - 1} files") or " kB  in " in lines[-1]
    assert "Left out: .env (may hold a secret)." in err
    assert f"Dry run: nothing was sent to {REPO}." in err


def test_json_says_what_was_pushed(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--private", "--revision", "dev", "--license", "mit", "--message", "First"]
    assert main(["push", str(folder), REPO, "--json", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    repository = hub.repositories[REPO]
    assert repository.private
    assert content["commit"] == repository.refs["refs/heads/dev"]
    assert repository.commits[content["commit"]].message == "First"
    assert content["url"] == f"{hub.endpoint}/{REPO}"
    pushed = {file["path"] for file in content["files"]}
    assert pushed == set(repository.files("dev")) - {".gitattributes"}


def test_pull_request_is_what_is_printed(
    hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create(REPO)
    assert main(["push", str(folder), REPO, "--create-pr"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/{REPO}/discussions/1"


def test_refusals_are_one_line_and_code_2(
    hub: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["push", str(folder), REPO]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("hyperllava: this token may only read")
    assert "hf_reader" not in err


def test_commands_take_an_id_over_http_and_never_show_the_token(
    folder: Path, picture: Path, tmp_path: Path
) -> None:
    token = "hf_" + "s3cret" * 6
    with HubServer() as server:
        server.accounts[token] = server.accounts["hf_writer"]
        environment = build_environment(server, tmp_path / "home", HF_TOKEN=token)
        ask = ["ask", str(picture), "What?", "--model", REPO, "--max-new-tokens", "2"]
        commands = [
            ["push", str(folder), REPO, "--private"],
            ["inspect", REPO, "--revision", "main", "--json"],
            [*ask, "--json"],
            ["inspect", "user/missing"],
            ["inspect", REPO, "--revision", "missing"],
        ]
        results = finish(start("command_process.py", commands, environment))
    assert [code for code, _, _ in results] == [0, 0, 0, 2, 2], results
    assert server.repositories[REPO].private
    assert token not in json.dumps(results)
    assert json.loads(results[1][1])["language_expert_blocks"] == [1]
    assert json.loads(results[2][1])["new_tokens"] == 2
    for _, out, err in results[3:]:
        assert (out, err.count("\n")) == ("", 1)
