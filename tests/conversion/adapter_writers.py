"""LoRA folders as LLaVA's training leaves them, made with the real PEFT."""

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conversion.layout_writers import (
    ORIGINAL_KEYS,
    Source,
    original_config,
    pick,
    rename,
    without,
    write_clip,
    write_llama,
)
from tests.conversion.tiny_llava import TEXT, VOCABULARY, draw_state, pad_vocabulary
from tests.conversion.tokenizer_files import write_json

# What LLaVA's find_all_linear_names comes to.
ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "up_proj": 10},
    },
    "some-layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
}


def build_adapter(variant="plain", dtype=torch.float32, **fields):
    """A PEFT model around the known LLaVA's decoder; A and B drawn so that they matter.

    dtype: of the decoder; PEFT keeps the adapter's matrices in float32.
    """
    options = {"r": 5, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ALL_LINEAR}
    options |= {"bias": "none", "task_type": "CAUSAL_LM", **VARIANTS[variant], **fields}
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **TEXT))
    state = rename(without(draw_state(), "vision", "projector"), ORIGINAL_KEYS)
    llm.load_state_dict(state, strict=True)
    model = get_peft_model(llm.to(dtype), LoraConfig(**options))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.3 * parameter.shape[1] ** -0.5)
    return model.eval()


def write_lora(folder, variant="plain", kind="bin", non_lora=True, dtype=torch.float32, **fields):
    """adapter_model, adapter_config.json, non_lora_trainables.bin, config.json; no tokenizer."""
    state = {name: tensor.to(dtype) for name, tensor in draw_state().items()}
    llm = write_llama(folder.with_name(folder.name + "-llm"), state)
    clip = write_clip(folder.with_name(folder.name + "-clip"), state)
    folder.mkdir(parents=True)
    model = build_adapter(variant, dtype, **fields)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "adapter_model.safetensors").unlink()
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if kind == "bin":
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if non_lora:
        projector = rename(pick(state, "projector"), ORIGINAL_KEYS)
        prefixed = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
        torch.save(prefixed, folder / "non_lora_trainables.bin")
    write_json(folder / "config.json", original_config(clip, "llava_llama"))
    merged = model.merge_and_unload().state_dict()
    expected = dict(state)
    for name in without(state, "vision", "projector"):
        expected[name] = merged[name.replace("model.language_model.", "model.")].clone()
    return Source(folder, "lora", pad_vocabulary(expected), {"base_llm": str(llm)})
