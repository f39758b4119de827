"""The switch between eager code and kernels, where no kernel can run."""

import importlib.util

import pytest
import torch

from hyperllava_hf.kernels import expert_impl, set_expert_impl
from tests.modeling.tiny_models import as_llava, logits, row, tiny_model


@pytest.fixture
def model(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return tiny_model()


def test_a_loaded_model_says_that_it_is_eager(model):
    assert (model.expert_impl, model.model.expert_impl) == ("eager", "eager")


def test_triton_on_a_cpu_says_what_is_missing(model):
    with pytest.raises(ValueError, match=r"Found the model on 'cpu', expected 'cuda'\. Move it"):
        set_expert_impl(model, "triton")
    assert model.expert_impl == "eager"


def test_triton_without_its_package_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Found no package triton.*pip install"):
        set_expert_impl(model, "triton")


def test_auto_stays_eager_and_says_so_once(model, monkeypatch):
    said = []
    monkeypatch.setattr(expert_impl.logger, "warning_once", said.append)
    before = logits(model, **row(3, "image", 2))
    set_expert_impl(model, "auto")
    assert model.expert_impl == "eager"
    assert len(said) == 1
    assert "'auto' uses 'eager': Found the model on 'cpu'" in said[0]
    assert torch.equal(logits(model, **row(3, "image", 2)), before)


def test_another_name_is_refused_with_the_names_there_are(model):
    with pytest.raises(ValueError, match=r"Found expert_impl='cuda', expected one of eager, tri"):
        set_expert_impl(model, "cuda")


def test_a_model_without_places_for_experts_is_refused(model):
    with pytest.raises(ValueError, match="Found a LlavaForConditionalGeneration without places"):
        set_expert_impl(as_llava(model), "eager")


def test_one_model_is_switched_and_no_other(model, monkeypatch):
    other = tiny_model()
    monkeypatch.setattr(expert_impl, "find_missing", lambda device: None)
    set_expert_impl(model, "triton")
    assert (model.expert_impl, other.expert_impl) == ("triton", "eager")
    set_expert_impl(model, "eager")
    own = [module for module in model.modules() if "apply_expert" in vars(module)]
    assert (model.expert_impl, own) == ("eager", [])


def test_shipped_code_knows_of_no_kernels():
    from tests.test_house import PACKAGE

    names = list((PACKAGE / "modeling").glob("*_hyperllava.py"))
    assert names
    assert [path.name for path in names if "import triton" in path.read_text()] == []
