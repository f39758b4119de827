"""Peak memory of a conversion: twice the largest tensor and a constant, whatever the model's size.

The model is several hundred megabytes of medium tensors, far above the bound: a conversion that
held the checkpoint, or a shard of it, would not pass.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.command_line import run_child, spell
from tests.conversion.layout_writers import original_config, write_clip
from tests.conversion.tiny_llava import VISION, VOCABULARY, draw_state
from tests.conversion.tokenizer_files import write_json, write_sentencepiece
from tests.conversion.weight_files import save_weights

WIDTH, INNER, BLOCKS = 1024, 2816, 22
MEGABYTE = 2**20
ALLOWANCE = 256 * MEGABYTE
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}


def name_decoder():
    """Shape of each of the decoder's tensors by its original name."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    for number in range(BLOCKS):
        block = f"model.layers.{number}."
        for name in ("q", "k", "v", "o"):
            shapes[f"{block}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        for name in ("gate", "up"):
            shapes[f"{block}mlp.{name}_proj.weight"] = (INNER, WIDTH)
        shapes[f"{block}mlp.down_proj.weight"] = (WIDTH, INNER)
        for name in ("input", "post_attention"):
            shapes[f"{block}{name}_layernorm.weight"] = (WIDTH,)
    return shapes


PROJECTOR = {
    "model.mm_projector.0.weight": (WIDTH, VISION["hidden_size"]),
    "model.mm_projector.0.bias": (WIDTH,),
    "model.mm_projector.2.weight": (WIDTH, WIDTH),
    "model.mm_projector.2.bias": (WIDTH,),
}


def fill(shapes):
    return {name: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}


def write_source(folder, kind):
    """An original LLaVA of half a gigabyte, tower outside; its largest tensor in bytes."""
    write_clip(folder.with_name("clip"), draw_state(), dtype="float16")
    folder.mkdir()
    tensors = fill(name_decoder() | PROJECTOR)
    save_weights(folder, tensors, kind)
    config = original_config(folder.with_name("clip"), dtype="float16", **SIZES)
    write_json(folder / "config.json", config)
    write_sentencepiece(folder)
    return tensors


def write_adapter(folder):
    """A LoRA of every linear layer of that model; the model without its projector is the base."""
    tensors = write_source(folder.with_name("llm"), "safetensors")
    for name in PROJECTOR:
        del tensors[name]
    base = folder.with_name("llm")
    (base / "model.safetensors").unlink()
    save_weights(base, tensors, "safetensors")
    config = json.loads((base / "config.json").read_text())
    folder.mkdir()
    write_json(folder / "config.json", config)
    plain = {name: value for name, value in config.items() if not name.startswith(("mm_", "tune"))}
    write_json(base / "config.json", {**plain, "model_type": "llama"})
    adapter = {}
    for name, tensor in tensors.items():
        if "_proj.weight" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            adapter[f"{stem}.lora_A.weight"] = torch.full((8, tensor.shape[1]), 0.01)
            adapter[f"{stem}.lora_B.weight"] = torch.full((tensor.shape[0], 8), 0.01)
    save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": modules}
    write_json(folder / "adapter_config.json", {**fields, "bias": "none", "task_type": "CAUSAL_LM"})
    projector = {f"base_model.model.{name}": tensor for name, tensor in fill(PROJECTOR).items()}
    torch.save(projector, folder / "non_lora_trainables.bin")
    return tensors


@pytest.mark.parametrize("kind", ["safetensors", "bin", "lora"])
def test_peak_memory_is_bounded_by_the_largest_tensor(kind, tmp_path, streams):
    options = {"verify": False}
    if kind == "lora":
        tensors = write_adapter(tmp_path / "source")
        options["base_llm"] = tmp_path / "llm"
    else:
        tensors = write_source(tmp_path / "source", kind)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    del tensors
    bound = 2 * max(sizes) + ALLOWANCE
    assert sum(sizes) > 1.5 * bound
    words = spell(tmp_path / "source", tmp_path / "result", **options)
    code, _, err = run_child("measure", streams, *words)
    assert code == 0, err
    before, after = json.loads(err.splitlines()[-1])
    assert after - before <= bound, f"{(after - before) / MEGABYTE:.0f} MB"
