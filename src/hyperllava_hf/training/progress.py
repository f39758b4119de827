"""Progress of a run on stderr: a bar with loss and speed, or lines where no one looks."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


def describe_log(logs: dict[str, Any]) -> dict[str, str]:
    """Choose what of a log line is shown.

    Args:
        logs: What the Trainer logs.

    Returns:
        Texts by short name.
    """
    shown = {
        "loss": ("loss", "{:.4f}"),
        "learning_rate": ("lr", "{:.2e}"),
        "grad_norm": ("grad", "{:.3g}"),
        "tokens_per_second": ("tokens/s", "{:,.0f}"),
        "num_skipped_rows": ("skipped", "{:,}"),
    }
    return {
        short: form.format(logs[name])
        for name, (short, form) in shown.items()
        if logs.get(name) is not None and (name != "num_skipped_rows" or logs[name])
    }


class RunProgress(TrainerCallback):
    """Shows where a run is."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.is_interactive = sys.stderr.isatty()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        if state.is_world_process_zero and self.is_interactive:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show a log line.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: `logs` among them.
        """
        logs = kwargs.get("logs") or {}
        if not state.is_world_process_zero or "loss" not in logs:
            return
        shown = describe_log(logs)
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            return
        line = "  ".join(f"{name} {value}" for name, value in shown.items())
        print(f"step {state.global_step}/{state.max_steps}  {line}", file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar.

        Args:
            args: The Trainer's arguments.
            state: The Trainer's state.
            control: The Trainer's control.
            **kwargs: Not read.
        """
        if self.bar is not None:
            self.bar.close()
