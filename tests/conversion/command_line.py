"""`hyperllava convert` with the options of `convert`, in this process or in one of its own.

Processes of their own are forked from one that has the imports behind it, so that a dozen of them
take a second each instead of the start of a whole interpreter.
"""

import functools
import multiprocessing
import os

from tests.conversion import child_jobs

TIMEOUT = 120


def spell(source, destination, **options):
    """The command line that asks for what these keyword arguments ask for."""
    words = ["convert", str(source), str(destination)]
    options |= options.pop("expert_fields", {})
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif name == "verify":
            words.append("--no-verify")
        elif value is not False:
            words += [flag, str(value)]
    return words


@functools.cache
def get_context():
    """Where children are forked from; threads of its libraries start in the children."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conversion.child_jobs"])
    return context


class Child:
    """One job of child_jobs, in a process of its own, its streams in files of a folder."""

    def __init__(self, job, folder, *arguments):
        folder.mkdir(parents=True, exist_ok=True)
        self.streams = [folder / "out", folder / "err"]
        arguments = (job, [str(path) for path in self.streams], *map(str, arguments))
        self.process = get_context().Process(target=child_jobs.run, args=arguments, daemon=True)
        self.process.start()

    def is_running(self):
        return self.process.is_alive()

    def read(self):
        """What it wrote so far."""
        return [path.read_text() if path.exists() else "" for path in self.streams]

    def finish(self):
        """Its exit code (minus the signal that ended it) and what it wrote to both streams."""
        try:
            self.process.join(TIMEOUT)
            code = self.process.exitcode
        finally:
            self.process.kill()
            self.process.join()
        return code, *self.read()


def run_child(job, folder, *arguments):
    return Child(job, folder, *arguments).finish()
