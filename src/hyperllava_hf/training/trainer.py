"""transformers' Trainer with what a HyperLLaVA run needs beside it.

- own learning rates for projector and HyperNetworks, weight decay on matrices alone
- rows grouped by modality and length, in an order that a resume finds again
- a step that is no number stops the run before the update, and its batches are kept
- checkpoints that are complete or not there, of everything or of experts and projector alone
- tokens per second, skipped rows and norms by group in the log

The loop is Trainer's own. What is overridden exists on 4.57 and 5.x alike.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from ..data import ModalityLengthSampler
from .bad_batches import NonFiniteStepError, save_bad_batches, to_json_numbers
from .progress import RunProgress
from .row_order import EndlessRows, ShuffledSampler
from .run_checkpoints import STAGING, explain_failure, put_in_place, remove_old, write_record
from .settings import TrainingSettings
from .stages import get_group
from .step_norms import find_hypernetwork_names, to_float
from .step_watch import StepWatch

EXPERTS_FILE = "experts.safetensors"
ROW_NUMBERS, SKIPPED_ROWS = "row_numbers", "num_skipped_rows"


class NumberingCollator:
    """Adds each row's number in its file to a batch, for the record of a bad one.

    Args:
        collate: Makes a batch of rows.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows with `number`.

        Returns:
            The batch.
        """
        numbers = torch.tensor([row.number for row in rows])
        return {**self.collate(rows), ROW_NUMBERS: numbers}


def build_parameter_groups(model: Any, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Sort trained parameters by learning rate and weight decay.

    Args:
        model: A model after `set_trainable`.
        settings: The run's settings.

    Returns:
        The optimiser's parameter groups.
    """
    hypernetworks = find_hypernetwork_names(model)
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = None
        if name in hypernetworks:
            rate = settings.hypernetwork_learning_rate
        elif get_group(name) == "projector":
            rate = settings.projector_learning_rate
        is_matrix = parameter.ndim > 1 and "bias" not in name
        key = (rate or settings.learning_rate, settings.weight_decay if is_matrix else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


class HyperLlavaTrainer(Trainer):
    """Trainer of a HyperLLaVA run.

    Args:
        settings: The run's settings.
        record: What a resumed run must agree with; kept in each checkpoint.
        output: The run's folder.
        processor: What is saved beside the weights of each checkpoint.
        **kwargs: As of `transformers.Trainer`; not `processing_class`, to which Trainer would
            fit the model's special tokens.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        record: dict[str, Any],
        output: Path,
        processor: Any,
        **kwargs: Any,
    ) -> None:
        self.settings = settings
        self.processor = processor
        self.record = record
        self.output = output
        self.optimizer: Any = None
        self.row_sampler: Any = None
        self.clip_scale = 1.0
        self.num_skipped_rows = 0
        self.num_tokens = 0
        self.is_done = False
        self._is_saving = False
        self._forget_step()
        self._forget_speed()
        model = kwargs["model"]
        # Trainer refuses a quantised model without adapters of PEFT; ours has experts.
        is_quantized = getattr(model, "is_quantized", False) and settings.language_model != "lora"
        if is_quantized:
            model._hf_peft_config_loaded = True
        kwargs["data_collator"] = NumberingCollator(kwargs["data_collator"])
        super().__init__(**kwargs)
        if is_quantized:
            model._hf_peft_config_loaded = False
        self.remove_callback(PrinterCallback)
        self.add_callback(RunProgress())
        self.watch = StepWatch(self)
        self.add_callback(self.watch)

    # Rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.settings.group_by_modality_length:
            self.row_sampler = ModalityLengthSampler(
                rows.lengths, self._train_batch_size, self.args.world_size, self.settings.seed
            )
        else:
            self.row_sampler = ShuffledSampler(len(rows), self.settings.seed)
        return self.row_sampler

    def get_train_dataloader(self) -> Any:
        """Build the loader; streamed rows share themselves out, which accelerate would do again.

        Returns:
            The loader; an empty one where all steps were taken, since Trainer looks at `max_steps`
            after a step and not before the first.
        """
        if self.is_done:
            return DataLoader([])  # type: ignore[arg-type]
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return DataLoader(
            EndlessRows(self.train_dataset),
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a step's batches, and take from them what is not the model's.

        Args:
            *args: As of `Trainer.get_batch_samples`.
            **kwargs: As of `Trainer.get_batch_samples`.

        Returns:
            Batches, and the number of supervised tokens of the step on all ranks.
        """
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._forget_step()
        for batch in batches:
            self._row_numbers.append(batch.pop(ROW_NUMBERS))
            self._new_skipped += int(batch.pop(SKIPPED_ROWS, 0))
            self._new_tokens.append(batch["attention_mask"].sum())
            self._batches.append(batch)
        return batches, num_items

    def _forget_step(self) -> None:
        self._batches: list[dict[str, Any]] = []
        self._row_numbers: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        self._grad_norm: Any = None

    def _forget_speed(self) -> None:
        self._new_tokens: list[torch.Tensor] = []
        self._new_skipped = 0
        self._last_log = time.perf_counter()

    # Steps

    def create_accelerator_and_postprocess(self) -> None:
        """Build the accelerator, and let it tell the gradient norm."""
        super().create_accelerator_and_postprocess()
        clip = self.accelerator.clip_grad_norm_

        def clip_and_keep(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            norm = clip(parameters, max_norm, *args, **kwargs)
            self._grad_norm = norm
            return norm

        self.accelerator.clip_grad_norm_ = clip_and_keep

    def create_optimizer(self, model: Any = None) -> Any:
        """Build the optimiser.

        Args:
            model: The model where it is not the trainer's own.

        Returns:
            The optimiser.
        """
        if self.optimizer is None:
            trained = self.model if model is None else model
            optimizer_class, keywords = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = build_parameter_groups(trained, self.settings)
            self.optimizer = optimizer_class(groups, **keywords)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute a batch's loss.

        Args:
            model: The model.
            inputs: The batch.
            *args: As of `Trainer.compute_loss`.
            **kwargs: As of `Trainer.compute_loss`.

        Returns:
            The loss, with outputs where they are asked for.
        """
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        self._losses.append(loss.detach())
        if not loss.requires_grad:  # rows without images, and nothing trained but the projector
            loss += 0 * next(p for p in model.parameters() if p.requires_grad).sum()
        if self.is_deepspeed_enabled:
            # Its engine updates the weights within the backward pass.
            self.raise_if_not_finite()
        return result

    def raise_if_not_finite(self) -> None:
        """Stop where a loss or the gradient norm of this step is no number, on any rank.

        Raises:
            NonFiniteStepError: With the place of the batches.
        """
        norm = math.nan if self._grad_norm is None else to_float(self._grad_norm)
        is_scaled = getattr(self.accelerator, "scaler", None) is not None
        losses = torch.stack([loss.float() for loss in self._losses])
        is_bad = ~torch.isfinite(losses).all()
        # A scaler lets fp16 gradients overflow now and then, and leaves such a step out.
        if self._grad_norm is not None and not is_scaled:
            is_bad = is_bad | (not math.isfinite(norm))
        limit = self.args.max_grad_norm
        self.clip_scale = min(1.0, limit / (norm + 1e-6)) if math.isfinite(norm) else 1.0
        num_bad = self.accelerator.reduce(is_bad.float().to(self.args.device), "sum")
        if num_bad.item() == 0:
            return
        step = self.state.global_step + 1
        folder = self.output / f"bad-step-{step}"
        facts = {
            "step": step,
            "losses": to_json_numbers([float(loss) for loss in losses]),
            "grad_norm": to_json_numbers([norm])[0],
            "row_numbers": [numbers.tolist() for numbers in self._row_numbers],
            "data": list(self.settings.data),
        }
        save_bad_batches(folder, self.args.process_index, self._batches, facts)
        raise NonFiniteStepError(
            f"step {step} gave losses {facts['losses']} and gradient norm {facts['grad_norm']}, "
            f"expected finite numbers. The update was not made; the step's batches and row "
            f"numbers are in {folder}. Look at those rows. A lower learning_rate is another run: "
            "begin it with another --output, from this run's --model"
        )

    def fill_missing_gradients(self) -> None:
        """Give what a step has not used a gradient of zero, as it has where ranks share the step.

        A step of rows without images leaves the projector out in one process, while several encode
        a blank image to stay in step; AdamW moves on zeros, but not on None.
        """
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    # Log

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with speed, skipped rows and norms.

        Args:
            logs: What Trainer logs.
            *args: As of `Trainer.log`.
            **kwargs: As of `Trainer.log`.
        """
        if "loss" in logs:
            counts = torch.stack(
                [
                    torch.as_tensor(sum(self._new_tokens), device=self.args.device).float(),
                    torch.tensor(float(self._new_skipped), device=self.args.device),
                ]
            )
            tokens, skipped = self.accelerator.reduce(counts, "sum").tolist()
            self.num_tokens += round(tokens)
            self.num_skipped_rows += round(skipped)
            logs["tokens_per_second"] = tokens / (time.perf_counter() - self._last_log)
            logs["num_skipped_rows"] = self.num_skipped_rows
            logs.update(self.watch.norms)
            self.watch.norms = {}
            self._forget_speed()
        super().log(logs, *args, **kwargs)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.output / STAGING) if self._is_saving else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside, sync it, and give it its name."""
        name = f"checkpoint-{self.state.global_step}"
        with explain_failure(self.output):
            self._is_saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving = False
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                progress = {
                    "step": self.state.global_step,
                    "num_tokens": self.num_tokens,
                    "num_skipped_rows": self.num_skipped_rows,
                }
                write_record(self.output / STAGING / name, {**self.record, **progress})
                put_in_place(self.output, name)
                remove_old(self.output, self.settings.save_total_limit)
            self.accelerator.wait_for_everyone()
        self._last_log = time.perf_counter()

    def gather_state(self) -> dict[str, torch.Tensor]:
        """Gather all weights of a sharded model on the CPU of the first rank; all ranks call it.

        Returns:
            Weights by name; on other ranks perhaps none.
        """
        if not self.is_fsdp_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped) or {}
        # accelerate's own way gives the ranks' shards on some backends.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return state

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights; FSDP2's are saved with the optimiser's, in accelerate's format.

        Args:
            output_dir: Where; the run's folder when None.
            _internal_call: As of `Trainer.save_model`.
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)

    def get_trained_weights(self) -> dict[str, torch.Tensor]:
        """Return the trained weights by name, on one process."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or self.args.output_dir
        if self.settings.save_only != "experts":
            super()._save(output_dir, state_dict)
            if self.args.should_save:
                self.processor.save_pretrained(folder)
        elif self.args.should_save:
            os.makedirs(folder, exist_ok=True)
            weights = {n: p.cpu().contiguous() for n, p in self.get_trained_weights().items()}
            save_file(weights, os.path.join(folder, EXPERTS_FILE), metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.settings.save_only != "experts":
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = load_file(os.path.join(resume_from_checkpoint, EXPERTS_FILE))
        weights = self.get_trained_weights()
        if stored.keys() != weights.keys():
            raise ValueError(
                f"{resume_from_checkpoint} holds {len(stored)} trained weights, this run trains "
                f"{len(weights)}; expected the same names: "
                f"{', '.join(sorted(stored.keys() ^ weights.keys())[:5])}"
            )
        for name, value in weights.items():
            value.copy_(stored[name])

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Stop where Trainer would go on with weights that it did not find."""
        is_tied = self.model.config.get_text_config().tie_word_embeddings
        tied = set(self.model._tied_weights_keys or ()) if is_tied else set()
        missing = [*{*load_result.missing_keys} - tied, *load_result.unexpected_keys]
        if missing:
            raise ValueError(
                f"the checkpoint's weights are not this model's: {len(missing)} names differ, "
                f"such as {missing[0]}; resume with the settings that it was made with"
            )
