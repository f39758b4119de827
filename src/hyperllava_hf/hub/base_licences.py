"""The terms that a base model's weights hand on to whatever is made from them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """A licence: its identifier on the Hub, its name, its text's place, the notice it asks for."""

    identifier: str
    name: str
    link: str
    notice: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """The card's licence fields."""
        if self.identifier != "other":
            return {"license": self.identifier}
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return {"license": "other", "license_name": name, "license_link": self.link}


APACHE = Terms("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
LLAMA_2 = Terms(
    "llama2",
    "Llama 2 Community License",
    "https://ai.meta.com/llama/license/",
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved.\n",
)
LLAMA_1 = Terms(
    "other",
    "LLaMA non-commercial licence",
    "https://github.com/meta-llama/llama/blob/llama_v1/MODEL_CARD.md",
)

# Base models by their ids: what LLaVA's language models are made from. The first match counts.
BASES = {
    r"vicuna-\d+b-v1\.5|llama-?2|llava-(v?1\.5|v?1\.6-vicuna)": LLAMA_2,
    r"vicuna-\d+b-(v?1\.[0-3]|v?0|delta)|llava-v1-|llava-\d+b-(delta-)?v[01]": LLAMA_1,
}


def find_base_terms(base_models: list[str]) -> Terms | None:
    """Find the terms that the weights of base models carry.

    Args:
        base_models: ids of the models that the weights were made from.

    Returns:
        The terms, or None if no base is known to carry any.
    """
    for pattern, terms in BASES.items():
        if any(re.search(pattern, base, re.IGNORECASE) for base in base_models):
            return terms
    return None


def choose_terms(base_models: list[str], licence: str | None) -> Terms | None:
    """Choose the licence of a model's weights.

    Args:
        base_models: ids of the models that the weights were made from.
        licence: the Hub's identifier of what the user wants; None leaves it to the base.

    Returns:
        The terms, or None if they are not known.

    Raises:
        ValueError: if the wish contradicts what the base hands on.
    """
    handed_on = find_base_terms(base_models)
    if licence is None or (handed_on is not None and licence == handed_on.identifier):
        return handed_on
    if handed_on is not None:
        raise ValueError(
            f"found licence {licence!r} for weights made from {', '.join(base_models)}, which hand "
            f"on the {handed_on.name}; expected {handed_on.identifier!r}. Leave --license out, or "
            "put the folder's README.md right."
        )
    known = {terms.identifier: terms for terms in (APACHE, LLAMA_2)}
    return known.get(licence, Terms(licence, licence, ""))
