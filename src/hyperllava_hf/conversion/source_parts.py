"""What the source of a conversion consists of, once its layout is known: files, no tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceParts:
    """The files of a source, and of the sources that it leans on.

    Attributes:
        layout: "llava", "llava-hf", "projector", "lora", "delta", "zero", "fork" or "hyperllava";
            for what a source leans on also "llama" (a plain LLM) and "clip" (a vision tower).
        folder: where config.json and the tokenizer's files are looked for first.
        weights: its .safetensors or .bin files; the adapter of "lora", mm_projector.bin of
            "projector".
        config: the content of config.json, empty if there is none.
        base: the LLM or LLaVA that "projector", "lora" and "delta" are completed with.
        vision: the vision tower's folder, where the tower is not inside.
        non_lora: non_lora_trainables.bin of "lora".
    """

    layout: str
    folder: Path
    weights: tuple[Path, ...]
    config: dict[str, Any] = field(default_factory=dict)
    base: "SourceParts | None" = None
    vision: "SourceParts | None" = None
    non_lora: Path | None = None

    def files(self) -> Iterator[Path]:
        """Walk over every file of weights, those of the base and the tower included."""
        yield from self.weights
        if self.non_lora is not None:
            yield self.non_lora
        for part in (self.base, self.vision):
            if part is not None:
                yield from part.files()
