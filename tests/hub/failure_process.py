"""Run in a fresh process: load repositories or run commands, one after another, whatever fails.

Argument: a JSON list of steps. Each has "load" (a repository) or "command" (words after
`hyperllava`), and may have "token", "file_limit" (bytes that a file may hold, as on a full disk)
and "force" (download again). Prints a JSON list: {"weights"} or {"error", "message", "cause"} of
a load, [exit code, stdout, stderr] of a command. The first command imports the package.
"""

import json
import os
import resource
import sys

from pull_process import hash_weights


def load(step):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        step["load"], trust_remote_code=True, force_download=step.get("force", False)
    )
    return {"weights": hash_weights(model)}


def run(step):
    os.environ.pop("HF_TOKEN", None)
    if "token" in step:
        os.environ["HF_TOKEN"] = step["token"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (step.get("file_limit", -1), -1))
    if "command" in step:
        from command_process import run as run_command

        return run_command(step["command"])
    try:
        return load(step)
    except Exception as error:
        cause = str(error.__cause__ or "")
        return {"error": type(error).__name__, "message": str(error), "cause": cause}


if __name__ == "__main__":
    sys.modules.pop("hyperllava_hf", None)  # pull_process.py blocks it
    print(json.dumps([run(step) for step in json.loads(sys.argv[1])]))
