"""What is looked at around each optimiser step: finite numbers, norms, epochs, checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .step_norms import HYPERNETWORK, UpdateNorm, get_gradient_norms, group_parameters


class StepWatch(TrainerCallback):
    """Watches the steps of a `HyperLlavaTrainer`.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.groups: dict[str, list[Any]] | None = None
        self.update: UpdateNorm | None = None
        self.norms: dict[str, float] = {}

    def will_log(self, args: Any, state: Any) -> bool:
        """Tell whether the step that is being taken will be logged."""
        step = state.global_step + 1
        return bool(step % args.logging_steps == 0 or step % args.save_steps == 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the sampler the epoch, which a resumed loader of accelerate does not do.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        sampler = self.trainer.row_sampler
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before an update that is no number; measure what will be logged.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        self.trainer.raise_if_not_finite()
        if self.trainer.is_deepspeed_enabled:
            return  # it has made the update already
        self.trainer.fill_missing_gradients()
        if not self.will_log(args, state):
            return
        if self.groups is None:
            # FSDP2 has put other parameters in place since the model was given.
            self.groups = group_parameters(self.trainer.model)
        self.norms = get_gradient_norms(self.groups, self.trainer.clip_scale)
        if HYPERNETWORK in self.groups:
            self.update = UpdateNorm(self.groups[HYPERNETWORK])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure how far the HyperNetworks have moved.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        if self.update is not None:
            self.norms[f"update_norm/{HYPERNETWORK}"] = self.update.measure()
            self.update = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Log before each checkpoint, so that a resumed run logs the same means.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.

        Returns:
            The control.
        """
        if control.should_save:
            control.should_log = True
        return control
