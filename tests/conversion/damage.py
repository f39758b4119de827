"""Ways in which checkpoints are damaged, incomplete or hostile; each changes files of a source."""

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.conversion.tokenizer_files import write_json
from tests.conversion.weight_files import read_tensors, save_tensors

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


class Hostile:
    """What a pickle would do when it is loaded with code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def list_weights(folder):
    return sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])


def find_index(folder):
    return next(folder.glob("*.index.json"))


def truncate(path, num_bytes):
    """Cut a file: to a size, or by so many bytes if negative."""
    content = path.read_bytes()
    path.write_bytes(content[:num_bytes])


def change_tensors(path, change):
    """Rewrite one file of weights."""
    tensors = read_tensors(path)
    change(tensors)
    save_tensors(path, tensors)


def find_file_of(folder, key):
    return next(path for path in list_weights(folder) if key in read_tensors(path))


def change_key(folder, key, change):
    """Replace one tensor: change returns the new one, or None to take it away."""

    def replace(tensors):
        value = change(tensors.pop(key))
        if value is not None:
            tensors[key] = value

    change_tensors(find_file_of(folder, key), replace)


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def change_config(folder, **fields):
    change_json(folder / "config.json", lambda config: config.update(fields))


def remove_from_index(folder, key):
    change_json(find_index(folder), lambda index: index["weight_map"].pop(key))


def point_index_elsewhere(folder, key, file):
    change_json(find_index(folder), lambda index: index["weight_map"].update({key: file}))


def drop_bytes(path, start, num_bytes):
    """Take bytes out of the middle of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:start] + content[start + num_bytes :])


def damage_header(folder):
    """Bytes of a safetensors header that are no JSON any more."""
    path = list_weights(folder)[0]
    content = bytearray(path.read_bytes())
    content[8:20] = b"\xff" * 12
    path.write_bytes(content)


def inflate_header(folder):
    """A header that says it is longer than its file."""
    path = list_weights(folder)[0]
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def shift_offsets(folder):
    """Offsets that point behind the file's end."""
    path = list_weights(folder)[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[-1])
    header[last]["data_offsets"][1] += 400
    header[last]["shape"][0] += 100 // max(1, len(header[last]["shape"]))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def duplicate_key(folder):
    """A tensor of the first shard in the second one too."""
    first, second, *_ = list_weights(folder)
    name, value = next(iter(read_tensors(first).items()))
    change_tensors(second, lambda tensors: tensors.update({name: value}))


def write_pointer(path):
    """What a clone without Git LFS leaves."""
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234567\n"
    )


def put_code_into(path, target, form="zip"):
    """Make a file of weights run code when it is unpickled: it would create `target`."""
    content = torch.load(path, weights_only=True) if path.exists() else {}
    content["hostile"] = Hostile(target)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


def put_value(key, value):
    """Damage one number of a tensor."""

    def change(folder):
        def put(tensor):
            tensor = tensor.clone()
            tensor.view(-1)[tensor.numel() // 2] = value
            return tensor

        change_key(folder, key, put)

    return change


def save_header_only(folder):
    """An empty checkpoint."""
    for path in list_weights(folder):
        path.unlink()
    find_index(folder).unlink(missing_ok=True)
    save_file({}, folder / "model.safetensors", metadata={"format": "pt"})
