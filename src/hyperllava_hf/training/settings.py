"""Settings of a training run: one typed dataclass, checked as a whole.

Nothing here imports torch, so a recipe can be read, checked and listed anywhere. A setting is
stated once, here, with its default; recipes (TOML files in `hyperllava_hf/recipes`) and `--set`
state differences.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

STAGES = ("align", "instruct")
TEMPLATES = {"align": "plain", "instruct": "vicuna_v1"}
CHOICES: dict[str, tuple[str, ...]] = {
    "stage": STAGES,
    "language_model": ("full", "frozen", "lora"),
    "dtype": ("float32", "bfloat16", "float16"),
    "mixed_precision": ("auto", "no", "bf16", "fp16"),
    "on_bad_row": ("stop", "skip"),
    "save_only": ("all", "experts"),
    "sharding": ("none", "fsdp2", "zero2", "zero3"),
    # Of transformers' schedules, those that take no numbers beside the warm-up.
    "schedule": (
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_restarts",
    ),
    # Of transformers' optimisers, torch's, Adafactor, and those of bitsandbytes: others take
    # settings or packages of their own.
    "optimizer": (
        "adamw_torch",
        "adamw_torch_fused",
        "adafactor",
        "sgd",
        "adagrad",
        "rmsprop",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "lion_8bit",
        "lion_32bit",
        "paged_lion_8bit",
        "paged_lion_32bit",
    ),
}
REPORTERS = ("tensorboard", "wandb")
# Integers and floats with the least value that they may have.
MINIMA: dict[str, float] = {
    "lora_rank": 1,
    "lora_alpha": 1,
    "max_length": 1,
    "num_workers": 0,
    "max_steps": 1,
    "global_batch_size": 1,
    "device_batch_size": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "seed": 0,
    "logging_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
}
# NumPy's generators take 32 bits.
MAXIMA = {"seed": 2**32 - 1}
POSITIVE = {
    "num_epochs",
    "learning_rate",
    "projector_learning_rate",
    "hypernetwork_learning_rate",
    "adam_epsilon",
}
FRACTIONS = {"lora_dropout", "warmup_ratio", "adam_beta1", "adam_beta2"}
# How types are called in TOML, and on the command line.
KIND_NAMES: dict[type, str] = {
    tuple: "list of strings",
    types.NoneType: "no value",
    Mapping: "table",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
}
# What a resumed run may change: nothing of it touches the weights.
FREE_ON_RESUME = frozenset(
    {
        "logging_steps",
        "merge",
        "num_workers",
        "on_bad_row",
        "report_to",
        "save_steps",
        "save_total_limit",
        "image_folder",
    }
)


@dataclass(frozen=True)
class TrainingSettings:
    """What a run does.

    Attributes:
        stage: "align" (stage 1: projector and visual expert) or "instruct" (stage 2).
        model: Folder or Hub id of a LLaVA or HyperLLaVA, or "digits", the bundled checkpoint.
        revision: Branch, tag or commit of `model` on the Hub.
        experts: Fields of `HyperLlavaConfig` that win over the checkpoint's.
        language_model: What happens to the decoder: "full", "frozen" or "lora".
        lora_rank: r of LoRA.
        lora_alpha: alpha of LoRA.
        lora_dropout: Dropout before LoRA's first matrix.
        merge: Whether a LoRA is merged into the model that the run leaves.
        four_bit: Whether the decoder's frozen linear layers are kept in 4 bits.
        dtype: What frozen weights are kept in, and the model that the run leaves.
        mixed_precision: "bf16" or "fp16" (trained weights in float32, arithmetic in 16 bits),
            "no", or "auto": bf16 where the device has it or frozen weights are bfloat16.
        tf32: Whether float32 products may use TF32 on devices that have it.
        attn_implementation: As in `from_pretrained`; None leaves the choice to transformers.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        sharding: "none", or how devices share weights: "fsdp2", "zero2", "zero3".
        data: Files of rows or Hub data sets.
        image_folder: What image paths are relative to; each file's own folder when None.
        data_split: Split of Hub data sets.
        data_name: Configuration of Hub data sets.
        data_revision: Revision of Hub data sets.
        data_format: "llava" or "messages"; None: told from the rows.
        streaming: Whether rows are read as they are needed; takes `max_steps`.
        template: The processor's chat template; None is the stage's.
        pad_images: Whether images are padded to a square (LLaVA-1.5's stage 2) or resized and
            cropped (its stage 1); None is the checkpoint's way.
        max_length: Tokens a row at most; image tokens are never cut.
        on_bad_row: "stop", or "skip" (and count).
        group_by_modality_length: Whether batches are of one modality and of similar lengths.
        num_workers: Processes a device that read and decode rows.
        num_epochs: Passes over the data.
        max_steps: Optimiser steps; wins over `num_epochs`.
        global_batch_size: Rows an optimiser step, on all devices together.
        device_batch_size: Rows a device takes at once; the rest is accumulated.
        learning_rate: Peak of the schedule.
        projector_learning_rate: The projector's own; None is `learning_rate`.
        hypernetwork_learning_rate: The HyperNetworks' own; None is `learning_rate`.
        weight_decay: AdamW's, on matrices alone.
        adam_beta1: AdamW's.
        adam_beta2: AdamW's.
        adam_epsilon: AdamW's.
        max_grad_norm: Where gradients are clipped; 0 never.
        warmup_ratio: Share of the steps in which the learning rate rises.
        schedule: transformers' name of the schedule; one that takes no numbers of its own.
        optimizer: transformers' name of the optimiser; torch's, Adafactor or of bitsandbytes.
        seed: Of fresh experts, row order and dropout.
        deterministic: Whether slower kernels are used that repeat their results on a GPU.
        logging_steps: Steps between log lines.
        save_steps: Steps between checkpoints.
        save_total_limit: Checkpoints kept.
        save_only: "all", or "experts": checkpoints hold what is trained and nothing else.
        report_to: "tensorboard" and "wandb", or neither.
    """

    stage: str
    model: str | None = None
    revision: str | None = None
    experts: Mapping[str, Any] = field(default_factory=dict)
    language_model: str = "full"
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    merge: bool = False
    four_bit: bool = False
    dtype: str = "bfloat16"
    mixed_precision: str = "auto"
    tf32: bool = True
    attn_implementation: str | None = "sdpa"
    gradient_checkpointing: bool = True
    sharding: str = "none"
    data: tuple[str, ...] = ()
    image_folder: str | None = None
    data_split: str = "train"
    data_name: str | None = None
    data_revision: str | None = None
    data_format: str | None = None
    streaming: bool = False
    template: str | None = None
    pad_images: bool | None = None
    max_length: int | None = 2048
    on_bad_row: str = "stop"
    group_by_modality_length: bool = False
    num_workers: int = 4
    num_epochs: float = 1.0
    max_steps: int | None = None
    global_batch_size: int = 128
    device_batch_size: int = 16
    learning_rate: float = 2e-5
    projector_learning_rate: float | None = None
    hypernetwork_learning_rate: float | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    schedule: str = "cosine"
    optimizer: str = "adamw_torch"
    seed: int = 42
    deterministic: bool = False
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int = 2
    save_only: str = "all"
    report_to: tuple[str, ...] = ()

    @property
    def chat_template(self) -> str:
        """The processor's template: the one given, or the stage's."""
        return self.template or TEMPLATES[self.stage]

    @property
    def trains_decoder(self) -> bool:
        """Whether the decoder's own weights change."""
        return self.stage == "instruct" and self.language_model == "full"

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values.

        Returns:
            By name; tuples as lists.
        """
        values = asdict(self)
        values["experts"] = dict(self.experts)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def find_faults(self) -> list[str]:
        """Check all settings together.

        Returns:
            One line a fault.
        """
        wrong = find_type_faults(vars(self))
        faults = [*wrong.values(), *self._value_faults(wrong)]
        return faults if wrong else [*faults, *self._expert_faults(), *self._combination_faults()]

    def raise_if_invalid(self) -> None:
        """Check all settings together.

        Raises:
            ValueError: If any is wrong; the message lists every fault.
        """
        faults = self.find_faults()
        if faults:
            raise ValueError(
                "Invalid training settings:\n" + "\n".join(f"- {fault}" for fault in faults)
            )

    def _value_faults(self, wrong: Mapping[str, str]) -> list[str]:
        given = {k: v for k, v in vars(self).items() if v is not None and k not in wrong}
        expected = {
            name: f"one of {', '.join(choices)}"
            for name, choices in CHOICES.items()
            if name in given and given[name] not in choices
        }
        for name in MINIMA.keys() & given.keys():
            if not given[name] >= MINIMA[name]:
                expected[name] = f"at least {MINIMA[name]}"
            elif given[name] == float("inf"):
                expected[name] = "a finite number"
        for name in MAXIMA.keys() & given.keys():
            if given[name] > MAXIMA[name]:
                expected[name] = f"at most {MAXIMA[name]}"
        for name in POSITIVE & given.keys():
            if not 0 < given[name] < float("inf"):
                expected[name] = "a number above 0"
        for name in FRACTIONS & given.keys():
            if not 0 <= given[name] < 1:
                expected[name] = "from 0 to below 1"
        if any(name not in REPORTERS for name in given.get("report_to", ())):
            expected["report_to"] = f"of {', '.join(REPORTERS)}"
        return [f"{name}: found {given[name]!r}, expected {expected[name]}" for name in expected]

    def _expert_faults(self) -> list[str]:
        if not self.experts:
            return []
        from ..modeling.configuration_hyperllava import EXPERT_FIELDS

        return [
            f"experts.{name}: found an unknown field, expected of {', '.join(EXPERT_FIELDS)}"
            for name in self.experts
            if name not in EXPERT_FIELDS
        ]

    def _combination_faults(self) -> list[str]:
        rules = {
            'stage = "align" freezes the decoder: set language_model = "frozen"': self.stage
            == "align"
            and self.language_model != "frozen",
            'four_bit keeps the decoder frozen: set language_model = "frozen" or "lora"': (
                self.four_bit and self.language_model == "full"
            ),
            'merge is for language_model = "lora"': self.merge and self.language_model != "lora",
            'save_only = "experts" holds experts and projector: set language_model = "frozen"': (
                self.save_only == "experts" and self.language_model != "frozen"
            ),
            'save_only = "experts" needs whole weights on each device: set sharding = "none"': (
                self.save_only == "experts" and self.sharding in ("fsdp2", "zero3")
            ),
            'four_bit weights are not sharded here: set sharding = "none"': (
                self.four_bit and self.sharding != "none"
            ),
            "streaming rows have no number: set max_steps": self.streaming
            and self.max_steps is None,
            "streaming rows have no lengths: set group_by_modality_length = false": (
                self.streaming and self.group_by_modality_length
            ),
        }
        return [fault for fault, found in rules.items() if found]


def get_kinds(name: str) -> tuple[type, ...]:
    """Give the Python types that a setting takes.

    Args:
        name: A field of `TrainingSettings`.

    Returns:
        The types; NoneType among them where it may be left open.
    """
    hint = typing.get_type_hints(TrainingSettings)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(option) or option for option in options)


def convert_value(name: str, value: Any) -> Any:
    """Give a value read from TOML the type of its setting, where nothing is lost by that.

    Args:
        name: A field of `TrainingSettings`.
        value: What was read.

    Returns:
        A float for an integer, a tuple for a list; other values as they are.
    """
    kinds = get_kinds(name)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if tuple in kinds and isinstance(value, list):
        return tuple(value)
    return value


def find_type_faults(values: Mapping[str, Any]) -> dict[str, str]:
    """Compare values with the types of their settings.

    Args:
        values: Values by field name.

    Returns:
        By name, one line for each that has another type.
    """
    faults = {}
    for name, value in values.items():
        kinds = get_kinds(name)
        fits = type(value) in kinds or (Mapping in kinds and isinstance(value, Mapping))
        if tuple in kinds and fits:
            fits = all(isinstance(part, str) for part in value)
        if not fits:
            wanted = " or ".join(KIND_NAMES.get(kind, kind.__name__) for kind in kinds)
            faults[name] = f"{name}: found {value!r}, expected {wanted}"
    return faults


SETTING_NAMES = tuple(item.name for item in fields(TrainingSettings))
