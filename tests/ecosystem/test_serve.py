"""`transformers serve` with HyperLLaVA registered: an OpenAI-style request with a base64 image.

The server runs in a child process on a free port, as `python -m hyperllava_hf.serve`.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "src" / "hyperllava_hf" / "hyperllava-digits")
PICTURE = ROOT / "examples" / "scene-1.png"
DRAWN = json.loads((ROOT / "examples" / "scenes.json").read_text(encoding="utf-8"))
ON_4 = not hasattr(transformers, "AutoModelForMultimodalLM")
START_TIMEOUT = 120


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get_arguments(port):
    place = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    return ["--force_model", DIGITS, *place] if ON_4 else [DIGITS, *place]


def post(port, body, timeout=120):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return response.read().decode()


def wait_until_it_listens(port, child, log):
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"the server does not listen: {log.read_text(encoding='utf-8')[-3000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port, log = find_free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "hyperllava_hf.serve", *get_arguments(port)],
            env=env,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_it_listens(port, child, log)
        yield port
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def ask(question, picture=None, **options):
    content = [{"type": "text", "text": question}]
    if picture is not None:
        image = base64.b64encode(picture.read_bytes()).decode()
        url = {"url": f"data:image/png;base64,{image}"}
        content.insert(0, {"type": "image_url", "image_url": url})
    messages = [{"role": "user", "content": content}]
    return {"model": DIGITS, "messages": messages, "max_tokens": 32, "temperature": 0, **options}


def read_streamed(text):
    """Join the pieces of a stream of server-sent events."""
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line]
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices).strip()


def read_whole(text):
    # 4.57's server answers as a stream, whatever was asked for.
    if ON_4:
        return read_streamed(text)
    return json.loads(text)["choices"][0]["message"]["content"].strip()


def test_server_describes_a_base64_image(server):
    body = ask("Describe the image.", PICTURE, stream=False)
    assert read_whole(post(server, body)) == DRAWN[PICTURE.name]["description"]


def test_server_streams_the_same_answer(server):
    body = ask("Describe the image.", PICTURE, stream=True)
    assert read_streamed(post(server, body)) == DRAWN[PICTURE.name]["description"]


def test_server_answers_one_question_after_another(server):
    bodies = [ask(question, PICTURE) for question in ("How many digits are there?", "Is it a 7?")]
    answers = [read_whole(post(server, body)) for body in (*bodies, *bodies)]
    assert answers[:2] == answers[2:]
    assert answers[0] == "1"
