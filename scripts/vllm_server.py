"""One vLLM server at a time on loopback: started, asked, measured and stopped."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# The first start compiles the decoder, with one core left for it.
START_SECONDS = 900
REQUEST_SECONDS = 300
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """`vllm serve FOLDER` through the Transformers backend, as a context.

    Args:
        folder: Checkpoint.
        options: Further options of `vllm serve`.
        environment: Further variables.
    """

    def __init__(
        self, folder: Path, options: tuple[str, ...], environment: dict[str, str] | None = None
    ) -> None:
        self.environment = {**ENVIRONMENT, **(environment or {})}
        self.port = find_free_port()
        self.command = [
            *(str(Path(sys.executable).with_name("vllm")), "serve", str(folder)),
            *("--model-impl", "transformers", "--trust-remote-code", "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "model"),
            *options,
        ]
        self.most_running = 0

    def __enter__(self) -> "Server":
        self.log = tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log")
        self.process = subprocess.Popen(
            self.command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        # The engine and its workers are processes of the same group.
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self.process.wait()
        self.log.close()

    def wait_until_ready(self) -> bool:
        """Wait until the server answers; False if it stopped instead."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/health")
                return True
            except OSError:
                time.sleep(2)
        return False

    def read_log(self) -> str:
        """Read what the server has printed so far."""
        return Path(self.log.name).read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> str:
        """Read a path of the server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return str(reply.read().decode("utf-8"))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Send a body as JSON; what the server refuses is raised with its own words."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode("utf-8"),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode("utf-8")) from error

    def read_metric(self, name: str) -> float:
        """Read one of the server's counters or gauges, summed over its labels."""
        rows = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.M)
        return sum(map(float, rows))

    def watch_running(self, stop: threading.Event) -> None:
        """Keep the largest number of requests that ran at once, until told to stop."""
        while not stop.wait(0.02):
            running = int(self.read_metric("vllm:num_requests_running"))
            self.most_running = max(self.most_running, running)
