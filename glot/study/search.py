"""Searches: values of flags drawn from ranges, at random or by what earlier runs scored (`method: bayes`, by optuna)."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from glot.errors import ConfigError, nearest, need
from glot.settings.choices import METRICS, RANK_METRICS
from glot.training.record import LOGGED

DISTRIBUTIONS = ("uniform", "int_uniform", "log_uniform_values")
"""How a value is drawn from a range, by wandb's names."""
METRIC_PREFIX = "metrics/"
GOALS = ("maximize", "minimize")


class Span(NamedTuple):
    """A range of values, both ends allowed."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, generator: random.Random) -> str:
        """A value, as a flag takes it."""
        if self.is_whole:
            return str(generator.randint(int(self.low), int(self.high)))
        if self.is_log:
            return repr(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return repr(generator.uniform(self.low, self.high))


class Search(NamedTuple):
    """A search by what earlier runs scored.

    Attributes:
        choices: flag -> values, one or several.
        spans: flag -> range.
        metric: that is looked at: a metric's name, with or without `metrics/`.
        goal: maximize or minimize.
        runs: how many.
    """

    choices: dict[str, list[str]]
    spans: dict[str, Span]
    metric: str
    goal: str
    runs: int


def read_span(row: dict[str, Any]) -> Span | None:
    """A range from a row of `parameters`; None where it is malformed.

    Without a distribution, whole bounds are drawn as whole numbers, as wandb does.
    """
    try:
        low, high = float(row["min"]), float(row["max"])
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(str(row[end]).lstrip("-").isdecimal() for end in ("min", "max"))
    kind = row.get("distribution", "int_uniform" if whole else "uniform")
    sound = kind in DISTRIBUTIONS and math.isfinite(low) and math.isfinite(high) and low < high and (whole or kind != "int_uniform")
    if not sound or (kind == "log_uniform_values" and low <= 0) or row.keys() - {"min", "max", "distribution"}:
        return None
    return Span(low, high, kind == "log_uniform_values", kind == "int_uniform")


def read_search(path: Path, content: dict[str, Any], choices: dict[str, list[str]], spans: dict[str, Span], count: int) -> Search:
    """The search of a sweep file with `method: bayes`.

    Raises:
        ConfigError: optuna is not installed, or the file does not say what is looked at.
    """
    need("optuna", "search", f"{path}: method: bayes")
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise ConfigError(f"{path}: metric: must be {{name: metrics/mcc, goal: maximize}}; method bayes looks at it")
    goal = metric.get("goal", "minimize")  # wandb's default
    if goal not in GOALS:
        raise ConfigError(f"{path}: metric.goal: {goal}; allowed: {', '.join(GOALS)}")
    known = dict.fromkeys((*METRICS, *RANK_METRICS, *LOGGED, *LOGGED.values(), "loss/epoch"))
    name = metric["name"].removeprefix(METRIC_PREFIX)
    if name not in known and "mteb" not in choices.get("task", []):  # whose metrics are its tasks
        raise ConfigError(f"{path}: metric.name: {metric['name']}: no such metric{nearest(name, known)}; there are {', '.join(known)}")
    return Search(choices, spans, metric["name"], goal, count)


def metric_of(search: Search, result: dict[str, Any]) -> float | None:
    """What a search looks at in a result; None where it is no number.

    Raises:
        ConfigError: the result has no such metric.
    """
    name = search.metric.removeprefix(METRIC_PREFIX)
    known = {short: long for long, short in LOGGED.items()}
    if "scores" in result:
        values = [value for value in result["scores"].values() if value is not None]
        found = {**result["scores"], "acc": math.fsum(values) / len(values) if values else None}
    else:
        found = {**result["best"]["metrics"], "loss/epoch": result["best"].get("train_loss")}
        name = known.get(name, name)
    if name not in found:
        raise ConfigError(f"metric.name: {search.metric}: no such metric in these runs; they have {', '.join(found)}")
    value = found[name]
    return None if value is None or not math.isfinite(value) else float(value)


def propose(search: Search, run: Callable[[list[dict[str, str]]], list[float | None]], at_once: int) -> None:
    """Draw points, run them, and draw the next by what they scored.

    The same file draws the same points again while the runs score the same, so finished runs are found.

    Args:
        search: what is drawn.
        run: points (flag -> value) -> their scores; None = failed.
        at_once: points that run side by side.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=search.goal, sampler=optuna.samplers.TPESampler(seed=0))
    done = 0
    while done < search.runs:
        trials = [study.ask() for _ in range(min(at_once, search.runs - done))]
        for trial, score in zip(trials, run([_point(search, trial) for trial in trials]), strict=True):
            if score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, score)
        done += len(trials)


def _point(search: Search, trial: Any) -> dict[str, str]:
    point = {name: values[0] if len(values) == 1 else trial.suggest_categorical(name, values) for name, values in search.choices.items()}
    for name, span in search.spans.items():
        if span.is_whole:
            point[name] = str(trial.suggest_int(name, int(span.low), int(span.high)))
        else:
            point[name] = repr(trial.suggest_float(name, span.low, span.high, log=span.is_log))
    return point
