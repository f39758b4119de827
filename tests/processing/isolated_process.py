"""Run in a fresh process without the package: load folders as remote code, use them, save them.

Arguments: a JSON file with a list of {"source", "target"}. Prints a JSON list of what was found.
The same functions give the expected values in the process of the test.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

TEXTS = ["A red 7.", "What\u00e9?\n\tthe  the", "</s>x <image> y", " ", "\u4e2d\U0001f600"]


def describe_processor(processor: Any) -> dict[str, Any]:
    """Everything that has to be the same on both transformers lines."""
    scene = np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3)
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": scene}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": "A red 7"},
        {"role": "user", "content": "Why\u00e9?"},
    ]
    options = {"tokenize": True, "return_dict": True, "padding": True, "return_tensors": "np"}
    batch = [conversation, conversation[2:]]
    found: dict[str, Any] = {}
    for name, extra in (("training", {"return_labels": True}), ("generation", {})):
        outputs = processor.apply_chat_template(
            batch, **options, **extra, add_generation_prompt=not extra
        )
        pixels = outputs.pop("pixel_values")
        found[name] = {key: value.tolist() for key, value in outputs.items()}
        found["pixels"] = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    tokenizer = processor.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    found["ids"] = ids
    found["texts"] = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    found["spelled"] = [tokenizer.decode(row) for row in ids]
    # 4.57 lists the unnamed ones here too, 5 does not; all_special_tokens has them on both.
    named = tokenizer.special_tokens_map.items()
    found["special"] = {k: str(v) for k, v in named if k != "additional_special_tokens"}
    found["all_special"] = sorted(map(str, tokenizer.all_special_tokens))
    found["tokenizer"] = [len(tokenizer), tokenizer.padding_side, tokenizer.model_max_length]
    found["template"] = processor.chat_template
    found["settings"] = processor.to_dict()
    found["names"] = processor.model_input_names
    return found


def main() -> None:
    """Load, describe and save each folder."""
    # Whatever this environment has installed, the folder has to do without it.
    sys.modules["hyperllava_hf"] = None  # type: ignore[assignment]
    from transformers import AutoImageProcessor, AutoProcessor

    found = []
    with open(sys.argv[1], encoding="utf-8") as stream:
        jobs = json.load(stream)
    for job in jobs:
        processor = AutoProcessor.from_pretrained(job["source"], trust_remote_code=True)
        images = AutoImageProcessor.from_pretrained(job["source"], trust_remote_code=True)
        assert images.to_dict() == processor.image_processor.to_dict()
        assert type(processor).__module__.startswith("transformers_modules.")
        processor.save_pretrained(job["target"])
        found.append(describe_processor(processor))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
