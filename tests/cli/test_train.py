"""hyperllava train, as a process and through the parser."""

import json
import os
import subprocess
import sys

import pytest

from hyperllava_hf.cli.app import main
from hyperllava_hf.training.recipes import list_recipes
from tests.training.tiny_runs import write_rows

TINY = (
    "model={}",
    "max_steps=2",
    "global_batch_size=2",
    "device_batch_size=1",
    "save_steps=1",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"), (1, 0, 1))


def build_arguments(checkpoint, rows, *more):
    overrides = [word for text in TINY for word in ("--set", text.format(checkpoint))]
    data = ["--config", "instruct-digits", "--data", str(rows)]
    return ["train", "instruct", *data, *overrides, *map(str, more)]


def test_train_resume_and_load_as_remote_code(tiny_checkpoint, rows, tmp_path, run_process, capsys):
    output = tmp_path / "run"
    arguments = build_arguments(tiny_checkpoint, rows, "--output", output)
    done = run_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(output / "model")
    assert "language_expert" in done.stderr
    assert "2 rows a step = 1 device(s) x 1 rows x 2 accumulated, 2 steps" in done.stderr
    assert "step 2/2  loss " in done.stderr

    assert main([*arguments]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--json"]) == 0
    captured = capsys.readouterr()
    assert "resuming from" in captured.err
    report = json.loads(captured.out.strip().splitlines()[-1])
    assert report["model"] == str(output / "model")
    assert [step for step, _ in report["losses"]] == [1, 2]

    # Without the package: the folder brings its own code.
    code = (
        "import sys; sys.modules['hyperllava_hf'] = None\n"
        "from transformers import AutoModelForImageTextToText as Auto, AutoProcessor\n"
        f"folder = {str(output / 'model')!r}\n"
        "model = Auto.from_pretrained(folder, trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        "inputs = processor(text='q?', return_tensors='pt')\n"
        "print(model.generate(**inputs, max_new_tokens=2).shape)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=240,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("torch.Size([1, ")


def test_dry_run_writes_nothing(tiny_checkpoint, rows, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = build_arguments(tiny_checkpoint, rows, "--output", output, "--dry-run", "--json")
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["num_steps"] == 2
    assert report["batch"] == {"num_devices": 1, "device_batch_size": 1, "num_accumulated": 2}
    trained = {group["group"]: group["num_trained"] for group in report["groups"]}
    assert trained["vision_tower"] == 0
    assert trained["language_model"] > 0
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--output is missing"),
        (("--set", "learning_rat=1", "--output", "x"), "did you mean 'learning_rate'?"),
        (
            ("--set", "seed=-1", "--set", "tf32=3", "--output", "x"),
            "tf32: found 3, expected true or false",
        ),
        (("--config", "align-digits", "--output", "x"), "run `hyperllava train align`"),
        (("--config", "nothing", "--output", "x"), "found no recipe 'nothing'"),
        (("--data", "missing.json", "--output", "x"), "missing.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tiny_checkpoint, rows, tmp_path, monkeypatch, capsys, more, message
):
    monkeypatch.chdir(tmp_path)
    assert main(build_arguments(tiny_checkpoint, rows, *more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hyperl")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "x" / "model").exists()


def test_recipes_are_listed(capsys):
    assert main(["train", "recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(list_recipes())
    assert main(["train", "recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == list_recipes()
