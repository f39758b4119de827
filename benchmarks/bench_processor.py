"""Images a second of the processor beside LLaVA's own, with the same tokenizer and settings.

A call takes a batch of prompts with one picture each from PIL images to tensors. LLaVA's image
processor is transformers' own for LLaVA-1.5's rule on Pillow, which pads to a square as ours does.

    python benchmarks/bench_processor.py
"""

import functools
import statistics

import numpy as np
import transformers
from harness import describe_run, interleave, parse_options, report, summarize, write_rows
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from hyperllava_hf import HyperLlavaProcessor
from hyperllava_hf.processing.image_processing_hyperllava import HyperLlavaImageProcessor

EDGE, PATCH = 336, 14
# Of the pictures: a camera's small size.
WIDTH, HEIGHT = 640, 480
BATCHES = (1, 4, 8)


def build_tokenizer():
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<image>": 4}
    words |= {f"word{number}": number + 5 for number in range(100)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processors():
    """LLaVA's processor on Pillow, whatever this release calls it, and ours."""
    names = ("LlavaImageProcessorPil", "LlavaImageProcessor")
    name = next(name for name in names if hasattr(transformers, name))
    options = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    sizes = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}}
    theirs = getattr(transformers, name)(do_pad=True, **sizes)
    ours = HyperLlavaImageProcessor(size=EDGE, do_pad=True)
    return name, {
        "llava": LlavaProcessor(theirs, build_tokenizer(), **options),
        "hyperllava": HyperLlavaProcessor(ours, build_tokenizer(), **options),
    }


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=25)
    name, processors = build_processors()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    text = "<image> " + " ".join(f"word{number}" for number in range(63))
    rows = []
    for batch in BATCHES:
        inputs = {"text": [text] * batch, "images": [image] * batch}
        runs = {
            variant: functools.partial(processor, **inputs, return_tensors="pt")
            for variant, processor in processors.items()
        }
        seconds = interleave(runs, options.rounds, "cpu", clock=options.clock)
        for variant in runs:
            row = {
                "question": "processor",
                "variant": variant,
                "size": "cpu",
                "batch": str(batch),
                "baseline": name,
                **summarize(seconds, variant),
                "images_a_second": f"{batch / statistics.median(seconds[variant]):.1f}",
                "clock": options.clock,
                **describe_run("cpu"),
            }
            rows.append(row)
            report(row)
    write_rows("bench_processor", rows, options.output)


if __name__ == "__main__":
    main()
