"""Processor of HyperLLaVA: images, chat templates, labels and guidance masks."""

from .image_processing_hyperllava import HyperLlavaImageProcessor
from .processing_hyperllava import HyperLlavaProcessor, build_processor

__all__ = ["HyperLlavaImageProcessor", "HyperLlavaProcessor", "build_processor"]
