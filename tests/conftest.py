"""What every test starts from: no network, caches of its own, one thread a worker, fixed seeds."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Read when torch, transformers and huggingface_hub are first imported, so set before any of them;
# child processes inherit them.
_CACHE = Path(tempfile.mkdtemp(prefix="hyperllava-tests-"))
os.environ["HF_HOME"] = str(_CACHE / "hf_home")
os.environ["HF_MODULES_CACHE"] = str(_CACHE / "hf_modules")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each start a thread per core slow one another down several times over.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MKL_NUM_THREADS"] = "1"


def pytest_sessionfinish() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU or the internet, unless -m asks for it."""
    asked_for = config.getoption("-m")
    unavailable = {"gpu", "network"} - set(asked_for.split())
    left_out = [item for item in items if unavailable & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seed torch where a test has imported it; tests that need no torch do not pay for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def get_setting(variable: str, meaning: str) -> str:
    """Return what `make test` tells the tests through the environment."""
    value = os.environ.get(variable)
    if not value:
        pytest.fail(f"{variable} is not set: run `make test`, or set it to {meaning}")
    return value


@pytest.fixture(scope="session")
def other_python() -> str:
    """The interpreter of the other transformers line."""
    return get_setting(
        "HYPERLLAVA_OTHER_PYTHON", "the interpreter of an environment with the other line"
    )


@pytest.fixture(scope="session")
def transformers_tests() -> Path:
    """The folder with transformers' own common model tests, of the version that is installed."""
    meaning = "a folder that scripts/fetch_transformers_tests.py made"
    return Path(get_setting("HYPERLLAVA_TRANSFORMERS_TESTS", meaning))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-block HyperLLaVA and its processor."""
    from tests.tiny_checkpoint import save_tiny_checkpoint

    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small red PNG file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (20, 31), (200, 30, 30)).save(path)
    return path
