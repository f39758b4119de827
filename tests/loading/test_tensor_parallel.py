"""tp_plan="auto" on two gloo processes equals one process; experts are replicated."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modeling.scope_modes import NEAR, marked
from tests.modeling.tiny_models import ROWS, TEXT, batch, logits, tiny_model

# Both sizes are divided between two processes.
TEXT_OF_TWO = {**TEXT, "intermediate_size": 24, "vocab_size": 72}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_two_processes_equal_one(tmp_path, scope):
    model = tiny_model(
        language_guidance_scope=scope, visual_expert="both", text_config=dict(TEXT_OF_TWO)
    )
    model.save_pretrained(tmp_path)
    inputs = batch(ROWS)
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    inputs |= marked(model, inputs["attention_mask"])
    torch.save((inputs, logits(model, **inputs), tokens), tmp_path / "expected.pt")
    source = Path(sys.modules["hyperllava_hf"].__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}"]
    command += [str(Path(__file__).with_name("tensor_parallel_job.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    difference, same_tokens, rows = done.stdout.strip().splitlines()[-1].split()
    assert float(difference) < NEAR
    assert same_tokens == "True"
    assert int(rows) == TEXT_OF_TWO["intermediate_size"] // 2
