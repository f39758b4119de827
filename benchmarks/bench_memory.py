"""Peak memory beside LLaVA's: of a prefill, and of a decoded token over a filled cache.

Counted, not timed: on a GPU by its allocator, on a CPU from the profiler's record of every
allocation and release, so a busy machine gives the same numbers. A model's peak is its own weights
and the most that one call had allocated at a time, what it left behind included.

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --device cuda
"""

import functools

import torch
from bench_decode import Conversation
from harness import describe_run, parse_options, report, write_rows
from side_by_side import build_inputs, build_models
from torch.profiler import ProfilerActivity, profile

POINTS = [(1, 64), (4, 64), (8, 64), (1, 512)]
MIB = 2**20


def measure_cpu_peak(run):
    """Return the most bytes that a call had allocated at a time, above its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    events = record.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak


def measure_peak(run, device):
    """Return the most bytes that a call had allocated at a time, above its start."""
    if not device.startswith("cuda"):
        # The profiler now and then loses the beginning of a record, and the peak with it.
        seen = set()
        while (peak := measure_cpu_peak(run)) not in seen:
            seen.add(peak)
        return peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def count_bytes(model):
    """Count the bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def bound_experts(config, name, batch, positions, item_size):
    """Return the bytes beyond the experts' parameters that the goal allows a variant.

    Scope "prompt": 1.2 times the generated weights. Scope "token": one block's intermediate,
    (M + 1) 3R numbers a position.
    """
    if name == "llava":
        return 0
    rank, width = config.expert_hidden_dim, config.text_config.hidden_size
    if name == "prompt":
        blocks = len(config.language_expert_blocks)
        return 1.2 * batch * blocks * 3 * rank * width * item_size
    return batch * positions * (config.expert_input_dim + 1) * 3 * rank * item_size


def build_row(question, name, models, peaks, size, dtype, batch, positions):
    """Build the row of a variant: its peak, how far it lies above LLaVA's, and its goal.

    Args:
        question: What was measured.
        name: The variant.
        models: Models by variant.
        peaks: Peaks of the call in bytes, by variant; the baseline's among them.
        size: Of the models.
        dtype: Of all weights.
        batch: Rows.
        positions: Positions a row.

    Returns:
        The cells; what says where and when it was measured is added by the caller.
    """
    weights, base = count_bytes(models[name]), count_bytes(models["llava"])
    above = weights - base + peaks[name] - peaks["llava"]
    allowed = bound_experts(models[name].config, name, batch, positions, dtype.itemsize)
    return {
        "question": question,
        "variant": name,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": str(batch),
        "positions": str(positions),
        "weights_mib": f"{weights / MIB:.2f}",
        "call_peak_mib": f"{peaks[name] / MIB:.2f}",
        "above_llava_mib": f"{above / MIB:.2f}",
        "goal_mib": f"{(weights - base + allowed) / MIB:.2f}",
    }


@torch.no_grad()
def talk(name, model, inputs, decodes):
    """Read a prompt, and decode one token of an answer."""
    conversation = Conversation(name, model, inputs, 2, False)
    if decodes:
        conversation.step()
    return conversation


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=1, dtype="")
    is_gpu = options.device.startswith("cuda")
    dtype = getattr(torch, options.dtype or ("bfloat16" if is_gpu else "float32"))
    models = build_models(options.size, options.device, dtype)
    rows = []
    for batch, num_text in POINTS:
        inputs = build_inputs(models["token"], batch, num_text)
        positions = inputs["input_ids"].shape[1]
        peaks = {"prefill": {}, "token": {}}
        for name, model in models.items():
            for question, found in peaks.items():
                run = functools.partial(talk, name, model, inputs, question == "token")
                run()  # what is set up once is not counted
                found[name] = measure_peak(run, options.device)
                point = (options.size, dtype, batch, positions)
                row = build_row(question, name, models, found, *point)
                rows.append({**row, **describe_run(options.device)})
                report(rows[-1])
        write_rows("bench_memory", rows, options.output)


if __name__ == "__main__":
    main()
