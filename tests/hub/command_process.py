"""Run in a fresh process, with the package: several commands of `hyperllava`, one after another.

Argument: a JSON list of command lines. Prints a JSON list of [exit code, stdout, stderr].
"""

import contextlib
import io
import json
import sys

from hyperllava_hf.cli.app import main


def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))
