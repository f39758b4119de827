"""Whatever the shards, the order of the keys and the dtypes: the same tensors come out."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperllava_hf.conversion import convert
from tests.conversion.layout_writers import (
    LLAVA_HF_KEYS,
    ORIGINAL_KEYS,
    draw_padded_state,
    rename,
    write_llava_hf,
    write_original,
)
from tests.conversion.results import assert_same_tensors, read_base
from tests.conversion.tiny_llava import draw_state, pad_vocabulary
from tests.conversion.weight_files import read_weights, save_weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAST = {"verify": False, "hash_inputs": False}


@st.composite
def shardings(draw):
    """Numbers from which an order of the keys and the shards' boundaries follow."""
    seed = draw(st.integers(0, 2**16))
    cuts = draw(st.lists(st.floats(0, 1), max_size=6))
    return seed, sorted(cuts)


def shard_names(names, sharding):
    """Every name in one of the shards, no shard empty."""
    seed, cuts = sharding
    names = list(names)
    random.Random(seed).shuffle(names)
    bounds = [0, *(round(cut * len(names)) for cut in cuts), len(names)]
    pairs = itertools.pairwise(bounds)
    return [names[start:stop] for start, stop in pairs if start < stop]


def rewrite_weights(folder, tensors, kind, sharding):
    for path in [*folder.glob("*.bin"), *folder.glob("*.safetensors"), *folder.glob("*index.json")]:
        path.unlink()
    save_weights(folder, tensors, kind, shards=shard_names(tensors, sharding))


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    sharding=shardings(),
    kind=st.sampled_from(["bin", "safetensors"]),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(2_000, 200_000),
)
def test_original_llava_goes_and_comes_back_from_any_shards(sharding, kind, dtype, size):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_original(folder / "source", tower="inside", dtype=dtype)
        state = {name: tensor.to(dtype) for name, tensor in draw_state().items()}
        tensors = rename(state, ORIGINAL_KEYS)
        rewrite_weights(source.path, tensors, kind, sharding)
        convert(source.path, folder / "there", max_shard_size=size, **FAST)
        assert_same_tensors(read_base(folder / "there"), pad_vocabulary(state))
        convert(folder / "there", folder / "back", to="llava", max_shard_size=size // 2, **FAST)
        assert_same_tensors(read_weights(folder / "back"), tensors)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    sharding=shardings(),
    kind=st.sampled_from(["bin", "safetensors"]),
    names=st.sampled_from(sorted(LLAVA_HF_KEYS)),
    dtype=st.sampled_from(DTYPES),
    asked=st.sampled_from([None, "float32", "float16", "bfloat16"]),
)
def test_llava_hf_is_cast_alike_from_any_shards(sharding, kind, names, dtype, asked):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_llava_hf(folder / "source", names)
        state = {name: tensor.to(dtype) for name, tensor in draw_padded_state().items()}
        rewrite_weights(source.path, rename(state, LLAVA_HF_KEYS[names]), kind, sharding)
        convert(source.path, folder / "result", dtype=asked, **FAST)
        wanted = dtype if asked is None else getattr(torch, asked)
        expected = {name: tensor.to(wanted) for name, tensor in state.items()}
        assert_same_tensors(read_base(folder / "result"), expected)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(parts=st.dictionaries(st.sampled_from(["tower", "projector"]), st.sampled_from(DTYPES)))
def test_decoder_decides_the_dtype_of_mixed_parts(parts):
    marks = {"tower": "vision_tower", "projector": "mm_projector"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_original(folder / "source", tower="inside", dtype=torch.float16)
        tensors = rename({n: t.half() for n, t in draw_state().items()}, ORIGINAL_KEYS)
        for part, dtype in parts.items():
            tensors |= {n: t.to(dtype) for n, t in tensors.items() if marks[part] in n}
        rewrite_weights(source.path, tensors, "safetensors", (1, [0.5]))
        convert(source.path, folder / "result", **FAST)
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        found = read_base(folder / "result")
        assert_same_tensors(found, pad_vocabulary_of(halves))
        shutil.rmtree(folder / "result")


def pad_vocabulary_of(tensors):
    """The known result of an original checkpoint's tensors."""
    state = draw_state()
    back = {new: old for old, new in zip(state, rename(state, ORIGINAL_KEYS), strict=True)}
    return pad_vocabulary({back[name]: tensor for name, tensor in tensors.items()})
