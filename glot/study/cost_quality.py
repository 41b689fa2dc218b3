"""What the arms of `glot cost` score: ordinary runs with a tuned learning rate, over seeds, on held-out rows until the last."""

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from glot.errors import DataError
from glot.settings.config import RunConfig
from glot.study.cost_arms import Arm
from glot.study.files import Cell, Study
from glot.study.statistics import Spread, spread
from glot.study.sweep import tune_cells
from glot.study.workers import RunPool, open_pool
from glot.training.result_file import main_score, read_result

RATES = {
    "0": ("lr", ["2e-4", "1e-3", "5e-3"]),
    "lora": ("backbone_lr", ["3e-4", "1e-3", "3e-3"]),
    "full": ("backbone_lr", ["2e-5", "5e-5", "1e-4"]),
}
"""`--finetune_backbone` -> the learning rate that is tuned, and its values.

Source: of full, Devlin et al. 2019, appendix A.3, without 3e-5 and with twice their largest; of lora ten times those and more,
after Hu et al. 2022, appendix D. On MiniLM the largest of full and the middle of lora won most often
(benchmarks/results/finetuning-minilm.md).
"""
TUNING_SEED = 100


class Quality(NamedTuple):
    """The score of an arm.

    Attributes:
        arm: its name.
        metric: that is reported.
        spread: of the score over the seeds.
        tuned: the learning rate that was chosen, and of what.
        epochs: per epoch, the mean score on held-out rows and the mean seconds since training began.
    """

    arm: str
    metric: str
    spread: Spread
    tuned: dict[str, float]
    epochs: list[tuple[float, float]]

    def to_dict(self) -> dict[str, object]:
        """Plain values, None where one seed has no interval."""
        half = self.spread.half_width if self.spread.n > 1 else None
        return {**self._asdict(), "spread": {"mean": self.spread.mean, "n": self.spread.n, "half_width": half}}

    def in_words(self) -> str:
        """Mean and 95 % interval, where seeds tell of one."""
        return self.spread.in_words

    def curve(self, start: float) -> list[tuple[float, float]]:
        """(seconds, score) per epoch, `start` seconds after the beginning."""
        return [(start + seconds, score) for score, seconds in self.epochs]


def score_arms(arms: list[Arm], seeds: list[int], folder: Path, explicit: frozenset[str] = frozenset()) -> list[Quality]:
    """Tune, train and score every arm; finished runs under `folder` are found again. A rate that was given is not tuned.

    Raises:
        DataError: a run failed.
    """
    with open_pool(1) as pool:
        work = RunPool(pool, str(folder / "runs"))
        return [_score(arm, seeds, work, explicit) for arm in arms]


def _score(arm: Arm, seeds: list[int], work: RunPool, explicit: frozenset[str]) -> Quality:
    config = arm.config.with_values(data_seed=arm.config.data_seed, seeds=None, run_name=None)
    name, values = RATES[config.backbone.finetune_backbone]
    tune = {} if name in explicit else {name: values}
    study = Study(f"cost: {arm.name}", "main.py", [Cell(arm.name, {}, {}, tune)], tune_seeds=[TUNING_SEED])
    (chosen,) = tune_cells(study, [config], work)
    runs = [_finished(outcome) for outcome in work.run(_with_seeds(config.with_values(**chosen["values"]), seeds), f"cost: {arm.name}")]
    scores = [main_score(run) for run in runs]
    found = [score for _, score in scores if score is not None]
    if len(found) < len(scores):
        raise DataError(
            f"{arm.name}: {scores[0][0]} is no number for {len(scores) - len(found)} of {len(scores)} seeds (all outputs alike?)"
        )
    return Quality(arm.name, scores[0][0], spread(found), chosen["values"], _mean_curve([run["history"] for run in runs]))


def _mean_curve(histories: list[list[dict[str, Any]]]) -> list[tuple[float, float]]:
    """Mean score and mean seconds since the beginning, per epoch that every run has; an epoch without any number is left out."""
    curve = []
    for place in range(min(map(len, histories))):
        found = [next(iter(history[place]["metrics"].values())) for history in histories]
        values = [value for value in found if value is not None]
        seconds = [sum(sum(epoch["seconds"].values()) for epoch in history[: place + 1]) for history in histories]
        curve += [(fmean(values), fmean(seconds))] if values else []
    return curve


def _with_seeds(config: RunConfig, seeds: list[int]) -> list[RunConfig]:
    return [config.with_values(seed=seed) for seed in seeds]


def _finished(outcome: dict[str, Any]) -> dict[str, Any]:
    if outcome["run_dir"] is None:
        raise DataError(f"a run failed: {outcome['error']}")
    return read_result(Path(outcome["run_dir"]))
