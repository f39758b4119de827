"""Run in a fresh process: load folders through every auto class, use, save and load them again.

Arguments: a JSON file {"sources": [...], "target": folder, "hide": bool, "trust": bool or null,
"before": code to run first}. Prints a JSON object of what was found. Imports nothing of the tests.
"""

import json
import sys

import numpy as np

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoModelForMultimodalLM",
)


def read_logits(model, inputs):
    import torch

    with torch.no_grad():
        outputs = model.eval()(**inputs)
    return outputs.logits if hasattr(outputs, "logits") else None


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        job = json.load(stream)
    if job["hide"]:
        # Whatever this environment has installed, the folder has to do without it.
        sys.modules["hyperllava_hf"] = None
    exec(job["before"])

    import torch
    import transformers

    trust = {} if job["trust"] is None else {"trust_remote_code": job["trust"]}
    with np.load(job["inputs"]) as file:
        inputs = {name: torch.from_numpy(file[name]) for name in file.files if name != "expected"}
        expected = torch.from_numpy(file["expected"])
    found = {"classes": {}, "errors": {}, "modules": {}}
    sources = list(job["sources"])
    for source in sources:  # grows by the folder that is saved on the way
        config = transformers.AutoConfig.from_pretrained(source, **trust)
        found["modules"][f"{source} config"] = type(config).__module__
        for name in AUTO_CLASSES:
            auto_class = getattr(transformers, name, None)
            if auto_class is None:
                continue
            model, info = auto_class.from_pretrained(source, output_loading_info=True, **trust)
            found["classes"][f"{source} {name}"] = type(model).__name__
            found["modules"][f"{source} {name}"] = type(model).__module__
            assert not info["missing_keys"], info["missing_keys"]
            logits = read_logits(model, inputs)
            if logits is not None:
                found["errors"][f"{source} {name}"] = (logits - expected).abs().max().item()
                ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
                assert ids.shape[1] <= inputs["input_ids"].shape[1] + 3
        if source == job["sources"][0] and job["target"]:
            model.save_pretrained(job["target"])
            sources.append(job["target"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
