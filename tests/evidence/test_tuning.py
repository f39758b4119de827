"""Tuning: as many tries for every kind, seeds of its own, and the rates of the arms."""

from collections import Counter
from pathlib import Path

from hyperllava_hf.evidence.arms import SEEDS, list_arms
from hyperllava_hf.evidence.rates import LANGUAGE, VISUAL
from hyperllava_hf.evidence.result_table import read_table
from hyperllava_hf.evidence.tuning import (
    TUNED_STAGES,
    TUNING_SEEDS,
    choose_language_rates,
    choose_visual_rates,
    describe_differences,
    list_candidates,
)

TABLE = Path(__file__).parents[2] / "docs" / "results" / "evidence_tuning.csv"


def test_the_arms_are_run_at_the_rates_that_the_committed_tuning_chose() -> None:
    rows = read_table(TABLE)
    assert choose_visual_rates(rows) == VISUAL
    assert choose_language_rates(rows) == LANGUAGE
    assert describe_differences(rows) == []


def test_every_kind_of_the_arms_has_as_many_tries() -> None:
    arms = list_arms()
    for stage in TUNED_STAGES:
        tries = Counter((c.kind, c.regime) for c in list_candidates(stage, VISUAL, arms))
        assert set(tries.values()) == {4}
        if stage == "instruct":
            assert set(tries) == {(a.kind, a.regime) for a in arms if a.kind != "none"}
    assert not {seed for seeds in TUNING_SEEDS.values() for seed in seeds} & set(SEEDS)


def test_the_lowest_mean_loss_is_chosen_and_a_difference_is_named() -> None:
    rows = [
        {"stage": "align", "kind": "guided", "regime": "both", "rate": rate, "loss": loss}
        for rate, loss in (("1", "0.9"), ("1", "0.1"), ("0.3", "0.4"), ("0.3", "0.4"))
    ]
    assert choose_visual_rates(rows) == {"guided": 0.3}
    rows.append({**rows[0], "stage": "instruct", "regime": "full", "rate": "7"})
    assert choose_language_rates(rows) == {("guided", "full"): 7.0}
    named = describe_differences(rows)
    assert any("('guided', 'full')" in line and "the tuning chose 7" in line for line in named)


def test_stage_two_is_tuned_at_the_rates_that_stage_one_chose() -> None:
    visual = {"guided": 0.125, "latent": 0.25}
    candidates = list_candidates("instruct", visual, list_arms())
    rates = {c.kind: c.arm.rates.visual for c in candidates}
    assert (rates["guided"], rates["prompt"], rates["latent"]) == (0.125, 0.125, 0.25)
    assert rates["static_equal_r"] == 1.0
    assert {c.arm.rates.language for c in candidates if c.kind == "guided"} == {1, 0.3, 0.1, 0.03}
