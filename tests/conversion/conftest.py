"""Fixtures of the conversion tests."""

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def ranks_folder(tmp_path_factory, worker_id):
    """zero-2 and zero-3 by real DeepSpeed, made once for all workers."""
    from tests.conversion.zero_writers import run_ranks

    base = tmp_path_factory.getbasetemp()
    # A worker's folder lies in the session's.
    folder = (base if worker_id == "master" else base.parent) / "deepspeed-ranks"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            run_ranks(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture
def streams(tmp_path_factory):
    """A folder for what a child process prints, beside the folders that are compared."""
    return tmp_path_factory.mktemp("streams")
