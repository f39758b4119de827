"""What is asked of every result: its files, its weights, its logits, its source as it was."""

import hashlib

import torch
import transformers

from tests.conversion.tiny_llava import as_hyperllava, as_llava, compute_logits
from tests.conversion.weight_files import read_weights

AUTO_CLASSES = ("AutoModelForVision2Seq", "AutoModelForImageTextToText")


def hash_tree(folder):
    """What a folder and all below it hold, by relative path; folders count too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes() if path.is_file() else b"folder"
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def hash_others(folder, left_out):
    """The same without one of its folders."""
    return {n: h for n, h in hash_tree(folder).items() if n.split("/")[0] != left_out}


def list_names(folder):
    """The names in a folder, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def load_models(folder):
    """The result through each of the auto classes that this line has, nothing missing."""
    for name in AUTO_CLASSES:
        auto_class = getattr(transformers, name, None)
        if auto_class is not None:
            model, info = auto_class.from_pretrained(
                folder, dtype="auto", trust_remote_code=True, output_loading_info=True
            )
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
            assert type(model).__name__ == "HyperLlavaForConditionalGeneration"
            yield model.eval()


def build_expected(source, **fields):
    """The known model that the result has to equal."""
    if source.experts:
        return as_hyperllava(source.expected, source.experts, **fields)
    return as_llava(source.expected, source.image)


def assert_same_logits(found, expected, image):
    pairs = zip(compute_logits(found, image), compute_logits(expected, image), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def assert_same_tensors(found, expected):
    """Two states are the same in names, dtypes and every byte."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        ours, theirs = (t.contiguous().flatten().view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(ours, theirs), name


def read_base(folder):
    """The result's base weights."""
    return {name: t for name, t in read_weights(folder).items() if "_expert." not in name}


def read_experts(folder):
    return {name: t for name, t in read_weights(folder).items() if "_expert." in name}
