"""transformers' common model tests, over LLaVA and over HyperLLaVA under one tester.

Copied by `test_transformers_suite.py` beside transformers' own test files and run from there: it
imports them relatively, as transformers' model tests do.
"""

import unittest

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.models.auto import modeling_auto

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration, HyperLlavaModel

from .generation.test_utils import GenerationTesterMixin
from .test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

# By these lists of names the mixin knows which class has a head, and takes labels.
modeling_auto.MODEL_MAPPING_NAMES["hyperllava"] = "HyperLlavaModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["hyperllava"] = (
    "HyperLlavaForConditionalGeneration"
)

PAD = 1
IMAGE = 0
NUM_PATCHES = 16
TEXT = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
}
VISION = {
    "model_type": "clip_vision_model",
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "intermediate_size": 37,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class ModelTester:
    """Sizes and inputs: one image and seven tokens a row."""

    def __init__(self, config_class, **fields):
        self.config_class = config_class
        self.fields = fields
        self.batch_size = 3
        self.seq_length = self.encoder_seq_length = NUM_PATCHES + 7
        self.hidden_size = TEXT["hidden_size"]
        self.num_hidden_layers = TEXT["num_hidden_layers"]
        self.num_attention_heads = TEXT["num_attention_heads"]
        self.vocab_size = TEXT["vocab_size"]
        self.is_training = True
        self.text_config = dict(TEXT)
        self.vision_config = dict(VISION)

    def get_config(self):
        return self.config_class(
            text_config=dict(TEXT),
            vision_config=dict(VISION),
            image_token_index=IMAGE,
            image_seq_length=NUM_PATCHES,
            vision_feature_layer=-1,
            pad_token_id=PAD,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], TEXT["vocab_size"] - 2) + 2
        input_ids[:, :NUM_PATCHES] = IMAGE
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, 3, 8, 8]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }


class CommonTests(ModelTesterMixin, GenerationTesterMixin):
    """What the classes below differ in is stated by them; the rest is the same for all."""

    _is_composite = True
    test_all_params_have_gradient = False
    config_class = HyperLlavaConfig
    fields = {}

    def setUp(self):
        self.model_tester = ModelTester(self.config_class, **self.fields)


class LlavaTest(CommonTests, unittest.TestCase):
    all_model_classes = (LlavaModel, LlavaForConditionalGeneration)
    config_class = LlavaConfig


class HyperLlavaTest(CommonTests, unittest.TestCase):
    all_model_classes = (HyperLlavaModel, HyperLlavaForConditionalGeneration)


class HyperLlavaPromptTest(HyperLlavaTest):
    fields = {
        "language_guidance_scope": "prompt",
        "visual_expert": "both",
        "language_expert_layers": "all",
    }
