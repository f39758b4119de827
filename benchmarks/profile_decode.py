"""What a decoded token launches: the operations that would be kernels on a GPU, by variant.

Counted at 7B's 32 blocks and a small width, since the number depends on the code and on neither the
machine nor the sizes; views and allocations are left out. At batch 1 a GPU that runs eager code
waits for launches, not for numbers, so their ratio is about what it will show.

    python benchmarks/profile_decode.py
"""

import torch
from bench_decode import Conversation
from harness import describe_run, parse_options, report, write_rows
from side_by_side import build_inputs, build_models
from torch.utils._python_dispatch import TorchDispatchMode

SIZE = "narrow"


class LaunchCount(TorchDispatchMode):
    """Counts operations that compute."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run and count one operation."""
        name = str(function)
        self.count += not (function.is_view or "empty" in name or "_unsafe_view" in name)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def count_launches(name, model, inputs):
    conversation = Conversation(name, model, inputs, 4, False)
    conversation.step()
    with LaunchCount() as launches:
        conversation.step()
    return launches.count


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        models = build_models(SIZE, "cpu", dtype)
        inputs = build_inputs(models["token"], 1, 16)
        counts = {name: count_launches(name, model, inputs) for name, model in models.items()}
        for name, count in counts.items():
            row = {
                "question": "launches of a decoded token",
                "variant": name,
                "size": SIZE,
                "dtype": str(dtype).removeprefix("torch."),
                "launches": str(count),
                "ratio": f"{count / counts['llava']:.4f}",
                **describe_run("cpu"),
            }
            rows.append(row)
            report(row)
    write_rows("profile_decode", rows, options.output)


if __name__ == "__main__":
    main()
