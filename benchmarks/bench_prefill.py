"""Prefill latency and time to first token beside LLaVA's.

Prefill is one forward over the prompt that fills a cache and scores its last position; time to
first token is `generate(max_new_tokens=1)`, from the tensors on the device.

    python benchmarks/bench_prefill.py
    python benchmarks/bench_prefill.py --device cuda
"""

import itertools

import torch
from harness import describe_run, interleave, parse_options, report, summarize, write_rows
from side_by_side import (
    build_inputs,
    build_models,
    compute_goal,
    compute_share,
    mark_prompt,
    no_grad,
)
from transformers import DynamicCache

# Question, attention, compiled, batch, text tokens. A CPU takes each axis from one point.
CPU_POINTS = [
    *(("prefill", "sdpa", False, batch, 64) for batch in (1, 4, 8)),
    ("prefill", "sdpa", False, 1, 512),
    ("prefill", "eager", False, 1, 64),
    ("first token", "sdpa", False, 1, 64),
]
GPU_POINTS = [
    (question, attention, is_compiled, batch, num_text)
    for (attention, is_compiled), question, batch, num_text in itertools.product(
        (("sdpa", False), ("eager", False), ("sdpa", True)),
        ("prefill", "first token"),
        (1, 4, 8),
        (64, 512),
    )
    if not (is_compiled and question == "first token")
]
GOALS = {"cpu": 1.03, "7B": 1.02, "tiny": 1.03}


def build_run(question, name, model, call, inputs):
    marked = {**inputs, **mark_prompt(name, inputs)}
    if question == "first token":
        options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
        return lambda: model.generate(**marked, **options)
    return no_grad(
        lambda: call(
            **marked,
            use_cache=True,
            past_key_values=DynamicCache(config=model.config.get_text_config()),
            logits_to_keep=1,
        )
    )


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=0, points="")
    is_gpu = options.device.startswith("cuda")
    dtype = torch.bfloat16 if is_gpu else torch.float32
    models, built = {}, None
    rows = []
    for point in GPU_POINTS if is_gpu else CPU_POINTS:
        question, attention, is_compiled, batch, num_text = point
        if options.points and options.points not in f"{question} {attention} {batch} {num_text}":
            continue
        if built != attention:
            models, built = None, attention
            models = build_models(options.size, options.device, dtype, attention)
        inputs = build_inputs(models["token"], batch, num_text)
        num_prompt = inputs["input_ids"].shape[1]
        torch.compiler.reset()
        runs = {}
        for name, model in models.items():
            call = torch.compile(model, dynamic=False) if is_compiled else model
            runs[name] = build_run(question, name, model, call, inputs)
        # As many rounds as make a point about as long as the others.
        rounds = options.rounds or (60 if is_gpu else max(9, 3000 // (num_prompt * batch)))
        warmup = 3 if is_gpu else 1
        seconds = interleave(runs, rounds, options.device, warmup, options.clock)
        share = compute_share(models["token"].config, num_prompt)
        for name in models:
            goal = compute_goal(name, GOALS[options.size], share)
            row = {
                "question": question,
                "variant": name,
                "size": options.size,
                "attention": attention,
                "compiled": str(is_compiled),
                "dtype": str(dtype).removeprefix("torch."),
                "batch": str(batch),
                "positions": str(num_prompt),
                "text_tokens": str(num_text),
                **summarize(seconds, name),
                "goal": "" if name == "llava" else f"{goal:.4f}",
                "token_share": f"{share:.4f}",
                "clock": options.clock,
                **describe_run(options.device),
            }
            rows.append(row)
            report(row)
        write_rows("bench_prefill", rows, options.output)


if __name__ == "__main__":
    main()
