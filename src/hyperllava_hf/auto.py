"""transformers' auto classes, knowing HyperLLaVA, under the same names on 4.57 and 5.x."""

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from hyperllava_hf.modeling.configuration_hyperllava import HyperLlavaConfig
from hyperllava_hf.modeling.modeling_hyperllava import (
    HyperLlavaForConditionalGeneration,
    HyperLlavaModel,
)
from hyperllava_hf.processing.image_processing_hyperllava import HyperLlavaImageProcessor
from hyperllava_hf.processing.processing_hyperllava import HyperLlavaProcessor

# transformers 5 removed the first name and brought the second; one class serves all of them.
AutoModelForVision2Seq = getattr(
    transformers, "AutoModelForVision2Seq", AutoModelForImageTextToText
)
AutoModelForMultimodalLM = getattr(
    transformers, "AutoModelForMultimodalLM", AutoModelForImageTextToText
)


def register() -> None:
    """Tell the auto classes which classes `model_type` "hyperllava" means."""
    AutoConfig.register(HyperLlavaConfig.model_type, HyperLlavaConfig, exist_ok=True)
    AutoModel.register(HyperLlavaConfig, HyperLlavaModel, exist_ok=True)
    for auto_class in {
        AutoModelForVision2Seq,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    }:
        auto_class.register(HyperLlavaConfig, HyperLlavaForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(HyperLlavaConfig, HyperLlavaProcessor, exist_ok=True)
    AutoImageProcessor.register(
        HyperLlavaConfig, slow_image_processor_class=HyperLlavaImageProcessor, exist_ok=True
    )


register()
