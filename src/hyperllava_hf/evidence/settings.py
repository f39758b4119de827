"""The numbers of the evidence: difficulty, steps and learning rates, the same for every arm.

They were chosen on LLaVA's validation accuracy alone, before any guided arm was trained
(`docs/evidence-protocol.md`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..training.trainer_runs import RunSettings

REGIMES = ("full", "efficient")


@dataclass(frozen=True)
class EvidenceSettings:
    """What every run shares.

    Attributes:
        decoder: Stage 0: the decoder, on text alone.
        align: Stage 1.
        instruct: Stage 2.
        num_scenes: Scenes of the training set; each is one row of stage 1 and one of stage 2.
        num_turns: Questions a conversation of stage 2.
        num_validation: Validation questions a family.
        num_test: Test questions a family, the first ones of the fixed file.
    """

    decoder: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=4000, batch_size=8, learning_rate=1.5e-3, seed=100
        )
    )
    align: RunSettings = field(
        default_factory=lambda: RunSettings(num_steps=150, batch_size=16, learning_rate=2e-3)
    )
    instruct: RunSettings = field(
        default_factory=lambda: RunSettings(num_steps=200, batch_size=8, learning_rate=1e-3)
    )
    num_scenes: int = 6000
    num_turns: int = 6
    num_validation: int = 100
    num_test: int = 500


FULL = EvidenceSettings()
# A miniature that runs in seconds: it shows that the machinery works and says nothing else.
SMOKE = EvidenceSettings(
    decoder=replace(FULL.decoder, num_steps=2, batch_size=2),
    align=replace(FULL.align, num_steps=2, batch_size=2),
    instruct=replace(FULL.instruct, num_steps=2, batch_size=2),
    num_scenes=6,
    num_turns=2,
    num_validation=2,
    num_test=2,
)
