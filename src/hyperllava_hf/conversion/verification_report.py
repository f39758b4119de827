"""What a verification found, to print and to keep in the manifest."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Verification:
    """What a comparison of source and result found.

    Attributes:
        mode: "whole", or "blocks" where one block of one model was in memory at a time.
        largest_difference: the largest absolute difference of logits.
        where: row, position and vocabulary id of it, None if all logits are equal.
        first_block: the first block that differs, None if all are equal.
        largest_logit: the largest absolute logit, for scale.
        tolerance: what the error model allows the logits.
        passed: whether logits, blocks and tensors keep to the error model.
        num_logits: logits compared, all runs together.
        num_tokens: rows of the vocabulary that both models have.
        num_tensors: tensors compared.
        largest_weight_difference: the largest absolute difference of a weight.
        wrong_tensors: tensors that are further off than the error model allows.
        expert_shift: the largest change of a logit through experts, None where they are the
            identity or absent.
        seconds: duration.
        notes: what else a reader has to know.
    """

    mode: str
    largest_difference: float
    where: str | None
    first_block: str | None
    largest_logit: float
    tolerance: float
    passed: bool
    num_logits: int
    num_tokens: int
    num_tensors: int
    largest_weight_difference: float
    wrong_tensors: tuple[str, ...]
    expert_shift: float | None
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """What to print; the same for each run, so without its duration."""
        way = {"whole": "whole models", "blocks": "one block in memory at a time"}[self.mode]
        lines = [
            f"{'Verified' if self.passed else 'Verification failed'} ({way}, float32 on the CPU): "
            f"{self.num_logits} logits, {self.num_tensors} tensors."
        ]
        if self.largest_difference == 0:
            lines.append(f"All logits are equal; the largest is {self.largest_logit:.4g}.")
        else:
            lines.append(
                f"The largest difference is {self.largest_difference:.4g}, at {self.where}; "
                f"{self.tolerance:.4g} is allowed, the largest logit is {self.largest_logit:.4g}."
            )
        if self.first_block is not None and not (self.passed and self.tolerance > 0):
            lines.append(f"The first block that differs is {self.first_block}.")
        if self.largest_weight_difference > 0:
            lines.append(
                f"The largest difference of a weight is {self.largest_weight_difference:.4g}."
            )
        if self.wrong_tensors:
            lines.append("Tensors that differ: " + ", ".join(self.wrong_tensors) + ".")
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON.

        Returns:
            The fields by name; a number that JSON cannot hold is a string.
        """
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
