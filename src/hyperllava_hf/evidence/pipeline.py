"""The steps of the evidence, each of which skips what is finished.

prepare   stage 0's decoders, the training set
tune      the learning rates of every kind of arm, on seeds of their own
runs      every run, to its validation accuracy
test      every finished run on the test split, once
effects   what the experts of the guided arms do
table     the table of results
report    docs/evidence.md with its plots
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ..evaluation.digits import load_split_questions
from ..training.stage_folders import run_once
from .arm_models import load_processor, load_tower
from .arm_runs import RunFactory, write_atomically
from .arms import FEW_SEEDS, WIDTH, Arm, list_arms
from .exact_answers import build_question_rows, score_answers
from .expert_effects import measure_effects
from .report import EFFECT_ARMS, write_report
from .result_table import describe_versions, write_rows, write_table
from .settings import EvidenceSettings
from .stage_zero import train_decoder
from .training_rows import build_training_set, load_training_set, save_training_set
from .tuning import (
    TUNED_STAGES,
    TUNING_SEEDS,
    choose_visual_rates,
    describe_differences,
    list_candidates,
)

STEPS = ("prepare", "tune", "runs", "test", "effects", "table", "report")
# What the work folder's results were made with.
BOUND_TO = "settings.json"
TABLE = Path("results") / "evidence.csv"
EFFECTS = Path("results") / "evidence_effects.json"
TUNING = Path("results") / "evidence_tuning.csv"


@functools.cache
def open_factory(settings: EvidenceSettings, work: Path, device: str) -> RunFactory:
    """Open what a process needs for runs.

    Args:
        settings: What every run shares.
        work: Where stage 0 and the training set lie.
        device: "cpu" or "cuda".

    Returns:
        The factory.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    processor = load_processor()
    questions = load_split_questions("validation", settings.num_validation)
    validation = build_question_rows(questions, processor, load_tower())
    training_set = load_training_set(work / "training_set")
    return RunFactory(settings, training_set, validation, processor, work, device)


def prepare_part(settings: EvidenceSettings, work: Path, part: str) -> str:
    """Prepare what runs share, unless it is there.

    Args:
        settings: What every run shares.
        work: Where everything lies.
        part: "training_set" or "decoder-WIDTH".

    Returns:
        The part's name.
    """
    torch.set_num_threads(1)
    processor = load_processor()

    def build(folder: Path) -> dict[str, Any]:
        training_set = build_training_set(
            processor, load_tower(), settings.num_scenes, settings.num_turns
        )
        save_training_set(training_set, folder)
        return {"num_scenes": settings.num_scenes, "num_turns": settings.num_turns}

    if part == "training_set":
        run_once(work / part, build)
    else:
        width = int(part.rpartition("-")[2])
        train = functools.partial(train_decoder, processor, width, settings.decoder)
        run_once(work / "stage0" / part, train)
    return part


def run_task(
    task: str, settings: EvidenceSettings, work: Path, device: str, arm: Arm, seed: int
) -> tuple[str, dict[str, Any]]:
    """Do one task of a run, and keep its result.

    Args:
        task: "align", "instruct" (both of the tuning), "runs", "test" or "effects".
        settings: What every run shares.
        work: Where everything lies.
        device: "cpu" or "cuda".
        arm: The arm.
        seed: The run's seed.

    Returns:
        What was done, and its result.
    """
    factory = open_factory(settings, work, device)
    result: dict[str, Any]
    if task == "align":
        result = {"loss": factory.align(factory.build_model(arm, seed), arm, seed)}
    elif task in ("instruct", "runs"):
        result = {**factory.run(arm, seed), "device": device, **describe_versions()}
    elif task == "test":
        result = measure_test(factory, arm, seed)
    else:
        result = measure_effects(factory, arm, seed)
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(name_result(work, task, arm, seed), lambda path: _write(path, text))
    return f"{arm.name}, seed {seed}", result


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def name_result(work: Path, task: str, arm: Arm, seed: int) -> Path:
    """Name the file of a task's result.

    Args:
        work: Where everything lies.
        task: As of `run_task`.
        arm: The arm.
        seed: The run's seed.

    Returns:
        The file.
    """
    folder = work / ("tuning" if task in ("align", "instruct") else "runs")
    suffix = ".json" if task == "runs" else f".{task}.json"
    return folder / f"{arm.name}-{seed}{suffix}"


def measure_test(factory: RunFactory, arm: Arm, seed: int) -> dict[str, float]:
    """Measure a finished run on the test split.

    Args:
        factory: Loads the run.
        arm: The arm.
        seed: The run's seed.

    Returns:
        Accuracy overall and by family.
    """
    rows = _build_test_rows(factory)
    model = factory.load_run(arm, seed)
    return score_answers(model, rows, factory.processor, arm.dense_images)


@functools.cache
def _build_test_rows(factory: RunFactory) -> Any:
    questions = load_split_questions("test", factory.settings.num_test)
    return build_question_rows(questions, factory.processor, load_tower())


def _show(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"


def _show_loss(result: dict[str, Any]) -> str:
    return f"loss {result.get('validation', result)['loss']:.4f}"


@dataclass
class Pipeline:
    """The steps over one folder.

    Attributes:
        settings: What every run shares.
        work: Where everything is kept.
        output: Folder of the report.
        jobs: Processes at a time.
        device: "cpu" or "cuda".
        runs_to_do: Arms and seeds, in order.
    """

    settings: EvidenceSettings
    work: Path
    output: Path
    jobs: int = 2
    device: str = "cpu"
    runs_to_do: list[tuple[Arm, int]] = field(default_factory=list)

    def select(
        self,
        groups: Sequence[str],
        names: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Choose the runs: seed by seed within a group, group by group.

        Args:
            groups: Names of groups.
            names: Names of arms; all when None.
            seeds: Seeds; all of each arm when None.

        Raises:
            ValueError: If nothing is left, an arm is unknown, or the folder was made with other
                settings.
        """
        unknown = sorted({*(names or ())} - {arm.name for arm in list_arms()})
        if unknown:
            known = ", ".join(arm.name for arm in list_arms())
            raise ValueError(f"found the unknown arms {', '.join(unknown)}; expected of {known}")
        self._bind()
        arms = [arm for arm in list_arms() if names is None or arm.name in names]
        self.runs_to_do = [
            (arm, seed)
            for group in groups
            for seed in sorted({s for arm in arms for s in arm.seeds})
            for arm in arms
            if arm.group == group and seed in arm.seeds and (seeds is None or seed in seeds)
        ]
        if not self.runs_to_do:
            raise ValueError(
                f"found no run in groups {list(groups)} for arms {names} and seeds {seeds}, "
                "expected at least one; python -m hyperllava_hf.evidence --help lists the groups"
            )

    def _bind(self) -> None:
        # Whatever is finished is skipped, so results of other settings would be taken for ours.
        path, own = self.work / BOUND_TO, json.dumps(asdict(self.settings), indent=1) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") != own:
            raise ValueError(
                f"{self.work} holds results of other settings ({path}); expected an empty folder, "
                "or one of the same settings: name another with --work"
            )
        if not path.is_file():
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda partial: _write(partial, own))

    def prepare(self) -> None:
        """Train the decoders that are needed, and build the training set."""
        # The width of most runs first, then what takes longest.
        widths = sorted(
            {arm.width for arm, _ in self.runs_to_do}, key=lambda width: (width != WIDTH, -width)
        )
        parts = ["training_set", *(f"decoder-{width}" for width in widths)]
        work = functools.partial(prepare_part, self.settings, self.work)
        for i, part in enumerate(self._map(work, [(part,) for part in parts])):
            print(f"{i + 1}/{len(parts)}  {part}", file=sys.stderr, flush=True)

    def tune(self) -> None:
        """Try the learning rates of every kind, stage 1's first; write what was found."""
        arms = [arm for arm, _ in self.runs_to_do]
        rows: list[dict[str, Any]] = []
        for task in TUNED_STAGES:
            candidates = list_candidates(task, choose_visual_rates(rows), arms)
            seeds = TUNING_SEEDS[task]
            runs = [(candidate.arm, seed) for candidate in candidates for seed in seeds]
            self._do(task, runs, _show_loss)
            for candidate in candidates:
                for seed in seeds:
                    path = name_result(self.work, task, candidate.arm, seed)
                    result = json.loads(path.read_text(encoding="utf-8"))
                    rows.append(candidate.build_row(task, seed, result))
        if not rows:
            return
        write_rows(self.output / TUNING, rows)
        differing = describe_differences(rows)
        if differing:
            print("\n".join(differing), file=sys.stderr, flush=True)

    def runs(self) -> None:
        """Train every run."""
        self._do("runs", self.runs_to_do, lambda result: _show(result["validation"]["overall"]))

    def test(self) -> None:
        """Measure every finished run on the test split."""
        self._do("test", self._list_finished(), lambda result: _show(result["overall"]))

    def effects(self) -> None:
        """Measure what the experts do, in the arms with scope "token" and "prompt"."""
        finished = [
            (arm, seed)
            for arm, seed in self._list_finished()
            if arm.name in EFFECT_ARMS and seed in FEW_SEEDS
        ]
        self._do(
            "effects",
            finished,
            lambda result: _show(result["accuracy"]["as trained"]["overall"]),
        )

    def table(self) -> None:
        """Write the table; none over an old one where no run has finished."""
        if not self._list_finished():
            raise ValueError(
                f"found no finished run in {self.work / 'runs'}, expected at least one; train some "
                "with --steps prepare runs"
            )
        count = write_table(self.work / "runs", self.output / TABLE)
        effects = {}
        for arm in list_arms():
            for seed in arm.seeds:
                path = name_result(self.work, "effects", arm, seed)
                if path.is_file():
                    effects[f"{arm.name}-{seed}"] = json.loads(path.read_text(encoding="utf-8"))
        _write(self.output / EFFECTS, json.dumps(effects) + "\n")
        print(f"{count} runs in {self.output / TABLE}", file=sys.stderr)

    def report(self) -> None:
        """Write the report and its plots."""
        write_report(self.output)

    def _list_finished(self) -> list[tuple[Arm, int]]:
        return [run for run in self.runs_to_do if name_result(self.work, "runs", *run).is_file()]

    def _do(self, task: str, runs: list[tuple[Arm, int]], show: Callable[[Any], str]) -> None:
        pending = [run for run in runs if not name_result(self.work, task, *run).is_file()]
        work = functools.partial(run_task, task, self.settings, self.work, self.device)
        print(f"{len(runs) - len(pending)} done, {len(pending)} to do", file=sys.stderr, flush=True)
        for i, done in enumerate(self._map(work, pending)):
            self._tell(i, len(pending), done, show)

    def _map(self, work: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call `work` with each item's arguments, and yield what comes back as it comes."""
        if self.jobs == 1:
            yield from (work(*item) for item in items)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, mp_context=context) as pool:
            try:
                futures = [pool.submit(work, *item) for item in items]
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @staticmethod
    def _tell(
        i: int,
        count: int,
        done: tuple[str, dict[str, Any]],
        show: Callable[[Any], str],
    ) -> None:
        name, result = done
        seconds = f", {result['seconds']:.0f} s" if "seconds" in result else ""
        line = f"{i + 1}/{count}  {name}: {show(result)}{seconds}"
        print(line, file=sys.stderr, flush=True)
