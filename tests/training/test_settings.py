"""Settings: every fault at once, types as stated."""

import dataclasses

import pytest
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hyperllava_hf.training.batch_plan import plan_batches
from hyperllava_hf.training.settings import CHOICES, SETTING_NAMES, TrainingSettings


def test_every_fault_is_reported_at_once():
    settings = TrainingSettings(
        stage="pretrain", learning_rate=0.0, warmup_ratio=1.0, lora_rank=0, report_to=("prints",)
    )
    with pytest.raises(ValueError, match="Invalid training settings") as fault:
        settings.raise_if_invalid()
    for line in (
        "- stage: found 'pretrain', expected one of align, instruct",
        "- learning_rate: found 0.0, expected a number above 0",
        "- warmup_ratio: found 1.0, expected from 0 to below 1",
        "- lora_rank: found 0, expected at least 1",
        "- report_to: found ('prints',), expected of tensorboard, wandb",
    ):
        assert line in str(fault.value).splitlines()


def test_wrong_types_are_named_beside_wrong_values():
    settings = TrainingSettings(stage="instruct", learning_rate="fast", num_workers=-1, tf32=1)
    assert sorted(settings.find_faults()) == [
        "learning_rate: found 'fast', expected number",
        "num_workers: found -1, expected at least 0",
        "tf32: found 1, expected true or false",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seed": 2**32}, "seed: found 4294967296, expected at most 4294967295"),
        ({"max_steps": "many"}, "max_steps: found 'many', expected integer or no value"),
        (
            {"schedule": "warmup_stable_decay"},
            "schedule: found 'warmup_stable_decay', expected one",
        ),
        ({"optimizer": "galore_adamw"}, "optimizer: found 'galore_adamw', expected one of adamw_t"),
    ],
)
def test_what_would_fail_after_loading_is_refused_before(changes, fault):
    (found,) = TrainingSettings(**{"stage": "instruct", **changes}).find_faults()
    assert found.startswith(fault)


def test_schedules_and_optimizers_are_transformers_own_names():
    arguments = {name: set(CHOICES[name]) for name in ("schedule", "optimizer")}
    assert arguments["schedule"] <= {item.value for item in SchedulerType}
    assert arguments["optimizer"] <= {item.value for item in OptimizerNames}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"stage": "align", "language_model": "full"}, 'set language_model = "frozen"'),
        ({"four_bit": True}, 'set language_model = "frozen" or "lora"'),
        ({"merge": True}, 'merge is for language_model = "lora"'),
        ({"save_only": "experts"}, 'set language_model = "frozen"'),
        ({"save_only": "experts", "language_model": "frozen", "sharding": "fsdp2"}, "whole weig"),
        ({"four_bit": True, "language_model": "frozen", "sharding": "zero3"}, "not sharded"),
        ({"streaming": True}, "set max_steps"),
        ({"streaming": True, "max_steps": 3, "group_by_modality_length": True}, "no lengths"),
        ({"experts": {"expert_dim": 3}}, "experts.expert_dim: found an unknown field"),
    ],
)
def test_settings_that_contradict_each_other_say_what_to_set(changes, advice):
    settings = TrainingSettings(**{"stage": "instruct", **changes})
    faults = settings.find_faults()
    assert len(faults) == 1
    assert advice in faults[0]


def test_settings_are_plain_values():
    settings = TrainingSettings(stage="align", data=("a", "b"), experts={"expert_input_dim": 8})
    values = settings.to_dict()
    assert tuple(values) == SETTING_NAMES
    assert values["data"] == ["a", "b"]
    assert values["experts"] == {"expert_input_dim": 8}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1


@pytest.mark.parametrize(
    ("num_devices", "at_once", "accumulated"), [(8, 16, 1), (1, 16, 8), (2, 4, 16), (128, 1, 1)]
)
def test_rows_a_step_are_kept_on_any_number_of_devices(num_devices, at_once, accumulated):
    plan = plan_batches(TrainingSettings(stage="instruct", device_batch_size=at_once), num_devices)
    assert plan.num_accumulated == accumulated
    assert plan.global_batch_size == 128


@pytest.mark.parametrize(
    ("num_devices", "at_once", "advice"),
    [
        (3, 16, "expected a multiple of 3"),
        (16, 16, "set device_batch_size=8"),
        (1, 24, "set device_batch_size=16"),
    ],
)
def test_rows_that_cannot_be_divided_say_what_can(num_devices, at_once, advice):
    settings = TrainingSettings(stage="instruct", device_batch_size=at_once)
    with pytest.raises(ValueError, match=advice):
        plan_batches(settings, num_devices)
