"""Files of weights as repositories have them: one file or shards with an index, two formats."""

import itertools

import torch
from safetensors.torch import load_file, save_file

from tests.conversion.tokenizer_files import write_json

STEMS = {"bin": "pytorch_model", "safetensors": "model"}


def save_tensors(path, tensors):
    """One file; the suffix says the format."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def read_tensors(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def split_evenly(names, num_shards):
    bounds = [len(names) * number // num_shards for number in range(num_shards + 1)]
    return [names[start:stop] for start, stop in itertools.pairwise(bounds)]


def save_weights(folder, tensors, kind="safetensors", num_shards=1, shards=None):
    """The whole checkpoint: a single file, or shards and their index.

    shards: lists of names, where the boundaries and the order matter.
    """
    stem = STEMS[kind]
    if num_shards == 1 and shards is None:
        save_tensors(folder / f"{stem}.{kind}", tensors)
        return
    shards = shards or split_evenly(list(tensors), num_shards)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.{kind}"
        save_tensors(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / f"{stem}.{kind}.index.json", index)


def read_weights(folder):
    """Every tensor of a folder's .safetensors files."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
