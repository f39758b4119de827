"""DeepSpeed folders as transformers' Trainer leaves them, made by DeepSpeed on two ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conversion.layout_writers import (
    ORIGINAL_KEYS,
    Source,
    original_config,
    rename,
    write_clip,
)
from tests.conversion.tiny_llava import draw_state, pad_vocabulary
from tests.conversion.tokenizer_files import write_json, write_sentencepiece
from tests.conversion.weight_files import save_tensors

JOB = Path(__file__).with_name("zero_job.py")


def run_ranks(folder):
    """Write folder/zero-2 and folder/zero-3 of the known LLaVA, tower inside. Takes seconds."""
    state = folder / "state.safetensors"
    save_tensors(state, rename(draw_state(), ORIGINAL_KEYS))
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    processes = []
    try:
        for rank in ("0", "1"):
            with (folder / f"rank-{rank}.log").open("wb") as log:
                command = [sys.executable, JOB, state, folder, rank, folder / "rendezvous"]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"rank-{rank}.log").read_text(errors="replace") for rank in (0, 1)]
    assert codes == [0, 0], "\n".join(logs)


def write_zero(folder, ranks_folder, stage):
    """A Trainer's checkpoint-N: DeepSpeed's files beside configuration and tokenizer."""
    shutil.copytree(ranks_folder / f"zero-{stage}", folder)
    state = draw_state()
    # The tower inside is the trained one: another stands where mm_vision_tower points.
    clip = write_clip(folder.with_name(folder.name + "-clip"), draw_state(seed=5))
    write_json(folder / "config.json", original_config(clip, "llava_llama"))
    write_sentencepiece(folder)
    return Source(folder, "zero", pad_vocabulary(state))
