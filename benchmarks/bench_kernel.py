"""The fused kernels of the expert beside the eager code and beside torch.compile, on a GPU.

One expert of 7B's shape, added to its block's update. With weights of their own for each sample:
decoding (one position a row) and prefill lengths; forward, and forward with backward. By factors,
as scope "token" has them: decoding. Where the kernels win in every row of a GPU, its compute
capability belongs into `expert_impl.FASTER_ON`.

    python benchmarks/bench_kernel.py --device cuda
"""

import itertools
import sys

import torch
from harness import describe_run, interleave, parse_options, report, summarize, write_rows

from hyperllava_hf.kernels.fused_expert import apply_fused_expert
from hyperllava_hf.modeling.experts_hyperllava import apply_expert

WIDTH, RANK, CODE = 4096, 16, 64
BATCHES, LENGTHS = (1, 4, 8), (1, 640, 1088)
# Many calls a turn: one alone is shorter than the clock is fine.
CALLS = 20


def draw(question, batch, length, device):
    weights = [(batch, 2 * RANK, WIDTH), (batch, RANK, WIDTH)]
    if question == "factors":
        weights = [(batch, length, CODE), (CODE, 2 * RANK, WIDTH), (2 * RANK, WIDTH)]
        weights += [(CODE, RANK, WIDTH), (RANK, WIDTH)]
    positions = (batch, length, WIDTH)
    kind = {"device": device, "dtype": torch.bfloat16}
    return [
        torch.randn(shape, **kind) * shape[-1] ** -0.5 for shape in (positions, *weights, positions)
    ]


def build_run(function, tensors, trains):
    def run():
        for _ in range(CALLS):
            *weights, update = tensors
            if not trains:
                with torch.no_grad():
                    function(*weights, update=update)
                continue
            result = function(*weights, update=update)
            torch.autograd.grad(result, tensors, result)

    return run


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=30)
    if not options.device.startswith("cuda"):
        sys.exit("Found --device cpu, expected --device cuda: interpreted kernels time nothing.")
    rows = []
    points = list(itertools.product(("forward", "forward and backward"), BATCHES, LENGTHS))
    points += [("factors", batch, 1) for batch in BATCHES]
    for question, batch, length in points:
        trains = question == "forward and backward"
        tensors = draw(question, batch, length, options.device)
        for tensor in tensors:
            tensor.requires_grad_(trains)
        torch.compiler.reset()
        variants = {
            "llava": apply_expert,  # the baseline of this question
            "compiled": torch.compile(apply_expert, dynamic=False),
            "triton": apply_fused_expert,
        }
        runs = {name: build_run(function, tensors, trains) for name, function in variants.items()}
        seconds = interleave(runs, options.rounds, options.device, warmup=3)
        for name in variants:
            row = {
                "question": question,
                "variant": "eager" if name == "llava" else name,
                "size": "7B",
                "dtype": "bfloat16",
                "batch": str(batch),
                "positions": str(length),
                **summarize(seconds, name),
                "calls": str(CALLS),
                **describe_run(options.device),
            }
            rows.append(row)
            report(row)
        write_rows("bench_kernel", rows, options.output)


if __name__ == "__main__":
    main()
