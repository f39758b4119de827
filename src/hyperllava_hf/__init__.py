"""HyperLLaVA (arXiv 2403.13447) for Hugging Face transformers 4.57 and 5.x.

Importing this package registers its classes with transformers' auto classes, so that its
checkpoints load without `trust_remote_code`. Nothing heavy is imported for that: names load on
first use, and if transformers is not loaded yet, registration waits until it is.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AutoModelForVision2Seq": "hyperllava_hf.auto",
    "HyperLlavaConfig": "hyperllava_hf.modeling",
    "HyperLlavaForConditionalGeneration": "hyperllava_hf.modeling",
    "HyperLlavaImageProcessor": "hyperllava_hf.processing",
    "HyperLlavaModel": "hyperllava_hf.modeling",
    "HyperLlavaProcessor": "hyperllava_hf.processing",
    "four_bit_config": "hyperllava_hf.quantization",
    "lora_config": "hyperllava_hf.training.lora",
    "push": "hyperllava_hf.hub.push",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


# What has to be whole before our classes can be registered.
_PREREQUISITES = ("transformers", "hyperllava_hf.modeling", "hyperllava_hf.processing")


class _RegisterAfterImports(importlib.abc.MetaPathFinder):
    """Registers our classes as soon as transformers has been imported.

    Where one of our own folders is what imports transformers, that waits for the folder too.
    """

    def __init__(self) -> None:
        self.num_running = 0

    def find_spec(
        self, fullname: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _PREREQUISITES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: types.ModuleType) -> None:
            self.num_running += 1
            try:
                execute(module)
            finally:
                self.num_running -= 1
            if self.num_running == 0:
                importlib.import_module("hyperllava_hf.auto")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "transformers" in sys.modules:
    importlib.import_module("hyperllava_hf.auto")
else:
    sys.meta_path.insert(0, _RegisterAfterImports())
