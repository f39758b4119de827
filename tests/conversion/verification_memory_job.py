"""Verify a model of large blocks in a process of its own and print the peak of its memory.

Usage: python -m tests.conversion.verification_memory_job FOLDER. Prints as JSON, in bytes: the peak
above that of an equal run on a tiny model, one block as stored, the whole model in float32.
"""

import json
import multiprocessing
import re
import sys
from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaConfig
from hyperllava_hf.conversion.source_parts import SourceParts
from hyperllava_hf.conversion.verification import verify
from tests.conversion.tiny_llava import EXPERTS, llava_fields

NUM_BLOCKS = 7


def write_model(folder, width, num_blocks):
    """One folder that serves as source and, under another configuration, as result."""
    fields = llava_fields()
    fields["text_config"].update(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=num_blocks
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(**fields))
    state = {}
    for name, parameter in model.named_parameters():
        values = torch.empty(parameter.shape, dtype=torch.float16)
        state[name] = values.fill_(1.0 if "norm" in name else 2**-7)
    model.half().save_pretrained(folder, state_dict=state, max_shard_size="200MB")
    result = folder.with_name(folder.name + "-result")
    result.mkdir()
    for path in folder.iterdir():
        if path.name != "config.json":
            (result / path.name).symlink_to(path)
    config = {**EXPERTS, "visual_expert": "none", "language_expert_layers": "none"}
    HyperLlavaConfig(**fields, **config).save_pretrained(result)
    block = sum(value.nbytes for name, value in state.items() if ".layers.1." in name)
    vision = sum(v.nbytes for n, v in state.items() if ".layers.1." in n and "vision" in n)
    total = sum(2 * value.nbytes for value in state.values())
    return fields, result, block - vision, total


def read_peak():
    """Bytes; ru_maxrss would start from the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    peaks = []
    for name, width, num_blocks in (("tiny", 24, 2), ("large", 1024, NUM_BLOCKS)):
        # Written in a process of its own: what making a model takes is not what checking it takes.
        fields, result, block, total = write_in_child(folder / name, width, num_blocks)
        paths = tuple(sorted((folder / name).glob("*.safetensors")))
        config = json.loads((folder / name / "config.json").read_text())
        parts = SourceParts("llava-hf", folder / name, paths, config)
        found = verify(parts, result, "hyperllava", fields, 331, mode="blocks", scratch=folder)
        assert found.passed, found.sentences
        peaks.append(read_peak())
    print(json.dumps({"peak": peaks[1] - peaks[0], "block": block, "model": total}))


def write_in_child(folder, width, num_blocks):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(write_model, (folder, width, num_blocks))


if __name__ == "__main__":
    main()
