"""Studies: many runs from one file, on this machine, without a server.

There are two kinds of file: wandb's sweep format, and study files (`kind: study`) with arms, tuning and a baseline.
Each pair of backbone and data is encoded once. Finished runs are found by their fingerprint, so a killed study can be resumed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from glot.cache import read_facts
from glot.csv_files import read_csv
from glot.errors import ConfigError
from glot.progress import say
from glot.report.tables import markdown
from glot.settings.commands import given_path
from glot.settings.config import RunConfig
from glot.settings.effects import has_gradient
from glot.settings.flags import Parser
from glot.settings.sections import OutputConfig
from glot.settings.seeds import parse_seeds
from glot.settings.strict_yaml import is_same_yaml
from glot.study.cluster import EXECUTORS, JOBS, ClusterPool
from glot.study.files import KEYS_EXPLAINED, Cell, Flags, Study, list_points, read_study
from glot.study.resolution import acting_points, check_inputs, resolve_cells, typed
from glot.study.search import metric_of, propose
from glot.study.workers import RunPool, open_pool
from glot.training.folders import make_folder
from glot.words import counted


class SweepOptions(NamedTuple):
    """How a study is run.

    Attributes:
        retry: how often failed runs are tried again.
        overwrite: finished runs are done anew.
        executor: a name of `EXECUTORS`.
        cluster: options of its jobs.
    """

    retry: int = 0
    overwrite: bool = False
    executor: str = "processes"
    cluster: dict[str, Any] = {}  # noqa: RUF012 - never changed


def run_study(
    path: Path, output_dir: str = "runs", seeds: list[int] | None = None, jobs: int = 1, options: SweepOptions | None = None
) -> Path:
    """Run every cell of a file with every seed. Returns the study's folder, which `glot report` reads.

    A run that fails is recorded and does not stop the others.

    Raises:
        ConfigError: mistakes in the file, or no cell whose rows and backbone can be read.
    """
    from glot import reuse
    from glot.training.wandb_runs import in_group

    study = read_study(path)
    configs = resolve_cells(path, study)
    chosen_seeds = seeds or study.seeds
    if study.search is not None and chosen_seeds:
        raise ConfigError(f"--seeds={','.join(map(str, chosen_seeds))}: a search draws one run per point; put seed into its parameters")
    folder = Path(output_dir) / study.name
    if not folder.resolve().is_relative_to(Path(output_dir).resolve()):
        raise ConfigError(f"--output_dir={output_dir}: {folder} is a link that leads out of it; move it away")
    _refuse_other_study(folder, path)
    readable = check_inputs(path, study, configs)
    make_folder(folder / "runs")
    how, start, began = options or SweepOptions(), time.perf_counter(), time.time()
    encoded = reuse.encode_once(readable)
    configs = [config.with_values(override_precompute=False) for config in configs]  # `encode_once` has rebuilt the stores
    cluster = None if how.executor == "processes" else partial(ClusterPool, how.executor, folder / JOBS, jobs, how.cluster)
    with in_group(study.name), open_pool(jobs, cluster) as pool:
        work = RunPool(pool, str(folder / "runs"), how.overwrite)
        if study.search is not None:
            study, configs = search_cells(path, study, work, jobs)
        tuned = tune_cells(study, configs, work)
        plan = [
            _with_seeds(config.with_values(**choice["values"]), chosen_seeds or [config.train.seed])
            for config, choice in zip(configs, tuned, strict=True)
        ]
        asked = [config for runs in plan for config in runs]
        outcomes = _tried(work, asked, study.name, how.retry)
    finished = {Path(outcome["run_dir"]) / "result.json" for outcome in outcomes if outcome["run_dir"]}  # a run may serve several seeds
    reused = sum(path.stat().st_mtime < began for path in finished)
    say(f"{study.name}: {reused} of {counted(len(finished), 'run')} reused")
    cells, results = [], iter(outcomes)
    for cell, runs, choice in zip(study.cells, plan, tuned, strict=True):
        rows = [{"seed": seed, **next(results)} for seed in chosen_seeds or [runs[0].train.seed]]
        cells.append({"arm": cell.arm, "grid": cell.grid, "flags": cell.flags, "tuned": choice, "runs": rows})
    _write_study(folder, path, study, cells, {"total": round(time.perf_counter() - start, 1), "encode": round(encoded, 1)})
    return folder


def _tried(work: RunPool, asked: list[RunConfig], name: str, retry: int) -> list[dict[str, Any]]:
    """What came of each run; those that failed are tried again, `retry` times."""
    outcomes = work.run(asked, f"{name}: runs")
    for again in range(retry):
        failed = [place for place, outcome in enumerate(outcomes) if outcome["run_dir"] is None]
        tried = work.run([asked[place] for place in failed], f"{name}: retry {again + 1}") if failed else []
        for place, outcome in zip(failed, tried, strict=True):
            outcomes[place] = outcome
    return outcomes


def _refuse_other_study(folder: Path, path: Path) -> None:
    """Refuse a folder that holds the study of another file, which says something else.

    Raises:
        ConfigError: it does.
    """
    known = read_facts(folder / "study.json").get("file")
    other = path if known is None else Path(known)
    if other.is_file() and other.resolve() != path.resolve() and not is_same_yaml(other, path):
        raise ConfigError(f"{path}: name: {folder} holds the study of that name of {other}; choose another name, or --output_dir")


def _write_study(folder: Path, path: Path, study: Study, cells: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    from glot.training.result_file import write_checked

    record: dict[str, Any] = {
        "name": study.name,
        "file": str(path.resolve()),
        "baseline": study.baseline,
        "published": study.published,
        "cells": cells,
    }
    record |= {"compare": study.compare, "margins": study.margins, "seconds": seconds}
    write_checked(folder / "study.json", record)


def search_cells(path: Path, study: Study, work: RunPool, jobs: int) -> tuple[Study, list[RunConfig]]:
    """Run a search. The cells that it drew, in order, as a study whose runs are finished."""
    search = study.search
    assert search is not None
    cells: list[Cell] = []
    configs: list[RunConfig] = []
    varied = [*(name for name, values in search.choices.items() if len(values) > 1), *search.spans]

    def run(points: list[Flags]) -> list[float | None]:
        """Scores of some points."""
        from glot.training.result_file import read_result

        own = list_points(points, varied)
        found = resolve_cells(path, replace(study, cells=own))
        cells.extend(own)
        configs.extend(found)
        outcomes = work.run(found, f"{study.name}: {len(cells)} of {search.runs}")
        return [metric_of(search, read_result(Path(one["run_dir"]))) if one["run_dir"] else None for one in outcomes]

    propose(search, run, jobs)
    return replace(study, cells=cells), configs


def _with_seeds(config: RunConfig, seeds: list[int]) -> list[RunConfig]:
    """A configuration for each seed; without a gradient the seed decides nothing, and one run serves for all."""
    return [config.with_values(seed=seed if has_gradient(config) else seeds[0]) for seed in seeds]


def tune_cells(study: Study, configs: list[RunConfig], work: RunPool) -> list[dict[str, Any]]:
    """Per cell, the values with the best mean score on held-out training rows over the tuning seeds, and all scores.

    The tuning seeds of a trial share a batch order where they can train stacked. Reported runs never do, because a shared order hides part
    of the spread over seeds (benchmarks/README.md).
    """
    fold: dict[str, Any] = {} if study.tune_fold is None else {"fold": study.tune_fold}
    points = [acting_points(cell.tune, config) for cell, config in zip(study.cells, configs, strict=True)]
    trials = [
        [one.with_values(selection="heldout", **fold) for one in _with_seeds(config.with_values(**typed(point)), study.tune_seeds)]
        for config, own in zip(configs, points, strict=True)
        for point in own
    ]
    outcomes = iter(work.run([config for runs in trials for config in runs], f"{study.name}: tuning", stack=True))
    scores = ([_heldout_score(outcome["run_dir"]) for outcome in (next(outcomes) for _ in runs) if outcome["run_dir"]] for runs in trials)
    chosen = list[dict[str, Any]]()
    for own in points:
        rows = [_tuned_row(point, next(scores)) for point in own]
        means = [float("-inf") if row["score"] is None else row["score"] for row in rows]
        best = max(range(len(own)), key=means.__getitem__, default=None)
        chosen.append({"values": {} if best is None else typed(own[best]), "scores": rows})
    return chosen


def _tuned_row(point: dict[str, str], scores: list[float]) -> dict[str, Any]:
    """A tried point with its mean score and those by seed; None where no run gave a score."""
    mean = fmean(scores) if scores else float("-inf")
    return {**point, "score": mean if mean > float("-inf") else None, "by_seed": scores if mean > float("-inf") else []}


def _heldout_score(run_dir: str) -> float:
    """The reported metric on the held-out rows: of a fitted head, or of the trained one at the selected epoch."""
    from glot.training.result_file import read_result

    result = read_result(Path(run_dir))
    if "folds" in result:
        return fmean(_heldout_score(str(folder)) for folder in sorted(Path(run_dir).glob("fold-*")))
    scores = result.get("heldout") or result["history"][result["best"]["epoch"] - 1]["metrics"]  # the former of a fitted head
    first = next(iter(scores.values()))
    return float("-inf") if first is None else float(first)


def parse_sweep(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot sweep`."""
    parser = Parser(
        prog="glot sweep",
        description="Run a wandb sweep file or a study file on this machine.",
        epilog=KEYS_EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=given_path)
    parser.add_argument("--seeds", help="0,1,2 or 0..9, in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores [1]")
    parser.add_argument("--executor", choices=EXECUTORS, default="processes", help="where runs are done; --jobs at a time [processes]")
    parser.add_argument("--executor_options", metavar="NAME=VALUE,..", help="of slurm's jobs: timeout_min=60,slurm_partition=gpu")
    parser.add_argument(
        "--output_dir", type=lambda text: str(given_path(text)), default="runs", help="the study's folder is made under it [runs]"
    )
    parser.add_argument("--retry", type=int, default=0, help="how often runs that failed are tried again [0]")
    parser.add_argument("--overwrite", action="store_true", help="do finished runs anew")
    parser.add_argument("--dry_run", action="store_true", help="check the file, list the runs, and stop")
    return parser.parse_args(argv)


def track_report(folder: Path) -> None:
    """The report's tables and figures as a run of wandb, where the study's runs are reported to it."""
    from glot.training.tracking import names_of, resolve_report_to
    from glot.training.wandb_runs import track_study

    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    asked = {cell["flags"].get("report_to", OutputConfig.report_to) for cell in study["cells"]}
    if "wandb" not in {name for report_to in asked for name in names_of(resolve_report_to(report_to))}:
        return
    tables = {name: read_csv(path) for name in ("report", "comparisons", "seeds") if (path := folder / f"{name}.csv").is_file()}
    track_study(study["name"], folder, tables, sorted(folder.glob("*.png")))


def failed_runs(folder: Path) -> list[str]:
    """A line per run of a finished study that failed."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    cells = [(cell, run) for cell in study["cells"] for run in cell["runs"] if run["run_dir"] is None]
    return [f"{cell['arm'] or '-'} {' '.join(cell['grid'].values())} seed {run['seed']}: {run['error']}" for cell, run in cells]


def list_runs(path: Path, seeds: list[int] | None) -> Iterator[str]:
    """One line per cell, for `--dry_run`; a checkpoint need not be there yet."""
    study = read_study(path)
    missing = {file for cell in study.cells if (file := cell.flags.get("checkpoint_path", "")) and not Path(file).exists()} - {"standard"}
    cells = [replace(cell, flags={name: value for name, value in cell.flags.items() if value not in missing}) for cell in study.cells]
    configs = resolve_cells(path, replace(study, cells=cells))
    for file in sorted(missing):
        yield f"not there yet: --checkpoint_path={file}"
    table, total = list[list[str]](), 0
    for cell, config in zip(study.cells, configs, strict=True):
        point = " ".join(f"{name}={value}" for name, value in cell.grid.items())
        moves = has_gradient(config)  # else one run serves for all seeds
        count = len(seeds or study.seeds or [0]) if moves else 1
        tuning = len(acting_points(cell.tune, config)) * (len(study.tune_seeds) if moves else 1)
        total += count + tuning
        what = f"{count} seed{'s' * (count > 1)}", f"{tuning} tuning runs" if tuning else "nothing to tune"
        table.append([cell.arm or "-", point, config.pooler.pooling_method, *what])
    yield from markdown(["arm", "point", "pooler", "seeds", "tuning"], table).splitlines()
    if study.search is not None:
        total = study.search.runs
        yield f"method bayes: {total} runs are drawn one after the other, by {study.search.metric} ({study.search.goal})"
    yield f"{counted(total, 'run')} in all"


def sweep_seeds(text: str | None) -> list[int] | None:
    """The value of `--seeds`; None where it is not given.

    Raises:
        ConfigError: not a list of different numbers.
    """
    try:
        return None if text is None else parse_seeds(text)
    except ValueError as error:
        raise ConfigError(f"--seeds={text}: must be different numbers such as 0,1,2 or 0..9") from error
