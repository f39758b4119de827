"""Peak memory of a prefill, at 7B's shapes too, counted from shapes alone: no weights, no GPU.

torch's fake tensors run the models' own code and hold no numbers. Every storage that an operation
makes is added when it appears and taken off when Python lets go of it, in blocks of 512 bytes, as
torch's allocator for GPUs hands them out. What a library's kernel takes for itself while it runs is
not seen; both sides of the comparison lack it.

    python benchmarks/count_memory.py
"""

import os
import weakref
from unittest import mock

# Checks of the inputs' values, which fake tensors do not have.
os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"

import torch
from bench_memory import POINTS, build_row, talk
from harness import describe_run, parse_options, report, write_rows
from side_by_side import build_inputs, build_models
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
# 7B as it is shipped, and the size that `bench_memory.py` measures: the two must agree.
SIZES = (("7B", "bfloat16"), ("cpu", "float32"))


class AllocationCount(TorchDispatchMode):
    """Counts the bytes of storages that operations make.

    Args:
        known: Tensors that are there already, which are not counted.
    """

    def __init__(self, known):
        super().__init__()
        self.held = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run one operation, and count the storages that it made."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage):
        """Count a storage, once, until it is let go of."""
        if storage._cdata in self.seen:
            return
        num_bytes = -(-storage.nbytes() // BLOCK) * BLOCK
        self.seen.add(storage._cdata)
        self.held += num_bytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self.drop, storage._cdata, num_bytes)

    def drop(self, address, num_bytes):
        """Take a storage off."""
        self.seen.discard(address)
        self.held -= num_bytes


def count_peak(name, model, inputs):
    """Return the most bytes that a prefill holds at a time, above the model and its inputs."""
    known = [*model.parameters(), *model.buffers(), *inputs.values()]
    with AllocationCount(known) as count:
        kept = talk(name, model, inputs, False)
    del kept
    return count.peak


def count_size(size, dtype_name):
    """Count all variants and points of one size; return the rows."""
    dtype, rows = getattr(torch, dtype_name), []
    models = build_models(size, "cpu", dtype)
    for batch, num_text in POINTS:
        inputs = build_inputs(models["token"], batch, num_text)
        point = (size, dtype, batch, inputs["input_ids"].shape[1])
        peaks = {}
        for name, model in models.items():
            talk(name, model, inputs, False)  # what is set up once is not counted
            peaks[name] = count_peak(name, model, inputs)
            row = build_row("prefill, counted", name, models, peaks, *point)
            where = {**describe_run("cpu"), "device": "no device, shapes alone"}
            rows.append({**row, **where})
            report(rows[-1])
    return rows


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=1)
    # Nor can values be looked at to warn of them: as in a compiled graph.
    with FakeTensorMode(), mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        rows = [row for size, dtype in SIZES for row in count_size(size, dtype)]
    write_rows("bench_memory", rows, options.output)


if __name__ == "__main__":
    main()
