"""The terms that a base hands on."""

import pytest

from hyperllava_hf.hub.base_licences import choose_terms


@pytest.mark.parametrize(
    ("base", "identifier"),
    [
        ("lmsys/vicuna-7b-v1.5", "llama2"),
        ("lmsys/vicuna-13b-v1.5-16k", "llama2"),
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("llava-hf/llava-1.5-7b-hf", "llama2"),
        ("liuhaotian/llava-v1.5-13b", "llama2"),
        ("liuhaotian/llava-v1.5-7b-lora", "llama2"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llama2"),
        ("lmsys/vicuna-7b-v1.3", "other"),
        ("liuhaotian/LLaVA-13b-delta-v0", "other"),
        ("Qwen/Qwen2-7B", None),
        ("llava-hf/llava-v1.6-mistral-7b-hf", None),
    ],
)
def test_terms_follow_the_base(base: str, identifier: str | None) -> None:
    terms = choose_terms(["openai/clip-vit-large-patch14-336", base], None)
    assert (terms.identifier if terms else None) == identifier


def test_wish_against_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'apache-2.0' for weights .*expected 'llama2'"):
        choose_terms(["lmsys/vicuna-7b-v1.5"], "apache-2.0")


def test_wish_counts_where_the_base_hands_on_nothing() -> None:
    terms = choose_terms([], "cc-by-nc-4.0")
    assert terms is not None
    assert terms.metadata == {"license": "cc-by-nc-4.0"}


def test_other_licences_are_named_and_linked() -> None:
    terms = choose_terms(["lmsys/vicuna-7b-v1.3"], None)
    assert terms is not None
    assert terms.metadata["license"] == "other"
    assert terms.metadata["license_name"] == "llama-non-commercial-licence"
    assert terms.metadata["license_link"].startswith("https://")
