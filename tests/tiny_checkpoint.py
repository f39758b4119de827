"""A tiny HyperLLaVA folder: two blocks, one token a character, random but non-zero experts."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hyperllava_hf.modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.processing import build_processor

IMAGE_SIZE, PATCH_SIZE = 28, 14


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token a printable ASCII character."""
    tokens = ["<unk>", "<s>", "</s>", "\n", *map(chr, range(32, 127))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_tiny_checkpoint(folder: Path, **expert_fields: object) -> Path:
    """Save a two-block HyperLLaVA and its processor."""
    processor = build_processor(build_tokenizer(), image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    tokenizer = processor.tokenizer
    config = HyperLlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        expert_input_dim=6,
        expert_hidden_dim=4,
        **expert_fields,
    )
    torch.manual_seed(0)
    model = HyperLlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "expert." in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
