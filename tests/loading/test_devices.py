"""Device maps and offloading: equal answers wherever the parts lie, experts beside their blocks."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hyperllava_hf import HyperLlavaModel
from hyperllava_hf.modeling.placement_hyperllava import complete_device_map
from tests.modeling.scope_modes import NEAR, marked
from tests.modeling.tiny_models import NUM_BLOCKS, ROWS, batch, differ, logits, tiny_model

DECODER = "model.language_model."
# What a map that was written for LLaVA names beside the blocks.
OTHERS = [
    "model.vision_tower",
    "model.multi_modal_projector",
    f"{DECODER}embed_tokens",
    f"{DECODER}norm",
    f"{DECODER}rotary_emb",
    "lm_head",
]


def place(blocks, others="cpu", **more):
    named = {f"{DECODER}layers.{n}": device for n, device in enumerate(blocks)}
    return {**dict.fromkeys(OTHERS, others), **named, **more}


PROJECTOR = [f"model.multi_modal_projector.{part}" for part in ("linear_1", "act", "linear_2")]
MAPS = {
    "auto": "auto",
    "cpu": "cpu",
    "two ways, upper half on disk": place(["cpu", "cpu", "disk", "disk"]),
    "two ways, lower half on disk": place(["disk", "disk", "cpu", "cpu"]),
    "blocks in turn": place(["cpu", "disk"] * (NUM_BLOCKS // 2)),
    "all on disk": place(["disk"] * NUM_BLOCKS, "disk"),
    "HyperNetwork on disk": place(["cpu"] * NUM_BLOCKS) | {f"{DECODER}language_expert": "disk"},
    "projector in pieces": {
        name: device
        for name, device in place(["cpu"] * NUM_BLOCKS).items()
        if name != "model.multi_modal_projector"
    }
    | dict(zip(PROJECTOR, ["disk", "cpu", "cpu"], strict=True)),
}


@pytest.fixture(scope="module", params=["token", "prompt"])
def model(request):
    return tiny_model(visual_expert="both", language_guidance_scope=request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MAPS)
def test_answers_are_equal_wherever_the_parts_lie(tmp_path, model, folder, name):
    given = dict(MAPS[name]) if isinstance(MAPS[name], dict) else MAPS[name]
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=given, offload_folder=tmp_path
    ).eval()
    assert given == MAPS[name]  # the caller's map is never changed
    offloaded = [p for p in loaded.parameters() if p.device.type == "meta"]
    assert bool(offloaded) == ("disk" in str(given))
    inputs = batch(ROWS)
    mask = marked(model, inputs["attention_mask"])
    assert differ(logits(loaded, **inputs, **mask), logits(model, **inputs, **mask)) < NEAR
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


def test_memory_limits_place_the_parts_by_themselves(tmp_path, model, folder):
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": 60_000}, offload_folder=tmp_path
    ).eval()
    assert {"cpu", "disk"} <= {str(device) for device in loaded.hf_device_map.values()}
    inputs = batch(ROWS)
    mask = marked(model, inputs["attention_mask"])
    assert differ(logits(loaded, **inputs, **mask), logits(model, **inputs, **mask)) < NEAR
    # The projector and its expert are one piece.
    assert not [name for name in loaded.hf_device_map if "multi_modal_projector." in name]


def test_the_headless_model_takes_a_map_of_its_own(tmp_path, model, folder):
    given = {
        name.removeprefix("model."): device
        for name, device in place(["cpu", "cpu", "disk", "disk"]).items()
        if name != "lm_head"
    }
    loaded = HyperLlavaModel.from_pretrained(folder, device_map=given, offload_folder=tmp_path)
    assert loaded.hf_device_map["language_model.language_expert"] == "disk"


def test_hypernetworks_follow_the_last_block_and_the_last_layer():
    given = place([0, 0, 1, 1], 0)
    assert complete_device_map(given, "model.") == {**given, f"{DECODER}language_expert": 1}
    pieces = dict(zip(PROJECTOR, [0, 0, 1], strict=True))
    completed = complete_device_map(pieces, "model.")
    assert completed["model.multi_modal_projector.visual_expert"] == 1


@pytest.mark.parametrize(
    "given",
    ["auto", None, {"": 0}, {"model": 0, "lm_head": 1}, {"model.language_model": 0}],
    ids=str,
)
def test_a_map_that_places_all_is_left_as_it_is(given):
    assert complete_device_map(given, "model.") == given


def test_a_placement_that_the_user_gave_the_hypernetwork_is_kept():
    given = place([0, 0, 1, 1], 0) | {f"{DECODER}language_expert": 0}
    assert complete_device_map(given, "model.") == given
