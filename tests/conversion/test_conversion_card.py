"""The card of a converted folder: valid metadata, and no claim that nothing stands behind."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData

from hyperllava_hf.conversion.conversion_card import (
    ConversionFacts,
    build_card,
    build_metadata,
    find_base_models,
    find_license,
)

FACTS = ConversionFacts(
    name="my-hyperllava",
    source="liuhaotian/llava-v1.5-7b",
    layout="llava",
    to="hyperllava",
    config={"visual_expert": "first", "language_expert_layers": "posterior", "dtype": "float16"},
    package_version="1.2.3",
    source_revision="abc123",
    base_models=("liuhaotian/llava-v1.5-7b",),
    vision_tower="openai/clip-vit-large-patch14-336",
    fresh_experts=True,
    verification="Logits of source and result on fixed inputs: largest difference 0.",
    notes=("the tokenizer got 2 tokens",),
)


def test_the_header_is_what_the_hub_reads():
    card = ModelCard(build_card(FACTS))
    data = card.data.to_dict()
    assert data == build_metadata(FACTS)
    assert data["base_model"] == ["liuhaotian/llava-v1.5-7b"]
    assert (data["base_model_relation"], data["license"]) == ("finetune", "llama2")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert "custom_code" in data["tags"]
    assert card.text.strip().startswith("# my-hyperllava")


def test_untrained_experts_are_said_to_be_untrained():
    text = build_card(FACTS)
    assert "experts are untrained" in text
    assert "untrained" not in build_card(replace(FACTS, fresh_experts=False))
    assert "no experts" in build_card(replace(FACTS, fresh_experts=None))


def test_the_card_says_where_from_and_how_verified():
    text = build_card(FACTS)
    for part in ("`liuhaotian/llava-v1.5-7b`", "`abc123`", "layout `llava`", "1.2.3"):
        assert part in text
    assert FACTS.verification in text
    assert "- The tokenizer got 2 tokens." in text
    assert "`revision` and `code_revision`" in text or '"code_revision": COMMIT' in text
    assert "Nothing was evaluated" in text
    assert "was not verified" in build_card(replace(FACTS, verification=None))


def test_an_unknown_licence_is_said_plainly():
    facts = replace(FACTS, source="my-model", base_models=(), source_revision=None)
    data = ModelCard(build_card(facts)).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "unknown")
    assert "base_model" not in data
    assert "Unknown: the names of the source do not tell" in build_card(facts)
    stated = build_metadata(replace(facts, license="apache-2.0"))
    assert stated["license"] == "apache-2.0"
    assert "license_name" not in stated


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("lmsys/vicuna-7b-v1.5", "llama2"),
        ("meta-llama/Llama-2-13b-hf", "llama2"),
        ("llava-hf/llava-1.5-7b-hf", "llama2"),
        ("liuhaotian/llava-v1.6-vicuna-13b", "llama2"),
        ("lmsys/vicuna-7b-v1.3", None),
        ("meta-llama/Meta-Llama-3-8B", None),
        (None, None),
    ],
)
def test_licences_follow_from_base_models(name, licence):
    assert find_license(name) == licence


def test_only_repositories_are_base_models():
    names = ["a/b", None, "", "./checkpoints/llava", "checkpoints/llava", "/data/x", "a/b", "plain"]
    assert find_base_models(*names) == ("a/b",)


@pytest.mark.parametrize("to", ["llava-hf", "llava"])
def test_folders_for_other_tools_promise_no_experts_and_no_code(to):
    text = build_card(replace(FACTS, to=to, fresh_experts=None))
    assert isinstance(ModelCard(text).data, ModelCardData)
    assert "without experts" in text
    for absent in ("trust_remote_code", "custom_code", "untrained", "code beside the weights"):
        assert absent not in text


def test_cards_are_ascii():
    assert build_card(FACTS).isascii()
