"""Run in a fresh process without the package: load repositories by id and say what came.

Argument: a JSON list of {"repo", "revision", "classes"} . Prints one JSON object a job: the class,
the weights' hash, the answer's ids and where the code came from; or the error.
"""

import hashlib
import json
import re
import sys

# Whatever this environment has installed, the repository has to do without it.
sys.modules["hyperllava_hf"] = None  # type: ignore[assignment]


def hash_weights(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load(job):
    import torch
    import transformers
    from PIL import Image

    source = {"revision": job.get("revision") or "main", "trust_remote_code": True}
    found = {"classes": {}}
    processor = transformers.AutoProcessor.from_pretrained(job["repo"], **source)
    found["processor"] = f"{type(processor).__module__} {type(processor).__name__}"
    inputs = processor(
        text="<image>Hi", images=Image.new("RGB", (20, 30), (200, 30, 30)), return_tensors="pt"
    )
    for name in job["classes"]:
        auto_class = getattr(transformers, name, None)
        if auto_class is None:
            continue
        loaded = auto_class.from_pretrained(job["repo"], **source)
        found["classes"][name] = type(loaded).__name__
        if hasattr(loaded, "generate") and "weights" not in found:
            found["weights"] = hash_weights(loaded)
            with torch.no_grad():
                ids = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
            found["ids"] = ids.tolist()
            found["module"] = type(loaded).__module__
            found["commit"] = re.findall("[0-9a-f]{40}", found["module"])[0]
    return found


def main():
    found = []
    for job in json.loads(sys.argv[1]):
        try:
            found.append(load(job))
        except Exception as error:
            if not job.get("fails"):
                raise
            entry = {"error": type(error).__name__, "message": str(error)}
            found.append({**entry, "is_os_error": isinstance(error, OSError)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
