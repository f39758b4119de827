"""How many rows a device takes at once, so that a step has the recipe's number on any hardware."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import TrainingSettings


@dataclass(frozen=True)
class BatchPlan:
    """A step's rows.

    Attributes:
        num_devices: Devices, one process each.
        device_batch_size: Rows a device takes at once.
        num_accumulated: Batches a device takes one after another before a step.
    """

    num_devices: int
    device_batch_size: int
    num_accumulated: int

    @property
    def global_batch_size(self) -> int:
        """Rows a step."""
        return self.num_devices * self.device_batch_size * self.num_accumulated

    def __str__(self) -> str:
        return (
            f"{self.global_batch_size} rows a step = {self.num_devices} device(s) x "
            f"{self.device_batch_size} rows x {self.num_accumulated} accumulated"
        )


def plan_batches(settings: TrainingSettings, num_devices: int) -> BatchPlan:
    """Divide the recipe's rows a step among devices and accumulated batches.

    Args:
        settings: The run's settings.
        num_devices: Devices.

    Returns:
        The plan, which keeps `global_batch_size` exactly.

    Raises:
        ValueError: If the rows cannot be divided.
    """
    total, at_once = settings.global_batch_size, settings.device_batch_size
    if total % num_devices:
        raise ValueError(
            f"global_batch_size is {total}, which {num_devices} devices cannot share; expected a "
            f"multiple of {num_devices}: use another number of devices or set global_batch_size"
        )
    share = total // num_devices
    if share % at_once:
        fitting = max(size for size in range(1, min(at_once, share) + 1) if share % size == 0)
        raise ValueError(
            f"{num_devices} device(s) have {share} rows a step each (global_batch_size {total}), "
            f"no multiple of device_batch_size {at_once}; set device_batch_size={fitting}"
        )
    return BatchPlan(num_devices, at_once, share // at_once)
