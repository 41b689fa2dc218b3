"""Studies: many runs from one file, on this machine, without a server.

There are two kinds of file: wandb's sweep format, and study files (`kind: study`) with arms, tuning and a baseline.
Each pair of backbone and data is encoded once. Finished runs are found by their fingerprint, so a killed study can be resumed.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glot.errors import ConfigError, nearest
from glot.nn.poolers import own_codes
from glot.progress import say
from glot.settings.checks import is_folder_name
from glot.settings.choices import EVALUATIONS
from glot.settings.config import RunConfig
from glot.settings.flags import STRESS_DEFAULTS, parse
from glot.settings.seeds import parse_seeds
from glot.study.workers import RunPool, open_pool

WANDB_KEYS = ("program", "method", "metric", "parameters", "command", "run_cap", "name", "project", "description", "entity")
STUDY_KEYS = ("kind", "name", "runs_with", "grid", "arms", "tune", "seeds", "baseline", "published", "program")
PROGRAMS: dict[str, dict[str, Any]] = {"main.py": {}, "diagnostic_stress_test.py": STRESS_DEFAULTS}
Flags = dict[str, str]
KEYS_EXPLAINED = """keys of a study file (glot init study.yaml writes a commented one):
  kind: study       what tells it from a wandb sweep file
  name              folder under --output_dir
  runs_with         flags that all runs share
  grid              flag: list of values, all crossed; or a list of such grids
  arms              name: flags; what is compared at each point of the grid
  tune              flag: list of values that each arm chooses from on held-out rows; seeds: of these runs [100, 101]
  seeds             of the reported runs
  baseline          arm that the others are tested against
  published         table N of the paper's figures, shown beside ours
  program           main.py or diagnostic_stress_test.py, whose defaults hold"""


@dataclass(frozen=True)
class Cell:
    """One arm at one grid point: all flags except the seed and those that tuning chooses.

    Examples:
        >>> Cell("glot", {"tau": "0.6"}, {"task": "cola", "pooling_method": "glot", "tau": "0.6"})
    """

    arm: str
    grid: Flags
    flags: Flags


@dataclass(frozen=True)
class Study:
    """A study or sweep file, expanded.

    Attributes:
        name: folder under `--output_dir`.
        program: main.py or diagnostic_stress_test.py, whose default flags apply.
        cells: in the order of the file.
        seeds: seeds of the reported runs; empty = each run keeps its own `--seed`.
        tune: flag -> values to choose from, per cell, on held-out rows.
        tune_seeds: seeds of the tuning runs, which are not reported.
        baseline: the arm that the others are compared with.
        published: table of the paper (`table N`) whose figures are shown beside ours.

    Examples:
        >>> Study("tau", "main.py", [Cell("glot", {}, {"task": "cola", "pooling_method": "glot"})], seeds=[0, 1, 2])
    """

    name: str
    program: str
    cells: list[Cell]
    seeds: list[int] = field(default_factory=list)
    tune: dict[str, list[str]] = field(default_factory=dict)
    tune_seeds: list[int] = field(default_factory=list)
    baseline: str | None = None
    published: str | None = None


def read_study(path: Path) -> Study:
    """A study or sweep file, expanded and checked.

    Raises:
        ConfigError: lists every mistake with file and key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold keys such as {', '.join(STUDY_KEYS[:4])}")
    reader, keys = (_read_arms, STUDY_KEYS) if content.get("kind") == "study" else (_read_wandb, WANDB_KEYS)
    problems = [f"{path}: {key}: no such key{nearest(key, keys)}; allowed: {', '.join(keys)}" for key in content if key not in keys]
    program = Path(content.get("program", "main.py")).name
    name = str(content.get("name", path.stem))
    if not is_folder_name(name):
        problems.append(f"{path}: name: {name[:60]} must be a folder name without slashes, and no dots alone")
    if program not in PROGRAMS:
        problems.append(f"{path}: program: {program} is none of {', '.join(PROGRAMS)}")
    if problems:
        raise ConfigError(*problems)
    return reader(path, content, program)


def _read_wandb(path: Path, content: dict[str, Any], program: str) -> Study:
    method = content.get("method", "grid")
    if method not in ("grid", "random"):
        raise ConfigError(f"{path}: method: {method} cannot be run here; allowed: grid, random")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"{path}: parameters: must map flags to value or values")
    choices: dict[str, list[str]] = {}
    problems = []
    for name, row in parameters.items():
        values = [row["value"]] if isinstance(row, dict) and "value" in row else row.get("values") if isinstance(row, dict) else None
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            choices[name] = values
        else:
            problems.append(f"{path}: parameters.{name}: must hold value, or values with at least one entry")
    if problems:
        raise ConfigError(*problems)
    points = _crossed(choices)
    if method == "random":
        cap = content.get("run_cap", "")
        if not cap.isdecimal():
            raise ConfigError(f"{path}: run_cap: {cap or 'missing'}; with method random it says how many runs to draw")
        points = [{name: draw.choice(values) for name, values in choices.items()} for draw in [random.Random(0)] for _ in range(int(cap))]
    elif content.get("run_cap"):
        points = points[: int(content["run_cap"])]
    varied = {name for name, values in choices.items() if len(values) > 1}
    cells = [Cell("", {name: value for name, value in point.items() if name in varied}, point) for point in points]
    return Study(content.get("name", path.stem), program, cells)


def _read_arms(path: Path, content: dict[str, Any], program: str) -> Study:
    common, arms, tune = (content.get(key) or {} for key in ("runs_with", "arms", "tune"))
    grids = content.get("grid") or {}
    grids = grids if isinstance(grids, list) else [grids]
    sections = {"runs_with": [common], "grid": grids, "arms": [arms], "tune": [tune]}
    problems = [
        f"{path}: {key}: must map names to values" for key, parts in sections.items() if not all(isinstance(p, dict) for p in parts)
    ]
    if problems:
        raise ConfigError(*problems)
    varied = [entry for grid in grids for entry in grid.items()]
    problems += [f"{path}: grid.{name}: must be a list with at least one entry" for name, values in varied if not _is_list(values)]
    problems += [f"{path}: arms.{name}: must map flags to values" for name, flags in arms.items() if not isinstance(flags, dict)]
    tune = dict(tune)
    tune_seeds = tune.pop("seeds", ["100", "101"])
    problems += [f"{path}: tune.{name}: must be a list with at least one entry" for name, values in tune.items() if not _is_list(values)]
    seeds = content.get("seeds", [])
    problems += [
        f"{path}: {key}: must be a list of numbers"
        for key, values in (("seeds", seeds), ("tune.seeds", tune_seeds))
        if not _is_numbers(values)
    ]
    if not arms:
        problems.append(f"{path}: arms: must hold at least one arm")
    baseline = content.get("baseline")
    if baseline is not None and baseline not in arms:
        problems.append(f"{path}: baseline: {baseline} is no arm{nearest(baseline, arms)}; there are {', '.join(arms)}")
    if problems:
        raise ConfigError(*problems)
    cells = [Cell(arm, point, {**common, **point, **flags}) for grid in grids for point in _crossed(grid) for arm, flags in arms.items()]
    return Study(
        content.get("name", path.stem),
        program,
        cells,
        [int(seed) for seed in seeds],
        tune,
        [int(seed) for seed in tune_seeds] if tune else [],
        baseline,
        content.get("published"),
    )


def _is_list(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _is_numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value.isdecimal() for value in values)


def _crossed(choices: dict[str, list[str]]) -> list[Flags]:
    return [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]


def resolve_cells(path: Path, study: Study) -> list[RunConfig]:
    """One configuration per cell, with `data_seed` 0 unless the file sets it.

    Raises:
        ConfigError: flags that are wrong, have no effect in their arm, or make two arms equal; each line names file and cell.
    """
    problems, configs = [], []
    arm_only = {cell.arm: set(cell.flags) for cell in study.cells if cell.arm}
    shared = set.intersection(*arm_only.values()) if arm_only else set()
    found: dict[str, list[str]] = {}  # mistake -> the cells that have it, so that a mistake in many cells is one line
    for cell in study.cells:
        where = f"{path}: {', '.join([*filter(None, [cell.arm]), *(f'{name}={value}' for name, value in cell.grid.items())])}"
        words = [f"--{name}={value}" for name, value in {**cell.flags, **{name: values[0] for name, values in study.tune.items()}}.items()]
        try:
            parsed = parse(words, study.program, PROGRAMS[study.program])
            own_codes(parsed.config.pooler, parsed.config.graph)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(where)
            continue
        inert = [name for name in parsed.inert if name in set(cell.flags) - shared] if cell.arm else []
        problems += [f"{where}: --{name} has no effect in this arm; leave it out" for name in inert]
        config = parsed.config
        if study.tune and config.data.task in EVALUATIONS:
            problems.append(f"{where}: tune: --task={config.data.task} trains nothing, so there is nothing to tune")
        configs.append(config if config.data.data_seed is not None else config.with_values(data_seed=0))
    seen: dict[str, Cell] = {}
    for cell, config in zip(study.cells, configs, strict=False):
        twin = seen.setdefault(config.fingerprint(), cell) if not problems and not found else cell
        if twin is not cell and twin.grid == cell.grid:
            problems.append(f"{path}: arms {twin.arm} and {cell.arm} cannot differ: they are the same run")
    for problem, cells in found.items():
        more = f" (and so in {len(cells) - 1} more)" if len(cells) > 1 else ""
        problems.append(f"{cells[0]}: {problem}{more}")
    if problems:
        raise ConfigError(*problems)
    return configs


class SweepOptions(NamedTuple):
    """How a study is run: `retry` = how often failed runs are tried again, `overwrite` = finished runs are done anew."""

    retry: int = 0
    overwrite: bool = False


def run_study(
    path: Path, output_dir: str = "runs", seeds: list[int] | None = None, jobs: int = 1, options: SweepOptions | None = None
) -> Path:
    """Run every cell of a file with every seed. Returns the study's folder, which `glot report` reads.

    A run that fails is recorded and does not stop the others.

    Raises:
        ConfigError: mistakes in the file.
    """
    from glot import recipes
    from glot.training.checkpoint import write_json

    study = read_study(path)
    configs = resolve_cells(path, study)
    chosen_seeds = seeds or study.seeds
    folder = Path(output_dir) / study.name
    if not folder.resolve().is_relative_to(Path(output_dir).resolve()):
        raise ConfigError(f"--output_dir={output_dir}: {folder} is a link that leads out of it; move it away")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    how, start, began = options or SweepOptions(), time.perf_counter(), time.time()
    encoded = recipes.encode_once(configs)
    configs = [config.with_values(override_precompute=False) for config in configs]  # `encode_once` has rebuilt the stores
    with open_pool(jobs) as pool:
        work = RunPool(pool, str(folder / "runs"), how.overwrite)
        tuned = tune_cells(study, configs, work)
        plan = [
            [config.with_values(**choice["values"], seed=seed) for seed in chosen_seeds or [config.train.seed]]
            for config, choice in zip(configs, tuned, strict=True)
        ]
        asked = [config for runs in plan for config in runs]
        outcomes = work.run(asked, f"{study.name}: runs")
        for again in range(how.retry):
            failed = [place for place, outcome in enumerate(outcomes) if outcome["run_dir"] is None]
            tried = work.run([asked[place] for place in failed], f"{study.name}: retry {again + 1}") if failed else []
            for place, outcome in zip(failed, tried, strict=True):
                outcomes[place] = outcome
    finished = [Path(outcome["run_dir"]) / "result.json" for outcome in outcomes if outcome["run_dir"]]
    reused = sum(path.stat().st_mtime < began for path in finished)
    say(f"{study.name}: {reused} of {len(outcomes)} runs reused")
    cells, results = [], iter(outcomes)
    for cell, runs, choice in zip(study.cells, plan, tuned, strict=True):
        rows = [{"seed": config.train.seed, **next(results)} for config in runs]
        cells.append({"arm": cell.arm, "grid": cell.grid, "flags": cell.flags, "tuned": choice, "runs": rows})
    total = round(time.perf_counter() - start, 1)
    record: dict[str, Any] = {"name": study.name, "baseline": study.baseline, "published": study.published, "cells": cells}
    record["seconds"] = {"total": total, "encode": round(encoded, 1)}
    write_json(folder / "study.json", record)
    return folder


def tune_cells(study: Study, configs: list[RunConfig], work: RunPool) -> list[dict[str, Any]]:
    """Per cell, the values with the best mean score on held-out training rows over the tuning seeds, and all scores.

    The tuning seeds of a trial share a batch order where they can train stacked. Reported runs never do, because a shared order hides part
    of the spread over seeds (benchmarks/README.md).
    """
    if not study.tune:
        return [{"values": {}, "scores": []} for _ in configs]
    points = _crossed(study.tune)
    trials = [
        [config.with_values(**_typed(point), seed=seed, selection="heldout") for seed in study.tune_seeds]
        for config in configs
        for point in points
    ]
    outcomes = iter(work.run([config for runs in trials for config in runs], f"{study.name}: tuning", stack=True))
    means = []
    for runs in trials:
        scores = [_heldout_score(outcome["run_dir"]) for outcome in (next(outcomes) for _ in runs) if outcome["run_dir"]]
        means.append(sum(scores) / len(scores) if scores else float("-inf"))
    chosen = []
    for first in range(0, len(means), len(points)):
        scores = means[first : first + len(points)]
        best = max(range(len(points)), key=scores.__getitem__)
        rows = [{**point, "score": score if score > float("-inf") else None} for point, score in zip(points, scores, strict=True)]
        chosen.append({"values": _typed(points[best]), "scores": rows})
    return chosen


def _typed(point: Flags) -> dict[str, Any]:
    from glot.settings.flags import convert

    return {name: convert(name, value) for name, value in point.items()}


def _heldout_score(run_dir: str) -> float:
    """The reported metric on the held-out rows at the selected epoch."""
    from glot.training.checkpoint import read_result

    result = read_result(Path(run_dir))
    entry = result["history"][result["best"]["epoch"] - 1]
    first = next(iter(entry["metrics"].values()))
    return float("-inf") if first is None else float(first)


def parse_sweep(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot sweep`."""
    parser = argparse.ArgumentParser(
        prog="glot sweep",
        description="Run a wandb sweep file or a study file on this machine.",
        epilog=KEYS_EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", help="0,1,2 or 0..9, in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores [1]")
    parser.add_argument("--output_dir", default="runs", help="the study's folder is made under it [runs]")
    parser.add_argument("--retry", type=int, default=0, help="how often runs that failed are tried again [0]")
    parser.add_argument("--overwrite", action="store_true", help="do finished runs anew")
    parser.add_argument("--dry_run", action="store_true", help="check the file, list the runs, and stop")
    return parser.parse_args(argv)


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
    count = len(seeds or study.seeds or [0])
    tuning = len(study.tune_seeds) * len(_crossed(study.tune)) if study.tune else 0
    for cell, config in zip(study.cells, configs, strict=True):
        point = " ".join(f"{name}={value}" for name, value in cell.grid.items())
        yield f"{cell.arm or '-':20} {point:40} {config.pooler.pooling_method}, {count} seeds, {tuning} tuning runs"
    yield f"{len(configs) * (count + tuning)} runs in all"


def sweep_seeds(text: str | None) -> list[int] | None:
    """The value of `--seeds`; None where it is not given.

    Raises:
        ConfigError: not a list of different numbers.
    """
    try:
        return None if text is None else parse_seeds(text)
    except ValueError as error:
        raise ConfigError(f"--seeds={text}: must be different numbers such as 0,1,2 or 0..9") from error
