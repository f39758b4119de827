"""Fetch transformers' own common model tests, of the installed version: its wheel lacks them.

    python scripts/fetch_transformers_tests.py FOLDER

Writes the files of the source distribution's tests/ into FOLDER; does nothing where it exists.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def fetch(target: Path) -> None:
    wanted = f"transformers=={version('transformers')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
        subprocess.run([*command, "transformers", "--dest", scratch, wanted], check=True)
        (archive,) = Path(scratch).glob("transformers-*.tar.gz")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(archive) as source:
            for member in source.getmembers():
                path = Path(member.name)
                if path.parent.name == "tests" and path.suffix == ".py":
                    content = source.extractfile(member)
                    assert content is not None
                    (unpacked / path.name).write_bytes(content.read())
        # The last step, so that a folder that exists is whole.
        unpacked.rename(target)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not folder.exists():
        fetch(folder)
