"""The measured shifts, against the difference that switching the experts off makes."""

from pathlib import Path

import pytest
import torch

from hyperllava_hf.chat import Chat
from hyperllava_hf.inspection.expert_shifts import (
    ShiftRecorder,
    compute_ratio,
    measure_expert_shifts,
)
from tests.tiny_checkpoint import save_tiny_checkpoint


def root_mean_square(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_language_shift_is_what_switching_experts_off_takes_away(
    scope: str, tmp_path: Path, picture: Path
) -> None:
    # With one block, on the last one, the two runs meet the same residual stream before it.
    folder = save_tiny_checkpoint(
        tmp_path, language_expert_layers=[1], language_guidance_scope=scope, visual_expert="none"
    )
    (shift,) = measure_expert_shifts(str(folder), [str(picture)], "What?", dtype="float32")
    chat = Chat.load(str(folder), [str(picture)], dtype="float32")
    chat.add_question("What?")
    inputs = chat.build_inputs()
    caught: dict[str, torch.Tensor] = {}
    block = chat.model.model.language_model.layers[1]
    block.register_forward_hook(lambda module, args, output: caught.update(block=output))
    block.mlp.register_forward_hook(lambda module, args, output: caught.update(mlp=output))
    with torch.no_grad():
        chat.model(**inputs, use_cache=False)
        with_expert = caught["block"]
        with chat.model.disable_experts():
            chat.model(**inputs, use_cache=False)
    assert shift.expert == "language 1"
    expected = root_mean_square(with_expert - caught["block"])
    assert shift.shift_rms == pytest.approx(expected, rel=1e-4)
    assert shift.output_rms == pytest.approx(root_mean_square(caught["mlp"]), rel=1e-4)
    assert shift.ratio == pytest.approx(shift.shift_rms / shift.output_rms, rel=1e-4)
    low, high = sorted([shift.image_ratio, shift.text_ratio])
    assert low <= shift.ratio <= high


def test_second_visual_shift_is_what_switching_experts_off_takes_away(
    tmp_path: Path, picture: Path
) -> None:
    folder = save_tiny_checkpoint(tmp_path, visual_expert="second", language_expert_layers="none")
    (shift,) = measure_expert_shifts(str(folder), [str(picture)], "What?", dtype="float32")
    chat = Chat.load(str(folder), [str(picture)], dtype="float32")
    chat.add_question("What?")
    inputs = chat.build_inputs()
    projected: list[torch.Tensor] = []
    projector = chat.model.model.multi_modal_projector
    projector.register_forward_hook(lambda module, args, output: projected.append(output))
    with torch.no_grad():
        chat.model(**inputs)
        with chat.model.disable_experts():
            chat.model(**inputs)
    assert shift.expert == "visual second"
    assert shift.shift_rms == pytest.approx(root_mean_square(projected[0] - projected[1]), rel=1e-4)
    assert shift.output_rms == pytest.approx(root_mean_square(projected[1]), rel=1e-4)


@pytest.mark.parametrize("source", ["latent", "static"])
def test_experts_without_guidance_are_measured_too(
    source: str, tmp_path: Path, picture: Path
) -> None:
    folder = save_tiny_checkpoint(
        tmp_path, expert_source=source, visual_expert="both", language_expert_layers="all"
    )
    shifts = measure_expert_shifts(str(folder), [str(picture)], "What?")
    names = ["visual first", "visual second", "language 0", "language 1"]
    assert [shift.expert for shift in shifts] == names
    assert all(shift.shift_rms > 0 for shift in shifts)


def test_text_only_prompt_has_no_image_ratio(tiny_checkpoint: Path) -> None:
    (shift,) = measure_expert_shifts(str(tiny_checkpoint), [], "What?")
    assert shift.expert == "language 1"
    assert shift.image_ratio is None
    assert shift.text_ratio == pytest.approx(shift.ratio)


def test_watching_leaves_no_hook_behind(tiny_checkpoint: Path) -> None:
    model = Chat.load(str(tiny_checkpoint), []).model

    def count_hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    # transformers 5 may have put hooks of its own there.
    before = count_hooks()
    with ShiftRecorder().watch(model):
        assert count_hooks() > before
    assert count_hooks() == before


def test_ratio_of_nothing_is_none() -> None:
    empty = torch.zeros(1, 0, 4)
    assert compute_ratio(empty, empty) is None
    assert compute_ratio(torch.full((1, 2, 4), 3.0), torch.full((1, 2, 4), -6.0)) == 0.5
