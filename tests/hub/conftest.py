"""A Hub on loopback, for this process and for its children."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file

from tests.hub_server import HubServer

TIMEOUT = 300  # of a child, seconds; far more than any takes


def reset_client() -> None:
    """Let the client build its HTTP sessions anew; 0.36 and later name that differently."""
    if hasattr(huggingface_hub.utils, "reset_sessions"):
        huggingface_hub.utils.reset_sessions()
    else:
        huggingface_hub.close_session()


def connect(patch: pytest.MonkeyPatch, server: HubServer, cache: Path) -> None:
    """Point this process's client, which read its environment long ago, to a server."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
    for module in (constants, huggingface_hub.file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", server.xet is None)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_XET_CACHE", str(cache / "xet"))
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    patch.setenv("HF_TOKEN", "hf_writer")
    reset_client()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server that this process's client talks to, as a user who may write."""
    with HubServer() as server:
        connect(monkeypatch, server, tmp_path / "hub_cache")
        yield server
    reset_client()


def build_environment(server: HubServer, home: Path, **variables: str) -> dict[str, str]:
    """Build the environment of a child that talks to a server, with a home of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return {
        **inherited,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1" if server.xet is None else "0",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def start(script: str, job: Any, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a script of this folder with a job as its argument."""
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(job)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def finish(child: subprocess.Popen[str]) -> Any:
    """Wait for a script and return what it found."""
    try:
        out, err = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        raise
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def hash_weights(path: Path) -> str:
    """Hash names and values of a safetensors file, as pull_process.py does a model's."""
    tensors = load_file(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change a JSON file in place."""

    def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to change and to push."""
    import shutil

    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
