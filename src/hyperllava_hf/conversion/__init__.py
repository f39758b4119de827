"""Conversion of LLaVA-family checkpoints: any layout to HyperLLaVA in safetensors, and back."""

from .convert import ConversionReport, convert
from .experts_freeze import freeze_experts, measure_mean_experts
from .experts_transfer import ExtractionReport, attach_experts, extract_experts
from .verification import Verification

__all__ = [
    "ConversionReport",
    "ExtractionReport",
    "Verification",
    "attach_experts",
    "convert",
    "extract_experts",
    "freeze_experts",
    "measure_mean_experts",
]
