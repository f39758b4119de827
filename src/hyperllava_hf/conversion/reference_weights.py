"""The weights that a source stands for, read by a second, independent reader.

Verification would prove little if the source were read by the code that converted it: a wrong row
of the conversion's tables would be wrong on both sides. So nothing of the conversion is used here.
Tensors are found by what their names end in, one rule for all layouts, and LoRA and deltas are
added up by their plain formulas:

    lora   W + s (B A), s = alpha / r, or alpha / sqrt(r) where `use_rslora` is set
    dora   m (W + s (B A)) / |W + s (B A)|, the norm taken over each output's inputs
    delta  D + W on the rows that both have

Each row of these is a sum of the same rows, so tensors are read a few rows at a time, when they are
asked for, and the file is closed after each reading: mapped pages do not pile up.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from .source_parts import SourceParts

EXPERT_NAMES = ("visual_expert.", "language_expert.")
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"

DECODER_NAME = re.compile(
    r"(embed_tokens|norm|layers\.\d+\.(input_layernorm|post_attention_layernorm"
    r"|self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj))\.(weight|bias)"
)
TOWER_NAME = re.compile(
    r"(embeddings\.(class_embedding|(patch|position)_embedding\.(weight|bias))"
    r"|(pre_layrnorm|post_layernorm|encoder\.layers\.\d+\..+)\.(weight|bias))"
)
ADAPTER_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>(?:embedding_)?[AB]|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?"
)

# Values read at a time: what is mapped and what is copied of them stay small beside a block.
CHUNK_VALUES = 2**24

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class StoredTensor(NamedTuple):
    """Where a tensor lies and what it is, without its values."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def find_canonical_name(name: str) -> str | None:
    """Say which of LLaVA's parameters a stored tensor is, by its name alone.

    Args:
        name: as it stands in a file of any layout.

    Returns:
        The parameter's name in the frozen key set, None for what is no parameter of LLaVA.
    """
    name = re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)
    if any(expert in name for expert in EXPERT_NAMES):
        return None
    if name.endswith(HEAD):
        return HEAD
    if "mm_projector." in name:
        place, _, kind = name.rpartition("mm_projector.")[2].partition(".")
        linear = {"0": "linear_1", "2": "linear_2"}.get(place)
        return f"model.multi_modal_projector.{linear}.{kind}" if linear else None
    if "multi_modal_projector." in name:
        return "model.multi_modal_projector." + name.rpartition("multi_modal_projector.")[2]
    tail = name.rpartition("vision_tower.")[2].removeprefix("vision_model.")
    if TOWER_NAME.fullmatch(tail):
        return "model.vision_tower.vision_model." + tail
    for prefix in ("base_model.", "model.", "model.", "language_model.", "model."):
        name = name.removeprefix(prefix)
    return "model.language_model." + name if DECODER_NAME.fullmatch(name) else None


def _map_pickle(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(
        str(path), map_location="cpu", weights_only=True, mmap=True
    )
    return content


def split_rows(shape: tuple[int, ...], num_values: int) -> Iterator[tuple[int, int]]:
    """Split a tensor into pieces of whole rows.

    Args:
        shape: the tensor's.
        num_values: values of a piece, about.

    Yields:
        The first row of each piece and the row behind its last.
    """
    step = max(1, num_values // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def list_tensors(path: Path) -> Iterator[StoredTensor]:
    """List the floating-point tensors of a file.

    Args:
        path: a .safetensors or .bin file.

    Yields:
        Each tensor's place and kind.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() in DTYPES:
                    yield StoredTensor(
                        path, name, tuple(part.get_shape()), DTYPES[part.get_dtype()]
                    )
    else:
        for name, tensor in _map_pickle(path).items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                yield StoredTensor(path, name, tuple(tensor.shape), tensor.dtype)


def read_rows(
    stored: StoredTensor, start: int, stop: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Read rows of one tensor into memory of their own and close its file.

    Args:
        stored: what to read.
        start: the first row.
        stop: the row behind the last.
        dtype: of the result, the stored one if None.

    Returns:
        The rows.
    """
    if stored.path.suffix == ".safetensors":
        with safe_open(stored.path, framework="pt") as file:
            rows = file.get_slice(stored.name)[start:stop]
            return torch.empty(rows.shape, dtype=dtype or stored.dtype).copy_(rows)
    rows = _map_pickle(stored.path)[stored.name][start:stop]
    return torch.empty(rows.shape, dtype=dtype or stored.dtype).copy_(rows)


def _read_float32(stored: StoredTensor) -> torch.Tensor:
    return read_rows(stored, 0, stored.shape[0], torch.float32)


class ReferenceWeights:
    """A source's weights under the names of the frozen key set, each computed when asked for.

    Args:
        parts: the source.
        with_experts: whether to list a HyperLLaVA's experts too.

    Raises:
        ValueError: if a tensor is there twice, or an adapter holds what is not understood.
    """

    def __init__(self, parts: SourceParts, with_experts: bool = False) -> None:
        self.base = None if parts.base is None else ReferenceWeights(parts.base)
        self.vision = None if parts.vision is None else ReferenceWeights(parts.vision)
        self.adds_to_base = parts.layout == "delta"
        self._own: dict[str, StoredTensor] = {}
        self._adapters: dict[str, dict[str, StoredTensor]] = {}
        self._adapter_config: dict[str, Any] = {}
        if parts.layout == "lora":
            self._index_adapter(parts)
        else:
            self._index(parts.weights, with_experts)
        text_config = parts.config.get("text_config", parts.config)
        ties = parts.config.get("tie_word_embeddings", text_config.get("tie_word_embeddings"))
        if ties and EMBEDDING in self._own and HEAD not in self:
            self._own[HEAD] = self._own[EMBEDDING]

    def _index(self, paths: tuple[Path, ...], with_experts: bool = False) -> None:
        for path in paths:
            for stored in list_tensors(path):
                is_expert = with_experts and any(part in stored.name for part in EXPERT_NAMES)
                self._add(stored.name if is_expert else find_canonical_name(stored.name), stored)

    def _add(self, key: str | None, stored: StoredTensor) -> None:
        if key in self._own:
            raise ValueError(
                f"found {key} twice, in {self._own[key].path.name} and in {stored.path.name}; "
                "expected each tensor once. Remove the file that does not belong to the checkpoint"
            )
        if key is not None:
            self._own[key] = stored

    def _index_adapter(self, parts: SourceParts) -> None:
        config = parts.weights[0].parent / "adapter_config.json"
        self._adapter_config = json.loads(config.read_text(encoding="utf-8"))
        for path in parts.weights:
            for stored in list_tensors(path):
                match = ADAPTER_NAME.fullmatch(stored.name)
                if match is None and ".lora_" in stored.name:
                    raise ValueError(
                        f"found {stored.name} in {path.name}; expected lora_A and lora_B matrices "
                        "and DoRA's magnitudes. Merge this adapter with PEFT, then convert the "
                        "merged model"
                    )
                if match is None:
                    self._add(find_canonical_name(stored.name), stored)
                else:
                    weight = find_canonical_name(match["module"] + ".weight") or stored.name
                    self._adapters.setdefault(weight, {})[match["part"]] = stored
        if parts.non_lora is not None:
            for stored in list_tensors(parts.non_lora):
                # What was trained beside the adapter wins over what PEFT saved beside it.
                self._own.pop(find_canonical_name(stored.name) or "", None)
                self._add(find_canonical_name(stored.name), stored)

    def keys(self) -> list[str]:
        """List the parameters.

        Returns:
            Their names, sorted.
        """
        names = set(self._own)
        for part in (self.base, self.vision):
            names |= set() if part is None else set(part.keys())
        return sorted(names)

    def __iter__(self) -> Iterator[str]:
        """Walk over the parameters' names."""
        return iter(self.keys())

    def __contains__(self, key: str) -> bool:
        """Tell whether the source has a parameter."""
        inside = key in self._own
        return inside or any(part is not None and key in part for part in (self.base, self.vision))

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a parameter's shape.

        Args:
            key: its name.

        Returns:
            The shape.
        """
        shape = self._find(key).shape
        if self._extends_base(key):
            assert self.base is not None
            return (shape[0] + self.base.shape(key)[0], *shape[1:])
        return shape

    def dtype(self, key: str) -> torch.dtype:
        """Return the dtype in which a parameter, or what it is added to, is stored.

        Args:
            key: its name.

        Returns:
            The dtype.
        """
        return self._find(key).dtype

    def rank(self, key: str) -> int:
        """Return how many products each value of a parameter is summed up from.

        Args:
            key: its name.

        Returns:
            LoRA's rank; 1 for a delta; 0 where the stored values are the parameter's own.
        """
        if key in self._adapters:
            return next(s.shape[0] for part, s in self._adapters[key].items() if part.endswith("A"))
        if self.adds_to_base and key in self._own and self.base is not None and key in self.base:
            return 1
        if key in self._own:
            return 0
        return 0 if self.base is None or key not in self.base else self.base.rank(key)

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read or compute rows of a parameter.

        Args:
            key: its name.
            start: the first row.
            stop: the row behind the last.

        Returns:
            The rows as stored, or in float32 where they are sums; in memory of their own.

        Raises:
            ValueError: if the source has no such parameter.
        """
        base = self.base if self.base is not None and key in self.base else None
        if key in self._adapters:
            return self._merge_rows(key, start, stop)
        if key in self._own and base is not None and self.adds_to_base:
            return self._add_delta_rows(self._own[key], base, key, start, stop)
        if key in self._own and base is not None and self._extends_base(key):
            end = base.shape(key)[0]
            own = read_rows(self._own[key], max(start - end, 0), max(stop - end, 0))
            return torch.cat([base.rows(key, min(start, end), min(stop, end)), own])
        for part in (self.base, self.vision):
            if key not in self._own and part is not None and key in part:
                return part.rows(key, start, stop)
        return read_rows(self._find(key), start, stop)

    def load(
        self, key: str, dtype: torch.dtype | None = None, num_rows: int | None = None
    ) -> torch.Tensor:
        """Read or compute a parameter.

        Matrix products may round differently where their operands are aligned differently, so a
        tensor is copied from where its file happens to have put it.

        Args:
            key: its name.
            dtype: of the result; if None, as stored, or float32 where it is a sum.
            num_rows: its first rows alone; None for all.

        Returns:
            The parameter, in memory of its own.
        """
        shape = self.shape(key)
        num_rows = shape[0] if num_rows is None else min(num_rows, shape[0])
        own_dtype = torch.float32 if self.rank(key) > 0 else self.dtype(key)
        tensor = torch.empty((num_rows, *shape[1:]), dtype=dtype or own_dtype)
        for start, stop in split_rows((num_rows, *shape[1:]), CHUNK_VALUES):
            tensor[start:stop] = self.rows(key, start, stop)
        return tensor

    def _find(self, key: str) -> StoredTensor:
        if key in self._own:
            return self._own[key]
        for part in (self.base, self.vision):
            if part is not None and key in part:
                return part._find(key)
        raise ValueError(
            f"found no {key} in the source; expected every weight of a LLaVA. Check that all its "
            "files are there, and that the right base model and vision tower are given"
        )

    def _extends_base(self, key: str) -> bool:
        # A stage-1 projector file may carry the embeddings of the few tokens that it added.
        if self.adds_to_base or key != EMBEDDING or key not in self._own:
            return False
        return (
            self.base is not None
            and key in self.base
            and self._own[key].shape[0] < self.base.shape(key)[0]
        )

    def _add_delta_rows(
        self, delta: StoredTensor, base: "ReferenceWeights", key: str, start: int, stop: int
    ) -> torch.Tensor:
        weight = read_rows(delta, start, stop, torch.float32)
        end = base.shape(key)[0]
        other = base.rows(key, min(start, end), min(stop, end))
        overlap = tuple(slice(min(pair)) for pair in zip(weight.shape, other.shape, strict=True))
        weight[overlap] += other[overlap].float()
        return weight

    def _merge_rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        adapter = self._adapters[key]
        if key in self._own or self.base is None:
            weight = read_rows(self._find(key), start, stop, torch.float32)
        else:
            weight = self.base.rows(key, start, stop).float()
        if "embedding_A" in adapter:
            # An embedding's weight is (tokens, width), the transpose of a Linear's.
            up, down = (_read_float32(adapter[f"embedding_{part}"]).T for part in "AB")
            up = up[start:stop]
        else:
            down = _read_float32(adapter["A"])  # (r, inputs)
            up = read_rows(adapter["B"], start, stop, torch.float32)  # (rows, r)
        weight.addmm_(up, down, alpha=self._scaling(adapter, self.rank(key)))
        if "magnitude_vector" in adapter:
            magnitude = read_rows(adapter["magnitude_vector"], start, stop, torch.float32)
            weight *= (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
        return weight

    def _scaling(self, adapter: dict[str, StoredTensor], rank: int) -> float:
        config = self._adapter_config
        name = next(stored.name for part, stored in adapter.items() if part.endswith("A"))
        match = ADAPTER_NAME.fullmatch(name)
        assert match is not None
        module = match["module"].removeprefix("base_model.model.")
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
