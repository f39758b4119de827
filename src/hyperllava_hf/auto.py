"""transformers' auto classes, knowing HyperLLaVA, under the same names on 4.57 and 5.x."""

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.models.auto import modeling_auto

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
# Tables of names by which pipelines, servers and trainers tell what kind of model they have; the
# auto classes' own registration leaves them out. 4.57 lacks the second.
NAME_TABLES = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
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
    for table in NAME_TABLES:
        names = getattr(modeling_auto, table, {})
        names[HyperLlavaConfig.model_type] = HyperLlavaForConditionalGeneration.__name__


register()
