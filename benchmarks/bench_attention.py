"""Attention implementations: which kernels really run, whether answers agree, and how fast.

Each implementation is asked for through transformers (`set_attn_implementation`), on both scopes,
over a padded batch. What ran is read off the profiler, so that an implementation that silently
falls back to another one shows. One that cannot run here gets a row with the error's first words.

    python benchmarks/bench_attention.py
    python benchmarks/bench_attention.py --device cuda
"""

import re

import torch
from harness import describe_run, interleave, parse_options, report, summarize, write_rows
from side_by_side import BASELINE, SCOPES, build_inputs, build_models, mark_prompt, no_grad
from torch.profiler import ProfilerActivity, profile

REFERENCE = "eager"
IMPLEMENTATIONS = (
    REFERENCE,
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
)
# Names of attention kernels, of FlashAttention's and cuDNN's own, and of torch's operators.
KERNELS = re.compile(r"flash|fmha|efficient_attention|scaled_dot_product|flex_attention|cudnn_sdp")
BATCH, NUM_TEXT, NUM_PAD, NEW_TOKENS = 2, 64, 5, 16
ERROR_WORDS = 160


def pad_first_row(inputs):
    """Pad the first row on the left: kernels that ignore a mask are found out."""
    inputs = {name: tensor.clone() for name, tensor in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        inputs[name][0] = inputs[name][0].roll(NUM_PAD)
        inputs[name][0, :NUM_PAD] = 0
    return inputs


def find_kernels(run, device):
    """Return the names of the attention kernels and operators that a call runs."""
    activities = [ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        run()
    names = {re.sub(r"[<(].*", "", event.key) for event in record.key_averages()}
    return sorted(name for name in names if KERNELS.search(name))


def compare_answers(model, call, expected, implementation):
    """Return the share of greedy tokens that are the reference's, or what stopped `generate`."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    try:
        tokens = model.generate(**call, **options)[:, call["input_ids"].shape[1] :]
    except RuntimeError as error:  # torch's compilers raise its kinds
        if implementation == REFERENCE:
            raise
        return type(error).__name__
    expected.setdefault("tokens", tokens)
    return f"{(tokens == expected['tokens']).float().mean().item():.4f}"


def measure_implementation(implementation, model, call, expected, device):
    """Measure one implementation; `expected` is filled by the reference, which comes first."""
    prefill = no_grad(lambda: model(**call, logits_to_keep=1).logits.float())
    logits = prefill()
    difference = (logits - expected.setdefault("logits", logits)).abs().max()
    return {
        "kernels": " ".join(find_kernels(prefill, device)) or "none",
        "logit_difference": f"{(difference / expected['logits'].abs().max()).item():.2e}",
        "equal_tokens": compare_answers(model, call, expected, implementation),
    }


def measure_scope(name, model, inputs, options):
    """Measure all implementations of one model; return a row for each."""
    rows, expected = {}, {}
    call = {**inputs, **mark_prompt(name, inputs)}

    def run(implementation):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            return model(**call, logits_to_keep=1)

    for implementation in IMPLEMENTATIONS:
        try:
            model.set_attn_implementation(implementation)
            cells = measure_implementation(implementation, model, call, expected, options.device)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            if implementation == REFERENCE:
                raise
            words = " ".join(str(error).split())[:ERROR_WORDS]
            rows[implementation] = {"status": f"{type(error).__name__}: {words}"}
        else:
            rows[implementation] = {"status": "runs", **cells}
    runs = {
        BASELINE if implementation == REFERENCE else implementation: (
            lambda implementation=implementation: run(implementation)
        )
        for implementation, row in rows.items()
        if row["status"] == "runs"
    }
    seconds = interleave(runs, options.rounds, options.device, warmup=2, clock=options.clock)
    for timed in runs:
        rows[REFERENCE if timed == BASELINE else timed] |= summarize(seconds, timed)
    return rows


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=9)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    models = build_models(options.size, options.device, dtype, REFERENCE)
    inputs = pad_first_row(build_inputs(models["token"], BATCH, NUM_TEXT))
    columns = ("status", "kernels", "logit_difference", "equal_tokens")
    rows = []
    for name in (BASELINE, *SCOPES):
        for implementation, found in measure_scope(name, models[name], inputs, options).items():
            row = {
                "question": "attention",
                "variant": name,
                "size": options.size,
                "attention": implementation,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": str(BATCH),
                "positions": str(inputs["input_ids"].shape[1]),
                **{column: found.get(column, "") for column in columns},
                **{
                    f"{kind}_{part}": found.get(f"{kind}_{part}", "")
                    for kind in ("ms", "ratio")
                    for part in ("median", "p20", "p80")
                },
                "rounds": found.get("rounds", ""),
                "clock": options.clock,
                **describe_run(options.device),
            }
            rows.append(row)
            report(row)
    write_rows("bench_attention", rows, options.output)


if __name__ == "__main__":
    main()
