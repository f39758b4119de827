"""Speed and memory of conversion at LLaVA-1.5-7B's shapes, beside `cp -r` of the same bytes.

A checkpoint of the original layout with random fp16 weights (14 GB, vision tower inside) is made on
the spot and deleted at the end. Every way of converting runs in a process of its own, in turn with
`cp -r`, the page cache dropped before each where the machine allows it, and each ends when the disk
has everything (sync). Memory is the process's peak (VmHWM) above what it was after the imports.

    python benchmarks/bench_convert.py --work FOLDER        # needs 45 GB there

"published way": what transformers' published converter does (read all, rename, save), through
huggingface_hub's own writer. Verification is left out here: it is timed in rows of its own.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "convert.csv"
COMMAND = "python benchmarks/bench_convert.py"
MIB = 2**20

VISION = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
# LLaVA-1.5-7B, and something small to try this script with.
SIZES = {"7B": (4096, 11008, 32, 32, 32000), "tiny": (256, 512, 4, 4, 1000)}


def build_config(size):
    width, inner, blocks, heads, rows = SIZES[size]
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": width,
        "image_aspect_ratio": "pad",
        "intermediate_size": inner,
        "max_position_embeddings": 4096,
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "llava",
        "num_attention_heads": heads,
        "num_hidden_layers": blocks,
        "num_key_value_heads": heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "vocab_size": rows,
    }


def list_shapes(config):
    """The shape of every key of the original layout."""
    import torch

    from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
    from hyperllava_hf.conversion.key_tables import TARGET_TABLES, rename_key
    from hyperllava_hf.modeling.checkpoint_hyperllava import is_expert_key

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: config[name] for name in (*names, "num_key_value_heads", "vocab_size")}
    whole = HyperLlavaConfig(text_config={"model_type": "llama", **text}, vision_config=VISION)
    with torch.device("meta"):
        model = HyperLlavaForConditionalGeneration(whole)
    return {
        rename_key(TARGET_TABLES["llava"], key): tuple(value.shape)
        for key, value in model.state_dict().items()
        if not is_expert_key(key)
    }


def write_tokenizer(folder, num_tokens):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"word{number}": number for number in range(3, num_tokens)}
    Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def make_source(folder, size, kind):
    """Write the checkpoint, in shards of 5 GB, from slices of one block of random numbers."""
    import torch

    config = build_config(size)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    shapes = list_shapes(config)
    noise = torch.randn(2**24 + 2**16, generator=torch.Generator().manual_seed(0)) * 0.02
    noise = noise.to(torch.float16)
    shards, room = [[]], 5e9
    for key, shape in shapes.items():
        num_bytes = 2 * torch.Size(shape).numel()
        if num_bytes > room:
            shards.append([])
            room = 5e9
        room -= num_bytes
        shards[-1].append(key)
    suffix = {"safetensors": "model-{}-of-{}.safetensors", "bin": "pytorch_model-{}-of-{}.bin"}
    weight_map = {}
    for number, keys in enumerate(shards):
        tensors = {}
        for place, key in enumerate(keys):
            count = torch.Size(shapes[key]).numel()
            start = (place * 977) % 2**16
            repeats = -(-count // 2**24)
            values = noise[start : start + 2**24].repeat(repeats)[:count]
            tensors[key] = values.reshape(shapes[key]).clone()
        name = suffix[kind].format(f"{number + 1:05d}", f"{len(shards):05d}")
        if kind == "safetensors":
            from safetensors.torch import save_file

            save_file(tensors, folder / name, {"format": "pt"})
        else:
            torch.save(tensors, folder / name)
        weight_map |= dict.fromkeys(keys, name)
        del tensors
    index = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind] + ".index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected VmHWM in /proc/self/status: run this on Linux")


def run_way(way, source, result):
    """Convert in this process; print seconds and peak memory as JSON."""
    import transformers.models.llava.modeling_llava  # noqa: F401
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    from hyperllava_hf.conversion import convert
    from hyperllava_hf.conversion.key_tables import ORIGINAL, match_row

    Path("/proc/self/clear_refs").write_text("5")
    before = read_peak()
    start = time.perf_counter()
    facts = {}
    if way == "published":
        import torch

        state = {}
        for path in sorted([*source.glob("*.safetensors"), *source.glob("*.bin")]):
            if path.suffix == ".safetensors":
                state |= load_file(path)
            else:
                state |= torch.load(path, weights_only=True, map_location="cpu")
        renamed = {match_row(ORIGINAL, key)[1]: value for key, value in state.items()}
        result.mkdir()
        save_torch_state_dict(renamed, result, max_shard_size="5GB")
    else:
        verifies = way == "convert, verified"
        report = convert(
            source, result, verify=verifies, hash_inputs=way != "convert, inputs not hashed"
        )
        if verifies:
            facts = {"verification_seconds": report.verification.seconds}
            facts["verification_mode"] = report.verification.mode
    os.sync()
    facts["seconds"] = time.perf_counter() - start
    print(json.dumps({**facts, "peak_bytes": read_peak() - before}))


def drop_cache():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(way, source, result):
    """Run one way in a fresh process; seconds, and for Python its peak memory."""
    shutil.rmtree(result, ignore_errors=True)
    was_dropped = drop_cache()
    if way == "cp -r":
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(source), str(result)], check=True)
        os.sync()
        found = {"seconds": time.perf_counter() - start}
    else:
        command = [sys.executable, __file__, "--way", way, "--source", str(source)]
        done = subprocess.run(
            [*command, "--result", str(result)], check=True, stdout=subprocess.PIPE
        )
        found = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(result, ignore_errors=True)
    return {**found, "cache_dropped": was_dropped}


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def build_row(kind, way, runs, copies, size, commit, command):
    import torch
    import transformers

    ratios = [copy["seconds"] / run["seconds"] for run, copy in zip(runs, copies, strict=True)]
    seconds = [run["seconds"] for run in runs]
    largest = 2 * SIZES[size][0] * (-(-(SIZES[size][4] + 2) // 64) * 64)
    peaks = [run["peak_bytes"] for run in runs if "peak_bytes" in run]
    return {
        "source": kind,
        "way": way,
        "shapes": size,
        "seconds_median": f"{statistics.median(seconds):.1f}",
        "seconds_p20": f"{percentile(seconds, 0.2):.1f}",
        "seconds_p80": f"{percentile(seconds, 0.8):.1f}",
        "speed_to_cp_median": f"{statistics.median(ratios):.2f}",
        "speed_to_cp_p20": f"{percentile(ratios, 0.2):.2f}",
        "speed_to_cp_p80": f"{percentile(ratios, 0.8):.2f}",
        "peak_mib": f"{max(peaks) / MIB:.0f}" if peaks else "",
        "peak_bound_mib": f"{(2 * largest) / MIB + 256:.0f}",
        "verification_seconds": f"{runs[0].get('verification_seconds', 0):.0f}",
        "verification_mode": runs[0].get("verification_mode", ""),
        "runs": len(runs),
        "cache_dropped": all(run["cache_dropped"] for run in runs),
        "device": f"{os.cpu_count()} CPU cores",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def main():
    parser = argparse.ArgumentParser(description="Measure conversion beside cp -r.")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["safetensors", "bin"])
    parser.add_argument("--verify", action="store_true", help="measure verification too")
    parser.add_argument("--output", type=Path, default=RESULTS)
    for name in ("--way", "--source", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options.way, Path(options.source), Path(options.result))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    command = f"{COMMAND} --work FOLDER --size {options.size} --rounds {options.rounds}"
    command += f" --kinds {' '.join(options.kinds)}"
    work = options.work / "bench-convert"
    ways = ["convert, inputs not hashed", "convert", "published"]
    rows = []
    for kind in options.kinds:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            make_source(work / "source", options.size, kind)
            runs = {way: [] for way in ["cp -r", *ways]}
            for _ in range(options.rounds):
                for way in runs:
                    runs[way].append(measure(way, work / "source", work / "result"))
                    print(kind, way, runs[way][-1], file=sys.stderr, flush=True)
            if options.verify and kind == "safetensors":
                way = "convert, verified"
                runs[way] = [measure(way, work / "source", work / "result")]
                print(kind, way, runs[way][-1], file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for way, found in runs.items():
            copies = runs["cp -r"][: len(found)]
            rows.append(build_row(kind, way, found, copies, options.size, commit, command))
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(options.output.read_text(), end="")


if __name__ == "__main__":
    main()
