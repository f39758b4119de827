"""Decoding beside LLaVA's: one step at a time, each variant on a conversation of its own.

A step is one forward of one new token a row over a filled cache, with the choice of the next one;
tokens a second are rows divided by its seconds. The variants take turns at every step. `generate`
rows time whole calls. On a GPU the copy bandwidth is measured too, and each compiled step is
compared with the time in which the weights could be read.

    python benchmarks/bench_decode.py
    python benchmarks/bench_decode.py --device cuda
"""

import functools
import statistics

import torch
from harness import describe_run, interleave, measure, parse_options, report, summarize, write_rows
from side_by_side import (
    build_inputs,
    build_models,
    compute_goal,
    compute_share,
    mark_prompt,
    no_grad,
)
from transformers import DynamicCache, StaticCache

# How it runs, attention, batch, text tokens of the prompt.
CPU_POINTS = [
    *(("step", "sdpa", batch, 64) for batch in (1, 4, 8)),
    ("step", "sdpa", 1, 512),
    ("step", "eager", 1, 64),
    ("generate", "sdpa", 1, 64),
    ("compiled step", "sdpa", 1, 64),
    ("compiled step", "sdpa", 8, 64),
]
GPU_POINTS = [
    *(
        (way, "sdpa", batch, num_text)
        for way in ("step", "compiled step", "generate")
        for batch in (1, 4, 8)
        for num_text in (64, 512)
    ),
    *(("step", "eager", batch, 64) for batch in (1, 4, 8)),
]
NEW_TOKENS = 16


class Conversation:
    """A variant that has read its prompt and answers token by token.

    Args:
        name: Variant.
        model: Its model.
        inputs: The prompt.
        room: Tokens that will be decoded.
        is_compiled: Whether steps are compiled, over a static cache.
    """

    def __init__(self, name, model, inputs, room, is_compiled):
        self.rows, length = inputs["input_ids"].shape
        text = model.config.get_text_config()
        self.cache = (
            StaticCache(config=text, max_cache_len=length + room)
            if is_compiled
            else DynamicCache(config=text)
        )
        self.position = length
        device = inputs["input_ids"].device
        prompt = {**inputs, **mark_prompt(name, inputs)}
        positions = torch.arange(length, device=device)
        self.takes_place = is_compiled
        with torch.no_grad():
            logits = model(
                **prompt,
                past_key_values=self.cache,
                cache_position=positions,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self.next_ids = logits[:, -1:].argmax(-1)
        # Dynamic shapes off: one graph, as `generate` compiles a step over a static cache.
        options = {"mode": "reduce-overhead"} if device.type == "cuda" else {}
        self.call = torch.compile(model, dynamic=False, **options) if is_compiled else model
        self.positions = torch.full((1,), length, device=device)

    def step(self):
        """Decode one token a row."""
        # No mask: nothing is padded, and both kinds of cache then know what may be seen.
        logits = self.call(
            input_ids=self.next_ids,
            past_key_values=self.cache,
            cache_position=self.positions,
            position_ids=self.positions[None],
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.next_ids = logits[:, -1:].argmax(-1).clone()
        self.positions += 1


def measure_copy_bandwidth(device, num_bytes=2**30):
    """Return bytes a second that a copy moves, both directions counted."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [measure(lambda: target.copy_(source), device) for _ in range(20)]
    return 2 * num_bytes / statistics.median(seconds[5:])


def count_read_bytes(model):
    """Count the bytes of weights that one decoded token reads."""
    parts = [model.get_input_embeddings(), *_vision_parts(model)]
    unread = {id(p) for part in parts for p in part.parameters()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in unread)


def _vision_parts(model):
    return model.model.vision_tower, model.model.multi_modal_projector


def build_runs(way, models, inputs, rounds):
    if way == "generate":
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        return {
            name: functools.partial(
                model.generate, **inputs, **mark_prompt(name, inputs), **options
            )
            for name, model in models.items()
        }
    is_compiled = way == "compiled step"
    talks = {
        name: Conversation(name, model, inputs, rounds + 8, is_compiled)
        for name, model in models.items()
    }
    return {name: no_grad(talk.step) for name, talk in talks.items()}


def find_goal(options, way, name, batch, share):
    if options.size == "7B":
        prompt_goal = 1.10 if batch == 1 and way != "compiled step" else 1.03
    else:
        prompt_goal = 1.05
    return compute_goal(name, prompt_goal, share)


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=0, points="")
    is_gpu = options.device.startswith("cuda")
    dtype = torch.bfloat16 if is_gpu else torch.float32
    bandwidth = measure_copy_bandwidth(options.device, 2**30 if is_gpu else 2**28)
    models, built = {}, None
    rows = []
    for point in GPU_POINTS if is_gpu else CPU_POINTS:
        way, attention, batch, num_text = point
        if options.points and options.points not in f"{way} {attention} {batch} {num_text}":
            continue
        if built != attention:
            models, built = None, attention
            models = build_models(options.size, options.device, dtype, attention)
        inputs = build_inputs(models["token"], batch, num_text)
        torch.compiler.reset()
        rounds = options.rounds or {"generate": 10}.get(way, 150 if is_gpu else 90)
        runs = build_runs(way, models, inputs, rounds)
        seconds = interleave(runs, rounds, options.device, warmup=3, clock=options.clock)
        share = compute_share(models["token"].config, None)
        for name, model in models.items():
            tokens = batch * (NEW_TOKENS if way == "generate" else 1)
            median = statistics.median(seconds[name])
            limit = count_read_bytes(model) / bandwidth
            is_step = way != "generate"
            row = {
                "question": way,
                "variant": name,
                "size": options.size,
                "attention": attention,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": str(batch),
                "positions": str(inputs["input_ids"].shape[1]),
                **summarize(seconds, name),
                "tokens_a_second": f"{tokens / median:.2f}",
                "copy_gb_a_second": f"{bandwidth / 1e9:.1f}",
                "ratio_to_bytes_limit": f"{median / limit:.3f}" if is_step else "",
                "goal": ""
                if name == "llava"
                else f"{find_goal(options, way, name, batch, share):.4f}",
                "token_share": f"{share:.4f}",
                "clock": options.clock,
                **describe_run(options.device),
            }
            rows.append(row)
            report(row)
        write_rows("bench_decode", rows, options.output)


if __name__ == "__main__":
    main()
