"""Every layout that a conversion reads, written from the known LLaVA in its exact keys and files.

Independent of the code under test: keys are spelled here once more, after the published folders
(liuhaotian/llava-v1.5-7b, llava-hf/llava-1.5-7b-hf, lmsys/vicuna-7b-v1.5,
openai/clip-vit-large-patch14-336) and the code that trains LLaVA.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conversion.tiny_llava import (
    IMAGE,
    PADDED_VOCABULARY,
    TEXT,
    VISION,
    VOCABULARY,
    as_hyperllava,
    draw_experts,
    draw_state,
    pad_vocabulary,
)
from tests.conversion.tokenizer_files import write_fast, write_json, write_sentencepiece
from tests.conversion.weight_files import save_tensors, save_weights

ORIGINAL_KEYS = (
    (r"model\.language_model\.(.+)", r"model.\1"),
    (r"model\.vision_tower\.(.+)", r"model.vision_tower.vision_tower.\1"),
    (r"model\.multi_modal_projector\.linear_1\.(.+)", r"model.mm_projector.0.\1"),
    (r"model\.multi_modal_projector\.linear_2\.(.+)", r"model.mm_projector.2.\1"),
    (r"lm_head\.weight", "lm_head.weight"),
)
FORK_KEYS = (
    (r"model\.multi_modal_projector\.(visual_expert\..+)", r"model.mm_projector.\1"),
    (r"model\.language_model\.(.+)", r"model.\1"),
)
LLAVA_HF_KEYS = {
    # As published, and as every line saves.
    "old": (
        (r"model\.language_model\.(.+)", r"language_model.model.\1"),
        (r"lm_head\.weight", "language_model.lm_head.weight"),
        (r"model\.(vision_tower|multi_modal_projector)\.(.+)", r"\1.\2"),
    ),
    # In the memory of transformers 4.52 to 4.57, and of 5.
    "current": ((r"(.+)", r"\1"),),
    "current-5": (
        (r"model\.vision_tower\.vision_model\.(.+)", r"model.vision_tower.\1"),
        (r"((?!model\.vision_tower\.).+)", r"\1"),
    ),
}
PIXELS = {
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 28},
}


@dataclass
class Source:
    """A source as it stands on the disk, and what has to become of it.

    expected: the base weights of the result, under our names, vocabulary padded.
    experts: trained experts that the source holds, under our names.
    image: id of <image> in the result.
    """

    path: Path
    layout: str
    expected: dict[str, torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, torch.Tensor] = field(default_factory=dict)
    image: int = IMAGE


def rename(state, table):
    """Rename by a table of patterns, of which exactly one matches each name."""
    renamed = {}
    for name, tensor in state.items():
        targets = [re.sub(f"{p}$", to, name) for p, to in table if re.fullmatch(p, name)]
        assert len(targets) == 1, (name, targets)
        renamed[targets[0]] = tensor
    return renamed


def pick(state, *parts):
    return {n: t for n, t in state.items() if any(part in n for part in parts)}


def without(state, *parts):
    return {n: t for n, t in state.items() if not any(part in n for part in parts)}


def original_config(tower, model_type="llava", dtype="float32", **fields):
    """config.json of llava-v1.5-7b, at the known LLaVA's sizes."""
    return {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "model_type": model_type,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": VOCABULARY,
        **TEXT,
        **fields,
    }


# What v1.6 (the Vicuna ones) has besides.
FIELDS_OF_16 = {
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
    "image_split_resolution": 224,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_vision_tower_lr": 2e-06,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "unfreeze_mm_vision_tower": True,
}


def write_generation_config(folder):
    fields = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0}
    write_json(folder / "generation_config.json", {**fields, "transformers_version": "4.31.0"})


def write_clip(folder, state, whole=False, kind="safetensors", dtype="float32"):
    """A vision tower as a CLIPVisionModel, or inside a whole CLIPModel as OpenAI published it."""
    folder.mkdir(parents=True)
    tensors = {
        name.removeprefix("model.vision_tower."): tensor
        for name, tensor in pick(state, "vision_tower").items()
    }
    positions = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
    tensors["vision_model.embeddings.position_ids"] = torch.arange(positions)[None]
    vision = {"model_type": "clip_vision_model", **VISION}
    config = {"architectures": ["CLIPVisionModel"], "torch_dtype": dtype, **vision}
    if whole:
        tensors["logit_scale"] = torch.tensor(4.6)
        tensors["visual_projection.weight"] = torch.randn(8, VISION["hidden_size"])
        tensors["text_projection.weight"] = torch.randn(8, 6)
        tensors["text_model.final_layer_norm.weight"] = torch.ones(6)
        text = {"model_type": "clip_text_model", "hidden_size": 6, "projection_dim": 8}
        config = {"architectures": ["CLIPModel"], "model_type": "clip", "torch_dtype": dtype}
        config |= {"projection_dim": 8, "vision_config": vision, "text_config": text}
    save_weights(folder, tensors, kind)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", PIXELS)
    return folder


def write_llama(folder, state, kind="safetensors", num_shards=2, tokenizer=write_sentencepiece):
    """A plain LLM as Vicuna is published."""
    folder.mkdir(parents=True)
    tensors = rename(without(state, "vision_tower", "multi_modal_projector"), ORIGINAL_KEYS)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "pad_token_id": 0}
    config |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, **TEXT}
    config |= {"torch_dtype": "float32", "vocab_size": len(state["lm_head.weight"])}
    write_json(folder / "config.json", config)
    write_generation_config(folder)
    save_weights(folder, tensors, kind, num_shards)
    tokenizer(folder)
    return folder


def write_original(
    folder,
    kind="bin",
    num_shards=2,
    model_type="llava",
    tower="outside",
    inv_freq=False,
    v16=False,
    state=None,
    tokenizer=write_sentencepiece,
    extra=None,
    dtype=torch.float32,
    **fields,
):
    """LLaVA's own folders. tower: "outside", "whole" (in a CLIPModel), "option" or "inside"."""
    state = {n: t.to(dtype) for n, t in (state or draw_state()).items()}
    clip = folder.with_name(folder.name + "-clip")
    # A tower inside was trained on: the one that mm_vision_tower names is another.
    clip_state = draw_state(seed=5) if tower == "inside" else state
    write_clip(clip, clip_state, whole=tower == "whole", kind=kind)
    folder.mkdir(parents=True)
    tensors = rename(state, ORIGINAL_KEYS)
    if tower != "inside":
        tensors = without(tensors, "vision_tower")
    elif kind == "bin":
        key = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
        tensors[key] = torch.arange(17)[None]
    if inv_freq:
        frequencies = 10000 ** (-torch.arange(0, 6, 2) / 6)
        for number in range(TEXT["num_hidden_layers"]):
            tensors[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    if v16:
        tensors["model.image_newline"] = torch.randn(TEXT["hidden_size"]).to(dtype)
        fields = {**FIELDS_OF_16, **fields}
    tensors |= extra or {}
    save_weights(folder, tensors, kind, num_shards)
    named = "openai/clip-vit-large-patch14-336" if tower == "option" else clip
    dtype_name = str(dtype).removeprefix("torch.")
    config = original_config(named, model_type, dtype_name, **fields)
    write_json(folder / "config.json", config)
    write_generation_config(folder)
    tokenizer(folder)
    options = {"vision_tower": str(clip)} if tower == "option" else {}
    return Source(folder, "llava", pad_vocabulary(state), options)


def draw_padded_state(seed=0):
    """llava-hf's new rows are drawn around the mean, so they are no mean."""
    return draw_state(seed, PADDED_VOCABULARY)


def write_llava_hf(folder, names="old", kind="safetensors", num_shards=2, state=None):
    """The folders of transformers' own LLaVA: config fields as published."""
    folder.mkdir(parents=True)
    state = state or draw_padded_state()
    save_weights(folder, rename(state, LLAVA_HF_KEYS[names]), kind, num_shards)
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    vision = {"model_type": "clip_vision_model", **VISION}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 16,
        "image_token_index": VOCABULARY,
        "model_type": "llava",
        "pad_token_id": VOCABULARY + 1,
        "projector_hidden_act": "gelu",
        "text_config": {**text, "vocab_size": len(state["lm_head.weight"]), **TEXT},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.42.0.dev0",
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {**PIXELS, "processor_class": "LlavaProcessor"})
    processor = {"image_token": "<image>", "patch_size": 7, "num_additional_image_tokens": 1}
    processor |= {"processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"}
    write_json(folder / "processor_config.json", processor)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": VOCABULARY + 1}
    write_json(folder / "generation_config.json", generation)
    write_fast(folder, with_image=True)
    return Source(folder, "llava-hf", state)


def write_projector(folder, where="top"):
    """Stage 1: where: "top", or "checkpoint" (a run's checkpoint-10 with its own copy)."""
    state = draw_state()
    clip = write_clip(folder.with_name(folder.name + "-clip"), state)
    llm = write_llama(folder.with_name(folder.name + "-llm"), state)
    place = folder if where == "top" else folder / "checkpoint-10"
    place.mkdir(parents=True)
    tensors = rename(pick(state, "multi_modal_projector"), ORIGINAL_KEYS)
    save_tensors(place / "mm_projector.bin", tensors)
    fields = {"tune_mm_mlp_adapter": True, "_name_or_path": "lmsys/vicuna-7b-v1.5"}
    write_json(place / "config.json", original_config(clip, "llava_llama", **fields))
    options = {"base_llm": str(llm)}
    return Source(place, "projector", pad_vocabulary(state), options)


def write_delta(folder):
    """target - base: more rows than the base has, and a projector that is no difference."""
    base = draw_state()
    target = draw_state(seed=3, vocab_size=VOCABULARY + 1)
    llm = write_llama(folder.with_name(folder.name + "-llm"), base)
    clip = write_clip(folder.with_name(folder.name + "-clip"), base)
    folder.mkdir(parents=True)
    delta, expected = dict(target), dict(target)
    for name, tensor in pick(target, "language_model", "lm_head").items():
        rows = len(base[name])
        delta[name] = tensor.clone()
        delta[name][:rows] -= base[name]
        # What is added back differs from the target by a rounding.
        expected[name] = delta[name].clone()
        expected[name][:rows] += base[name]
    expected |= pick(base, "vision_tower")
    tensors = without(rename(delta, ORIGINAL_KEYS), "vision_tower")
    save_weights(folder, tensors, "bin", 2)
    fields = {"vocab_size": VOCABULARY + 1, "mm_use_im_patch_token": True}
    write_json(folder / "config.json", original_config(clip, **fields))
    write_generation_config(folder)
    write_sentencepiece(folder, added=("<im_patch>",))
    options = {"base_llm": str(llm), "layout": "delta"}
    return Source(folder, "delta", pad_vocabulary(expected), options, image=IMAGE + 1)


def write_own(folder, dtype=torch.float32, **fields):
    """A HyperLLaVA folder as save_pretrained writes it, experts trained."""
    from transformers import PreTrainedTokenizerFast

    from hyperllava_hf.processing import build_processor
    from tests.conversion.tokenizer_files import SPECIALS, build_fast_tokenizer

    state, experts = draw_padded_state(), draw_experts(**fields)
    state, experts = ({n: t.to(dtype) for n, t in part.items()} for part in (state, experts))
    model = as_hyperllava(state, experts, **fields).to(dtype)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_fast_tokenizer(), **SPECIALS)
    build_processor(tokenizer, image_size=28, patch_size=7).save_pretrained(folder)
    return Source(folder, "hyperllava", state, experts=experts)
