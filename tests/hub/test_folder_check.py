"""Which files of a folder go to the Hub, which stay, and which stop the push."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import pytest

from hyperllava_hf.hub.folder_check import PIECE, check_folder

INDEX = '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "%s"}}'


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".env", "secret"),
        (".env.local", "secret"),
        ("token", "secret"),
        ("hf_token.txt", "secret"),
        ("id_rsa", "secret"),
        ("server.pem", "secret"),
        ("credentials.json", "secret"),
        ("optimizer.pt", "training run"),
        ("rng_state_0.pth", "training run"),
        ("training_args.bin", "training run"),
        ("checkpoint-500/model.safetensors", "training run"),
        ("global_step10/zero_pp_rank_0.pt", "training run"),
        ("runs/events.out.tfevents.1", "training run"),
        ("train.log", "training run"),
        ("logs/rank-0.txt", "training run"),
        ("slurm-4711.out", "training run"),
        ("__pycache__/modeling_hyperllava.cpython-311.pyc", "tool"),
        (".cache/huggingface/download", "tool"),
        (".git/config", "tool"),
        ("model-00001-of-00003.safetensors", "index does not name"),
    ],
)
def test_secrets_and_leftovers_stay_behind_and_are_listed(
    folder: Path, path: str, reason: str
) -> None:
    target = folder / path
    target.parent.mkdir(exist_ok=True, parents=True)
    target.write_bytes(b"x")
    files = check_folder(folder)
    assert not [name for name in files.kept if name == path or name.startswith(path + "/")]
    found = files.left_out.get(path) or files.left_out[f"{path.split('/')[0]}/"]
    assert reason in found


def test_files_of_the_checkpoint_are_kept(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "mine.jinja").write_text("x")
    (folder / "assets.png").write_bytes(b"\x89PNG")
    files = check_folder(folder)
    expected = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(files.kept) == expected
    assert files.left_out == {}


def test_links_to_files_are_followed(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(weights)
    assert "model.safetensors" in check_folder(folder).kept
    (folder / "more").symlink_to(tmp_path)
    assert check_folder(folder).left_out == {"more/": "is a link to a folder"}


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no folder .*save_pretrained wrote"):
        check_folder(tmp_path / "nowhere")


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no config\.json in .*save_pretrained wrote"):
        check_folder(tmp_path)


def test_other_models_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"model_type 'llama'; expected a checkpoint of"):
        check_folder(folder)


def zip_with_pickle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("pytorch_model.bin", b""),
        ("experts.pt", b""),
        ("cache.pkl", b""),
        ("state", pickle.dumps({"a": 1})),
        ("state.dat", zip_with_pickle()),
    ],
)
def test_pickles_are_refused_by_name_and_by_content(
    folder: Path, path: str, content: bytes
) -> None:
    (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=f"found 1 pickles in .*{path}.*save the weights as saf"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["notes.md", "run.sh", "X.JSON", "demo.ipynb", "b.bin.txt", "c"])
@pytest.mark.parametrize("place", [0, PIECE - 20, 2 * PIECE + 7])
def test_token_in_a_file_is_refused_and_not_repeated(folder: Path, name: str, place: int) -> None:
    token = "hf_" + "aB3" * 11
    (folder / name).write_text(f"{' ' * place} {token}\n")
    with pytest.raises(ValueError, match=f"looks like a Hub token in {re.escape(name)}") as caught:
        check_folder(folder)
    assert token not in str(caught.value)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected weights that .* lacks: model\.safetensors"):
        check_folder(folder)


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(INDEX % "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"names 1 files .*lacks: model-00002-of-00002\.safet"):
        check_folder(folder)


def test_two_sets_of_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(INDEX % "model.safetensors")
    with pytest.raises(ValueError, match=r"found both .*Delete the one that is out of date"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("processor_config.json", "preprocessor_config.json"), "processor"),
        (("tokenizer.json",), "tokenizer"),
        (("tokenizer_config.json",), "settings of the tokenizer"),
    ],
)
def test_missing_processor_is_an_error(folder: Path, names: tuple[str, ...], part: str) -> None:
    for name in names:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"found no {part} .*processor\.save_pretrained"):
        check_folder(folder)


def test_a_folder_of_an_adapter_says_how_to_get_a_whole_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match=r"holds a LoRA adapter and no model; .*--merge --resume"):
        check_folder(folder)
