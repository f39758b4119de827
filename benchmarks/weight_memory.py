"""How much memory the weights take, by model size and precision, counted from the shapes.

Nothing is allocated: the models are built on the meta device at LLaVA-1.5's published sizes with
the default experts, and their parameters are counted.

    python benchmarks/weight_memory.py
"""

import csv
from pathlib import Path

import torch

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.modeling.checkpoint_hyperllava import is_expert_key

RESULTS = Path(__file__).parent / "results" / "weight_memory.csv"
COMMAND = "python benchmarks/weight_memory.py"
GIB = 1024**3

# LLaVA-1.5: decoder width, MLP width, blocks, heads.
SIZES = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40)}
# Bytes a parameter: of the decoder's linear layers, and of everything else. NF4 is half a byte and
# one fp32 scale a block of 64; the tower, the projector, the experts and the head stay in bf16.
PRECISIONS = {"fp32": (4, 4), "bf16": (2, 2), "4-bit (NF4)": (0.5 + 4 / 64, 2)}


def build_config(size: str) -> HyperLlavaConfig:
    width, inner, blocks, heads = SIZES[size]
    text_config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    }
    return HyperLlavaConfig(text_config=text_config)


def count_parameters(config: HyperLlavaConfig) -> dict[str, int]:
    """Count parameters: the decoder's linear layers, other base weights, experts."""
    with torch.device("meta"):
        model = HyperLlavaForConditionalGeneration(config)
    counts = {"linear": 0, "other": 0, "experts": 0}
    for name, parameter in model.named_parameters():
        if is_expert_key(name):
            counts["experts"] += parameter.numel()
        elif ".language_model.layers." in name and name.endswith("_proj.weight"):
            counts["linear"] += parameter.numel()
        else:
            counts["other"] += parameter.numel()
    return counts


def main() -> None:
    rows = []
    for size in SIZES:
        config = build_config(size)
        counts = count_parameters(config)
        total = sum(counts.values())
        # Scope "prompt" keeps K, 3 r D numbers, of each expert block for each sample.
        blocks, width = len(config.language_expert_blocks), config.text_config.hidden_size
        kept = 3 * config.expert_hidden_dim * width * blocks
        for precision, (linear, other) in PRECISIONS.items():
            base = counts["linear"] * linear + counts["other"] * other
            rows.append(
                {
                    "model": size,
                    "precision": precision,
                    "parameters_millions": f"{total / 1e6:.1f}",
                    "expert_parameters_millions": f"{counts['experts'] / 1e6:.1f}",
                    "expert_percent": f"{100 * counts['experts'] / total:.2f}",
                    "base_gib": f"{base / GIB:.2f}",
                    "experts_gib": f"{counts['experts'] * other / GIB:.3f}",
                    "prompt_scope_mib_a_sample": f"{kept * other / 1024**2:.1f}",
                    "command": COMMAND,
                }
            )
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
