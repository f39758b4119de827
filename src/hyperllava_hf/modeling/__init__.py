"""HyperLLaVA's configuration and models: a flat, closed folder that ships to the Hub as it is."""

# First, and whole: registration runs when transformers has been imported, and needs our modules.
import transformers  # noqa: F401

from .configuration_hyperllava import HyperLlavaConfig
from .modeling_hyperllava import HyperLlavaForConditionalGeneration, HyperLlavaModel

__all__ = ["HyperLlavaConfig", "HyperLlavaForConditionalGeneration", "HyperLlavaModel"]
