"""What 8-bit and 4-bit weights cost in answers and save in memory, against 16 bits.

Answers and memory of the bundled checkpoint are measured here, on validation questions. Memory of
LLaVA-1.5's sizes is counted on the meta device: transformers swaps the layers that this package's
skip list leaves it, and the bytes of each kind of weight are added up.

    python benchmarks/bench_quantization.py
    python benchmarks/bench_quantization.py --num-questions 200
"""

import argparse
import csv
import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, BitsAndBytesConfig
from transformers.integrations import replace_with_bnb_linear
from weight_memory import SIZES, build_config

from hyperllava_hf import HyperLlavaForConditionalGeneration, four_bit_config
from hyperllava_hf.evaluation.digits import load_split_questions, measure_model
from hyperllava_hf.modeling.quantization_hyperllava import complete_quantization_config

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "quantization.csv"
CHECKPOINT = ROOT / "src" / "hyperllava_hf" / "hyperllava-digits"
GIB = 1024**3

# Setting: keywords of `from_pretrained`.
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "8-bit, rest bfloat16": {
        "dtype": torch.bfloat16,
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    },
    "4-bit four_bit_config()": {"quantization_config": four_bit_config()},
}
# Bytes of a quantised weight: its code, and the fp32 scale of each row (8-bit), or the 8-bit scale
# of each 64 with the fp32 scale of each 256 of those (4-bit NF4, double quantisation).
BITS_8 = "8-bit, rest bfloat16"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def count_bytes(size: str, setting: str) -> int:
    """Count the bytes of a model's weights under a setting, without allocating them."""
    with torch.device("meta"):
        model = HyperLlavaForConditionalGeneration(build_config(size))
    options = SETTINGS[setting]
    unquantized_bytes = torch.empty(0, dtype=options.get("dtype", torch.bfloat16)).element_size()
    quantized: dict[int, float] = {}
    if "quantization_config" in options:
        config = complete_quantization_config(options["quantization_config"])
        replace_with_bnb_linear(
            model, modules_to_not_convert=config.llm_int8_skip_modules, quantization_config=config
        )
        for module in model.modules():
            if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
                height, width = module.out_features, module.in_features
                weights = height * width
                is_8_bit = setting == BITS_8
                quantized[id(module.weight)] = (
                    weights + 4 * height if is_8_bit else weights * NF4_BYTES
                )
    return round(
        sum(
            quantized.get(id(parameter), parameter.numel() * unquantized_bytes)
            for parameter in model.parameters()
        )
    )


def measure_answers(setting: str, num_questions: int) -> dict[str, Any]:
    """Measure the bundled checkpoint's memory and validation accuracy under a setting."""
    model = HyperLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, **SETTINGS[setting])
    memory = model.get_memory_footprint()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    questions = load_split_questions("validation", num_questions)
    summary = measure_model(model.eval(), processor, questions, with_baselines=False)["accuracy"]
    accuracy = {
        f"accuracy_{family}": f"{100 * found['accuracy']:.1f}" for family, found in summary.items()
    }
    return {"gib": f"{memory / GIB:.4f}", "memory_is": "measured", **accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-questions", type=int, default=100, help="a family")
    options = parser.parse_args()
    common = {
        "command": f"python benchmarks/bench_quantization.py --num-questions "
        f"{options.num_questions}",
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True, cwd=ROOT
        ).strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"cpu {platform.machine()}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"bitsandbytes {importlib.metadata.version('bitsandbytes')}",
    }
    rows = []
    for setting in SETTINGS:
        found = measure_answers(setting, options.num_questions)
        rows.append(
            {
                "model": "hyperllava-digits",
                "setting": setting,
                **found,
                "questions_a_family": options.num_questions,
                **common,
            }
        )
        print(rows[-1], flush=True)
    for size in SIZES:
        for setting in SETTINGS:
            gib = f"{count_bytes(size, setting) / GIB:.2f}"
            rows.append(
                {"model": size, "setting": setting, "gib": gib, "memory_is": "counted", **common}
            )
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
