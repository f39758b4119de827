"""Processor of HyperLLaVA: images, chat templates, labels and guidance masks."""

# First, and whole: registration runs when transformers has been imported, and needs our modules.
import transformers  # noqa: F401

from .image_processing_hyperllava import HyperLlavaImageProcessor
from .processing_hyperllava import HyperLlavaProcessor, build_processor

__all__ = ["HyperLlavaImageProcessor", "HyperLlavaProcessor", "build_processor"]
