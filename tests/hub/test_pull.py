"""Loading by id over HTTP, without the package: by branch, tag and commit, then offline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

import hyperllava_hf
from tests.hub.conftest import build_environment, connect, finish, hash_weights, reset_client, start
from tests.hub_server import HubServer
from tests.tiny_checkpoint import save_tiny_checkpoint

REPO = "user/tiny.hyper-llava-0.1"  # dots and dashes, which become part of a module's name
MODEL = "AutoModelForImageTextToText"
CLASSES = [
    "AutoConfig",
    "AutoImageProcessor",
    "AutoTokenizer",
    "AutoModel",
    MODEL,
    "AutoModelForVision2Seq",
    "AutoModelForMultimodalLM",
]
FULL = "HyperLlavaForConditionalGeneration"


@dataclass
class Pulled:
    """What the children found, and what they should have."""

    weights: dict[str, str]
    commits: dict[str, str]
    at_once: list[list[dict[str, Any]]]
    offline: list[dict[str, Any]]
    num_downloads: int


@pytest.fixture(scope="module", params=["lfs", "xet"])
def pulled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    """Push three versions; pull them in two processes at once, then from the cache alone."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("versions"))
    home = tmp_path_factory.mktemp("home")
    weights, commits = {}, {}
    with pytest.MonkeyPatch.context() as patch, HubServer(xet=request.param == "xet") as server:
        connect(patch, server, tmp_path_factory.mktemp("cache"))
        for name, branch in (("v1.0", None), ("experiment", "experiment"), ("main", None)):
            commits[name] = hyperllava_hf.push(folder, REPO, revision=branch).commit
            weights[name] = hash_weights(folder / "model.safetensors")
            if name == "v1.0":
                hyperllava_hf.hub.push.HfApi().create_tag(REPO, tag="v1.0")
            tensors = load_file(folder / "model.safetensors")
            tensors["lm_head.weight"] += 1
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        reset_client()
        jobs = [
            {"repo": REPO, "revision": "main", "classes": CLASSES},
            {"repo": REPO, "revision": "experiment", "classes": [MODEL]},
            {"repo": REPO, "revision": "v1.0", "classes": [MODEL]},
            {"repo": REPO, "revision": commits["v1.0"], "classes": [MODEL]},
        ]
        environment = build_environment(server, home)
        children = [start("pull_process.py", jobs, environment) for _ in range(2)]
        at_once = [finish(child) for child in children]
        pattern = "/xet/data/" if request.param == "xet" else r"resolve/.*model\.safetensors"
        num_downloads = server.count("GET", pattern)
    # The server is gone.
    environment |= {"HF_HUB_OFFLINE": "1"}
    offline = finish(start("pull_process.py", [jobs[0], jobs[2], jobs[3]], environment))
    return Pulled(weights, commits, at_once, offline, num_downloads)


def test_every_revision_brings_its_own_weights(pulled: Pulled) -> None:
    expected = [pulled.weights[name] for name in ("main", "experiment", "v1.0", "v1.0")]
    assert len(set(expected)) == 3
    for found in pulled.at_once:
        assert [answer["weights"] for answer in found] == expected


def test_every_revision_resolves_to_its_commit(pulled: Pulled) -> None:
    expected = [pulled.commits[name] for name in ("main", "experiment", "v1.0", "v1.0")]
    assert [answer["commit"] for answer in pulled.at_once[0]] == expected


def test_two_processes_on_one_cold_cache_agree(pulled: Pulled) -> None:
    first, second = pulled.at_once
    assert first == second


def test_weights_were_fetched_over_the_way_under_test(pulled: Pulled) -> None:
    assert pulled.num_downloads >= 3


def test_every_auto_class_of_the_line_loads(pulled: Pulled) -> None:
    classes = pulled.at_once[0][0]["classes"]
    assert set(classes) == {name for name in CLASSES if hasattr(transformers, name)}
    assert classes["AutoConfig"] == "HyperLlavaConfig"
    assert classes["AutoImageProcessor"] == "HyperLlavaImageProcessor"
    assert classes["AutoModel"] == "HyperLlavaModel"
    assert {classes[name] for name in classes if "For" in name} == {FULL}


def test_code_comes_from_the_repository_at_that_commit(pulled: Pulled) -> None:
    for answer in pulled.at_once[0]:
        assert answer["module"].startswith("transformers_modules.")
        assert answer["processor"].split(".")[:-1] == answer["module"].split(".")[:-1]
        assert answer["processor"].startswith("transformers_modules.")


def test_cache_alone_gives_the_same_offline(pulled: Pulled) -> None:
    online = pulled.at_once[0]
    assert pulled.offline == [online[0], online[2], online[3]]


def test_what_is_missing_refused_or_cut_is_named_and_the_cache_stays_usable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        hyperllava_hf.push(folder, REPO)
        reset_client()
        server.create("stranger/gated", gated=True)
        server.cut("GET", r"model\.safetensors", after=50_000)
        jobs = [
            {"repo": "user/missing", "fails": True, "classes": []},
            {"repo": REPO, "revision": "missing", "fails": True, "classes": []},
            {"repo": "stranger/gated", "fails": True, "classes": []},
            {"repo": REPO, "classes": [MODEL]},
        ]
        environment = build_environment(server, tmp_path / "home")
        found = finish(start("pull_process.py", jobs, environment))
        num_ranges = server.count("GET", r"model\.safetensors")
    assert {answer["error"] for answer in found[:3]} == {"OSError"}
    assert "user/missing is not a local folder and is not a valid model id" in found[0]["message"]
    assert "missing is not a valid git identifier" in found[1]["message"]
    assert "You are trying to access a gated repo" in found[2]["message"]
    # Broken off half-way, the client asked for the rest.
    assert found[3]["weights"] == hash_weights(folder / "model.safetensors")
    assert num_ranges == 2


def test_parts_pushed_apart_by_transformers_make_one_repository(
    folder: Path, tmp_path: Path
) -> None:
    with HubServer() as server:
        environment = build_environment(server, tmp_path / "home", HF_TOKEN="hf_writer")
        pushes = [
            ["model", "user/model.first"],
            ["processor", "user/model.first"],
            ["processor", "user/processor.first"],
            ["model", "user/processor.first"],
        ]
        job = {"folder": str(folder), "pushes": pushes}
        module = finish(start("push_process.py", job, environment))
        assert module.startswith("transformers_modules.")
        for name in ("user/model.first", "user/processor.first"):
            files = server.repositories[name].files()
            assert {path.name for path in folder.iterdir()} <= set(files)
            for path in [*folder.glob("*.py"), folder / "processor_config.json"]:
                assert files[path.name].content == path.read_bytes(), path.name
        jobs = [{"repo": name, "classes": CLASSES} for name in ("user/model.first", pushes[2][1])]
        found = finish(start("pull_process.py", jobs, environment))
    expected = hash_weights(folder / "model.safetensors")
    assert [answer["weights"] for answer in found] == [expected] * 2
    assert found[0]["ids"] == found[1]["ids"]
    assert {answer["classes"]["AutoModel"] for answer in found} == {"HyperLlavaModel"}
