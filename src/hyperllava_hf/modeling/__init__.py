"""HyperLLaVA's configuration and models: a flat, closed folder that ships to the Hub as it is."""

from .configuration_hyperllava import HyperLlavaConfig
from .modeling_hyperllava import HyperLlavaForConditionalGeneration, HyperLlavaModel

__all__ = ["HyperLlavaConfig", "HyperLlavaForConditionalGeneration", "HyperLlavaModel"]
