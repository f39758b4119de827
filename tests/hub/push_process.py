"""Run in a fresh process without the package: load a folder's own code, and push its parts.

Argument: a JSON object {"folder", "pushes": [[part, repository], ...]} where part is "model" or
"processor". Each is loaded with trust_remote_code and pushed with transformers' own push_to_hub.
"""

import json
import sys

sys.modules["hyperllava_hf"] = None  # type: ignore[assignment]


def main():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    job = json.loads(sys.argv[1])
    parts = {
        "model": AutoModelForImageTextToText.from_pretrained(job["folder"], trust_remote_code=True),
        "processor": AutoProcessor.from_pretrained(job["folder"], trust_remote_code=True),
    }
    for name, repository in job["pushes"]:
        parts[name].push_to_hub(repository)
    print(json.dumps(type(parts["model"]).__module__))


if __name__ == "__main__":
    main()
