"""Loading that fails: no access, damaged files, a full disk; one error, then loading works."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

import hyperllava_hf
from hyperllava_hf.inspection.tensor_headers import load_tensor_headers
from tests.hub.conftest import build_environment, connect, finish, hash_weights, start
from tests.hub.hub_state import Account, StoredFile
from tests.hub_server import HubServer

WEIGHTS = "model.safetensors"
FILE_LIMIT = 60_000  # bytes: more than any code or tokenizer file has, less than the weights


def store(server: HubServer, folder: Path, name: str, **options: bool) -> None:
    """Put a folder into a repository of the server, as if it had been pushed."""
    repository = server.create(name, **options)
    files = {
        path.name: StoredFile(path.read_bytes(), path.name == WEIGHTS) for path in folder.iterdir()
    }
    commit = repository.add_commit("weights", files, None)
    repository.refs["refs/heads/main"] = commit.oid


def run(server: HubServer, home: Path, steps: list[dict[str, Any]]) -> list[Any]:
    return finish(start("failure_process.py", steps, build_environment(server, home)))


def flip_a_bit(content: bytes) -> bytes:
    return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]


def convert(name: str, target: Path) -> list[str]:
    return ["convert", name, str(target), "--no-verify"]


def list_wrong_blobs(home: Path, name: str) -> list[str]:
    """List a repository's cached large files whose content is not that of their hash."""
    blobs = home / "hub" / f"models--{name.replace('/', '--')}" / "blobs"
    return [
        path.name
        for path in blobs.iterdir()
        if len(path.name) == 64 and hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    ]


def check_refusals(found: list[Any], num_refusals: int, expected: str) -> None:
    """Check that loads were refused with an error for the user, until one had the weights."""
    assert len(found) == num_refusals + 1
    for answer in found[:-1]:
        assert answer["error"] == "OSError", answer
    assert found[-1] == {"weights": expected}


def test_no_access_is_one_error_and_a_token_that_may_read_loads(
    folder: Path, tmp_path: Path
) -> None:
    tokens: list[dict[str, str]] = [{}, {"token": "hf_reader"}, {"token": "hf_unknown"}]
    tokens.append({"token": "hf_stranger"})
    names = ("stranger/gated", "stranger/private")
    commands = [["inspect", names[0], "--json"], convert(names[0], tmp_path / "out")]
    with HubServer() as server:
        server.accounts["hf_stranger"] = Account("stranger")
        store(server, folder, names[0], gated=True)
        store(server, folder, names[1], private=True)
        steps: list[dict[str, Any]] = [{"load": n, **token} for n in names for token in tokens]
        steps += [{"command": c, **token} for token in tokens for c in commands]
        found = run(server, tmp_path / "home", steps)
    expected = hash_weights(folder / WEIGHTS)
    for refused in (found[:4], found[4:8]):
        check_refusals(refused, 3, expected)
        assert "Invalid credentials in Authorization header" in refused[2]["message"]
    for answer, status in zip(found[:2], (401, 403), strict=True):
        assert "You are trying to access a gated repo" in answer["message"]
        assert str(status) in answer["message"]
    for answer in found[4:6]:  # whether it exists is not told
        assert "stranger/private is not a local folder" in answer["message"]
        assert "If this is a private repository, make sure to pass a token" in answer["message"]
    for code, out, err in found[8:14]:
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "hf_" not in err
    assert [code for code, _, _ in found[14:]] == [0, 0]
    assert hash_weights(tmp_path / "out" / WEIGHTS) == expected


def test_incomplete_download_is_one_error_and_the_next_load_works(
    folder: Path, tmp_path: Path
) -> None:
    with HubServer() as server:
        for name in ("longer", "shorter", "full", "cut", "full-command"):
            store(server, folder, f"user/{name}")
        server.damage(f"user/longer/.*{WEIGHTS}", lambda content: content + bytes(1000))
        server.damage(f"user/shorter/.*{WEIGHTS}", lambda content: content[:50_000])
        server.cut("GET", f"user/cut/.*{WEIGHTS}", after=50_000)
        steps: list[dict[str, Any]] = [
            {"load": "user/longer"},
            # 0.36 would go on after the last byte, which the server has not, so it says to force.
            {"load": "user/longer", "force": True},
            {"load": "user/shorter"},
            {"load": "user/shorter"},
            {"load": "user/full", "file_limit": FILE_LIMIT},
            {"load": "user/full"},
            {"command": convert("user/cut", tmp_path / "cut")},
            {"command": convert("user/cut", tmp_path / "cut-2")},
            {"command": convert("user/full-command", tmp_path / "full"), "file_limit": FILE_LIMIT},
            {"command": convert("user/full-command", tmp_path / "full")},
        ]
        found = run(server, tmp_path / "home", steps)
    expected = hash_weights(folder / WEIGHTS)
    for first in (0, 2, 4):
        check_refusals(found[first : first + 2], 1, expected)
    for answer in (found[0], found[2]):
        assert "Consistency check failed: file should be of size" in answer["message"]
        assert "retry with `force_download=True`" in answer["message"]
    assert "File too large" in found[4]["message"]
    # Broken off half-way: 2.x asks again by itself.
    for (code, out, err), codes in ((found[6], (0, 2)), (found[8], (2,))):
        assert code in codes, err
        assert code == 0 or (out, err.count("\n")) == ("", 1)
    for code, _, err in (found[7], found[9]):
        assert code == 0, err
    for target in ("cut-2", "full"):
        assert hash_weights(tmp_path / target / WEIGHTS) == expected


def test_wrong_bytes_of_the_right_length_over_plain_http(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub checks the length alone, so only what safetensors or convert see is seen."""
    home = tmp_path / "home"
    with HubServer() as server:
        for name in ("bit", "header", "nan"):
            store(server, folder, f"user/{name}")
        server.damage(f"user/bit/.*{WEIGHTS}", flip_a_bit)
        server.damage(f"user/header/.*{WEIGHTS}", lambda content: b"\xff" * 8 + content[8:])
        server.damage(f"user/nan/.*{WEIGHTS}", lambda content: content[:-400] + b"\xff" * 400)
        steps: list[dict[str, Any]] = [
            {"load": "user/bit"},
            {"load": "user/header"},
            {"load": "user/header", "force": True},
            {"command": convert("user/nan", tmp_path / "nan")},
            {"load": "user/nan", "force": True},
        ]
        bit, header, forced, (code, out, err), forced_nan = run(server, home, steps)
        expected = hash_weights(folder / WEIGHTS)
        assert "Error while deserializing header" in header["message"]
        assert forced == forced_nan == {"weights": expected}
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "holds NaN or Inf" in err
        assert not (tmp_path / "nan").exists()
        # A changed value is not noticed, but the file's name in the cache is what its hash was.
        assert bit["weights"] != expected
        assert len(list_wrong_blobs(home, "user/bit")) == 1
        assert list_wrong_blobs(home, "user/header") + list_wrong_blobs(home, "user/nan") == []
        connect(monkeypatch, server, tmp_path / "cache")
        api = HfApi(endpoint=server.endpoint)
        if hasattr(api, "verify_repo_checksums"):  # `hf cache verify`; 0.36 has none
            result = api.verify_repo_checksums("user/bit", cache_dir=home / "hub")
            assert [mismatch["path"] for mismatch in result.mismatches] == [WEIGHTS]


def test_full_disk_and_wrong_bytes_over_xet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(xet=True) as server:
        connect(monkeypatch, server, tmp_path / "cache")
        for name in ("user/full", "user/bit"):
            hyperllava_hf.push(folder, name)
        home = tmp_path / "home"
        step = {"load": "user/full"}
        full = run(server, home, [{**step, "file_limit": FILE_LIMIT}, step])
        num_fetches = server.count("GET", "/xet/data/")
        server.damage("/xet/data/", flip_a_bit)
        bit = run(server, tmp_path / "home-2", [{"load": "user/bit"}])
        num_fetches = server.count("GET", "/xet/data/") - num_fetches
    expected = hash_weights(folder / WEIGHTS)
    check_refusals(full, 1, expected)
    # Over Xet transformers 5.x has a message of its own, and the reason as that error's cause.
    assert "File too large" in full[0]["message"] + full[0]["cause"], full[0]
    # Xet notices, and asks again.
    assert bit == [{"weights": expected}]
    assert num_fetches > 1


def test_headers_of_weights_that_are_none_are_one_error(hub: HubServer, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 64)
    api = HfApi(endpoint=hub.endpoint)
    api.create_repo("user/garbage")
    api.upload_folder(repo_id="user/garbage", folder_path=folder)
    with pytest.raises(ValueError, match="user/garbage has no whole safetensors weights"):
        load_tensor_headers("user/garbage")
