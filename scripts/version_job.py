"""What scripts/test_versions.py runs under each release: load, generate and save; load the others'.

    python scripts/version_job.py write FOLDER
    python scripts/version_job.py read FOLDER package|remote

`write` loads the bundled checkpoint under both guidance scopes, answers and saves FOLDER/SCOPE with
what it computed; `read` loads such a folder, with this package or (remote) as code of the folder
alone, computes the same and prints one JSON object of what it found.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "src" / "hyperllava_hf" / "hyperllava-digits"
PICTURE = ROOT / "examples" / "scene-1.png"
QUESTION = "Describe the image."
SCOPES = ("token", "prompt")
PACKAGES = ("transformers", "torch", "tokenizers", "huggingface_hub")


def load(folder, **fields):
    """Load a folder through the auto classes; any weight missing from it stops the job."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **fields
    )
    found = [*info["missing_keys"], *info["unexpected_keys"]]
    if found:
        raise ValueError(f"{folder}: {len(found)} missing or unexpected keys, such as {found[0]}")
    return model.eval(), processor


def compute(model, processor):
    """Return the prompt's logits and the answer, by the processor's and the model's own calls."""
    import torch

    content = [{"type": "image", "path": str(PICTURE)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs["guidance_mask"] = inputs["attention_mask"]
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return logits[0, -1].tolist(), processor.decode(answer, skip_special_tokens=True).strip()


def write(folder):
    import hyperllava_hf  # noqa: F401

    for scope in SCOPES:
        model, processor = load(BUNDLED, language_guidance_scope=scope)
        logits, answer = compute(model, processor)
        target = folder / scope
        model.save_pretrained(target)
        processor.save_pretrained(target)
        (target / "computed.json").write_text(json.dumps({"logits": logits, "answer": answer}))


def read(folder, code):
    if code == "remote":
        # Whatever this environment has installed, the folder has to do without it.
        sys.modules["hyperllava_hf"] = None
    else:
        import hyperllava_hf  # noqa: F401
    differences, answers_equal = [], True
    for scope in SCOPES:
        expected = json.loads((folder / scope / "computed.json").read_text())
        model, processor = load(folder / scope)
        assert model.config.language_guidance_scope == scope
        logits, answer = compute(model, processor)
        differences += [abs(a - b) for a, b in zip(logits, expected["logits"], strict=True)]
        answers_equal &= answer == expected["answer"]
    print(json.dumps({"max_logit_difference": max(differences), "answers_equal": answers_equal}))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
        print(json.dumps({name: version(name) for name in PACKAGES}))
    else:
        read(Path(sys.argv[2]), sys.argv[3])
