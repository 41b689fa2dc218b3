"""Study and sweep files: read, expanded into cells, and each cell checked as a configuration."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from glot.errors import ConfigError, nearest
from glot.settings.checks import is_folder_name
from glot.settings.choices import METRICS, RANK_METRICS
from glot.settings.flags import STRESS_DEFAULTS
from glot.settings.strict_yaml import joined, load_texts, yaml_reason
from glot.study.contradictions import contradictions, is_numbers, number_problem, twice
from glot.study.search import DISTRIBUTIONS, Search, Span, read_search, read_span

WANDB_KEYS = ("program", "method", "metric", "parameters", "command", "run_cap", "name", "project", "description", "entity")
STUDY_KEYS = ("kind", "name", "runs_with", "grid", "arms", "tune", "seeds", "baseline", "compare", "margins", "published", "program")
SINGLE_KEYS = ("kind", "name", "baseline", "published", "program", "method", "run_cap")
MOST_CELLS = 100_000
"""More are a mistake: they are counted before they are listed."""
ROW_KEYS = ("value", "values", "min", "max", "distribution")
"""What a row of a sweep file's `parameters` may hold."""
TUNING_KEYS = ("seeds", "seed", "fold")
"""What a file's `tune` may hold beside flags, and an arm's own may not."""
METHODS = ("grid", "random", "bayes")
PROGRAMS: dict[str, dict[str, Any]] = {"main.py": {}, "diagnostic_stress_test.py": STRESS_DEFAULTS}
Flags = dict[str, str]
KEYS_EXPLAINED = """keys of a study file (glot init study.yaml writes a commented one):
  kind: study       what tells it from a wandb sweep file
  name              folder under --output_dir
  runs_with         flags that all runs share
  grid              flag: list of values, all crossed; or a list of such grids
  arms              name: flags; what is compared at each point of the grid; only: {flag: [values]} keeps an arm to some points,
                    tune: {flag: [values]} takes the place of the file's
  tune              flag: list of values that each arm chooses from on held-out rows; seeds: of these runs [100, 101];
                    fold: with --folds, the one that they are done on [all]
  seeds             of the reported runs
  baseline          arm that the others are tested against
  compare           pairs of arms that are compared, named before they are run: [[a, b], [a, c]]
  margins           metric: difference within which two arms count as equal
  published         table N of the paper's figures, shown beside ours; table N, BACKBONE takes those of another backbone
  program           main.py or diagnostic_stress_test.py, whose defaults hold"""


@dataclass(frozen=True)
class Cell:
    """One arm at one grid point: all flags except the seed and those that tuning chooses.

    Attributes:
        arm: its name.
        grid: the point.
        flags: of all its runs.
        tune: flag -> values to choose from on held-out rows.
        has_own_tune: that these are the arm's, in place of the file's.

    Examples:
        >>> Cell("glot", {"tau": "0.6"}, {"task": "cola", "pooling_method": "glot", "tau": "0.6"})
    """

    arm: str
    grid: Flags
    flags: Flags
    tune: dict[str, list[str]] = field(default_factory=dict)
    has_own_tune: bool = False


@dataclass(frozen=True)
class Study:
    """A study or sweep file, expanded.

    Attributes:
        name: folder under `--output_dir`.
        program: main.py or diagnostic_stress_test.py, whose default flags apply.
        cells: in the order of the file.
        seeds: seeds of the reported runs; empty = each run keeps its own `--seed`.
        tune_seeds: seeds of the tuning runs, which are not reported.
        tune_fold: the fold that tuning runs are done on, with `--folds`; None = all.
        baseline: the arm that the others are compared with.
        compare: pairs of arms that are compared, named before they are run.
        margins: metric -> difference within which two arms count as equal.
        published: table of the paper (`table N`) whose figures are shown beside ours.
        search: cells are drawn one after the other by what earlier ones scored; None = they are listed.

    Examples:
        >>> Study("tau", "main.py", [Cell("glot", {}, {"task": "cola", "pooling_method": "glot"})], seeds=[0, 1, 2])
    """

    name: str
    program: str
    cells: list[Cell]
    seeds: list[int] = field(default_factory=list)
    tune_seeds: list[int] = field(default_factory=list)
    tune_fold: int | None = None
    baseline: str | None = None
    published: str | None = None
    compare: list[tuple[str, str]] = field(default_factory=list)
    margins: dict[str, float] = field(default_factory=dict)
    search: Search | None = None


def read_study(path: Path) -> Study:
    """A study or sweep file, expanded and checked.

    Raises:
        ConfigError: lists every mistake with file and key.
    """
    try:
        content = load_texts(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {yaml_reason(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold keys such as {', '.join(STUDY_KEYS[:4])}")
    foreign = sorted({"arms", "runs_with"} & content.keys())
    if foreign and content.get("kind") != "study":
        raise ConfigError(
            f"{path}: kind: must be study, because {' and '.join(foreign)} are keys of a study file; add the line kind: study"
        )
    reader, keys = (_read_arms, STUDY_KEYS) if content.get("kind") == "study" else (_read_wandb, WANDB_KEYS)
    problems = [f"{path}: {key}: no such key{nearest(str(key), keys)}; allowed: {', '.join(keys)}" for key in content if key not in keys]
    problems += [f"{path}: {key}: must be a single word" for key in SINGLE_KEYS if not isinstance(content.get(key, ""), str)]
    if problems:
        raise ConfigError(*problems)
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
    if method not in METHODS:
        raise ConfigError(f"{path}: method: {method} cannot be run here; allowed: {', '.join(METHODS)}")
    choices, spans = _read_parameters(path, content.get("parameters"), method)
    cap, name = content.get("run_cap", ""), content.get("name", path.stem)
    if (cap or method != "grid") and (not is_numbers([cap]) or int(cap) == 0):
        what = "must be a number from 1" if cap else f"with method {method} it says how many runs to draw"
        raise ConfigError(f"{path}: run_cap: {cap or 'missing'}; {what}")
    count = int(cap) if cap else math.prod(map(len, choices.values()))
    _refuse_too_many(path, count)
    if method == "bayes":
        return Study(name, program, [], search=read_search(path, content, choices, spans, count))
    if method == "random":
        draw = random.Random(0)
        drawn = {
            **{name: partial(draw.choice, values) for name, values in choices.items()},
            **{n: partial(s.draw, draw) for n, s in spans.items()},
        }
        order = [name for name in content["parameters"] if name in drawn]
        points = _draw_apart(lambda: {name: drawn[name]() for name in order}, count)
    else:
        points = list(itertools.islice(crossed(choices), count))
    return Study(name, program, list_points(points, {**{n: v for n, v in choices.items() if len(v) > 1}, **spans}))


def _draw_apart(draw: Callable[[], Flags], count: int) -> list[Flags]:
    """Up to `count` points that differ; fewer where there are no more."""
    found: dict[tuple[str, ...], Flags] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        point = draw()
        found.setdefault(tuple(point.values()), point)
    return list(found.values())


def list_points(points: list[Flags], varied: Iterable[str]) -> list[Cell]:
    """A cell for each point; flags that vary name it."""
    shown = set(varied)
    return [Cell("", {name: value for name, value in point.items() if name in shown}, point) for point in points]


def _read_parameters(path: Path, parameters: Any, method: str) -> tuple[dict[str, list[str]], dict[str, Span]]:
    """Values and ranges of a sweep file.

    Raises:
        ConfigError: lists every malformed row.
    """
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"{path}: parameters: must map flags to value or values")
    choices: dict[str, list[str]] = {}
    spans: dict[str, Span] = {}
    problems = []
    for name, row in parameters.items():
        row = row if isinstance(row, dict) else {}
        values = [row["value"]] if "value" in row else row.get("values")
        span = read_span(row) if {"min", "max"} & row.keys() else None
        idle = [key for key in row if key not in ROW_KEYS] + ["values"] * ({"value", "values"} <= row.keys())
        if idle:
            problems.append(f"{path}: parameters.{name}: {idle[0]} has no effect here; leave it out")
        elif isinstance(values, list) and _is_list(values):
            choices[name] = values
            problems += twice(f"{path}: parameters.{name}", values)
        elif span is not None and method != "grid":
            spans[name] = span
        elif span is not None:
            problems.append(f"{path}: parameters.{name}: a range needs method random or bayes; with grid give values")
        else:
            kinds = f", or min below max with distribution {', '.join(DISTRIBUTIONS)}" if method != "grid" else ""
            problems.append(f"{path}: parameters.{name}: must hold value, or values with at least one entry{kinds}")
    if problems:
        raise ConfigError(*problems)
    return choices, spans


def _read_arms(path: Path, content: dict[str, Any], program: str) -> Study:
    common, arms, tune = (content.get(key) or {} for key in ("runs_with", "arms", "tune"))
    grids = content["grid"] if isinstance(content.get("grid"), list) else [content.get("grid") or {}]
    sections = {"runs_with": [common], "grid": grids, "arms": [arms], "tune": [tune]}
    problems = [
        f"{path}: {key}: must map names to values" for key, parts in sections.items() if not all(isinstance(p, dict) for p in parts)
    ]
    if problems:
        raise ConfigError(*problems)
    varied = [entry for grid in grids for entry in grid.items()]
    problems += [f"{path}: grid.{name}: must be a list with at least one entry" for name, values in varied if not _is_list(values)]
    problems += [f"{path}: arms.{name}: must map flags to values" for name, flags in arms.items() if not isinstance(flags, dict)]
    is_one_fold, tune = "fold" in tune, dict(tune)
    tune_seeds, tune_fold, seeds = tune.pop("seeds", ["100", "101"]), tune.pop("fold", "0"), content.get("seeds", [])
    arms, own_tune, mistaken = _read_own_tune(path, arms, tune)
    arms, only, mistakes = _read_only(path, arms, varied)
    common = _flat(f"{path}: runs_with", common, mistakes)
    problems += mistaken + mistakes
    problems += [f"{path}: tune.{name}: must be a list with at least one entry" for name, values in tune.items() if not _is_list(values)]
    problems += contradictions(path, content, grids, arms, own_tune)
    problems += number_problem(f"{path}: seeds", seeds) + number_problem(f"{path}: tune.seeds", tune_seeds)
    problems += [f"{path}: tune.fold: {tune_fold}: must be the number of a fold, such as 0"] * (not is_numbers([tune_fold]))
    if not tune and not any(own_tune.values()):
        idle = [f"{path}: tune.{key}" for key in TUNING_KEYS if key in (content.get("tune") or {})]
        problems += [f"{key}: there is no flag to tune; add one, such as lr: [1e-4, 1e-3], or leave it out" for key in idle]
    problems += [f"{path}: arms: {name!r} must be a name, without blanks around it" for name in arms if name != name.strip() or not name]
    problems += [f"{path}: arms: must hold at least one arm"] * (not arms)
    baseline = content.get("baseline")
    if baseline is not None and baseline not in arms:
        problems.append(f"{path}: baseline: {baseline} is no arm{nearest(baseline, arms)}; there are {', '.join(arms)}")
    compare, margins, mistakes = _read_comparisons(path, content, arms)
    problems += mistakes
    if problems:
        raise ConfigError(*problems)
    _refuse_too_many(path, len(arms) * sum(math.prod(map(len, grid.values())) for grid in grids))
    cells = _list_cells(path, [point for grid in grids for point in crossed(grid)], common, arms, only)
    study = Study(
        content.get("name", path.stem),
        program,
        [replace(cell, tune=own_tune.get(cell.arm, tune), has_own_tune=cell.arm in own_tune) for cell in cells],
        [int(seed) for seed in seeds],
        [int(seed) for seed in tune_seeds] if tune or any(own_tune.values()) else [],
        int(tune_fold) if is_one_fold else None,
        baseline,
        content.get("published"),
        compare,
        margins,
    )
    return _refuse_apart(path, study)


Only = dict[str, dict[str, list[str]]]


def _list_cells(path: Path, points: list[Flags], common: Flags, arms: dict[str, Flags], only: Only) -> list[Cell]:
    """Every arm at every point of the grid that its `only` allows.

    Raises:
        ConfigError: an arm stands at no point.
    """
    cells = [
        Cell(arm, point, {**common, **point, **flags})
        for point in points
        for arm, flags in arms.items()
        if all(point.get(flag) in values for flag, values in only.get(arm, {}).items())
    ]
    idle = [arm for arm in arms if not any(cell.arm == arm for cell in cells)]
    if idle:
        raise ConfigError(*(f"{path}: arms.{arm}.only: no point of the grid has these values" for arm in idle))
    return cells


def _refuse_apart(path: Path, study: Study) -> Study:
    """The study itself.

    Raises:
        ConfigError: two arms are to be compared that stand at no common point.
    """
    at: dict[str, list[Flags]] = {}
    for cell in study.cells:
        at.setdefault(cell.arm, []).append(cell.grid)
    apart = [(first, second) for first, second in study.compare if not any(point in at[second] for point in at[first])]
    if apart:
        raise ConfigError(
            *(f"{path}: compare: {first} and {second} stand at no common point of the grid; see their `only`" for first, second in apart)
        )
    return study


def _read_own_tune(
    path: Path, arms: dict[str, Any], tune: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, list[str]]], list[str]]:
    """Arms without their key `tune`, what that key says of each, and the mistakes in it. An empty one leaves the arm as it is."""
    own = {arm: flags["tune"] or {} for arm, flags in arms.items() if isinstance(flags, dict) and "tune" in flags}
    wrong = [arm for arm, given in own.items() if not isinstance(given, dict) or not all(_is_list(values) for values in given.values())]
    problems = [f"{path}: arms.{arm}.tune: must map flags to lists of values, such as {{lr: [1e-4, 1e-3]}}" for arm in wrong]
    if tune and arms and arms.keys() <= own.keys():
        problems.append(f"{path}: tune: has no effect: every arm has a tune of its own; leave it out")
    for arm, given in own.items():
        shared = [name for name in TUNING_KEYS if arm not in wrong and name in given]
        problems += [f"{path}: arms.{arm}.tune.{name}: holds for all arms; put it under the file's tune" for name in shared]
    plain = {arm: {n: v for n, v in flags.items() if n != "tune"} if isinstance(flags, dict) else flags for arm, flags in arms.items()}
    return plain, {arm: given for arm, given in own.items() if arm not in wrong}, problems


def _read_only(path: Path, arms: dict[str, Any], varied: list[tuple[str, Any]]) -> tuple[dict[str, Flags], Only, list[str]]:
    """Arms without their key `only`, what that key says of each, and the mistakes in it."""
    mappings = {arm: flags for arm, flags in arms.items() if isinstance(flags, dict)}
    only = {arm: flags["only"] for arm, flags in mappings.items() if "only" in flags}
    problems, offered = list[str](), dict[str, list[str]]()
    bare = {arm: {name: value for name, value in flags.items() if name != "only"} for arm, flags in mappings.items()}
    plain = {arm: _flat(f"{path}: arms.{arm}", flags, problems) for arm, flags in bare.items()}
    for name, values in varied:
        offered.setdefault(name, []).extend(values if _is_list(values) else [])
    for arm, given in only.items():
        if not isinstance(given, dict) or not given or not all(_is_list(values) for values in given.values()):
            problems.append(f"{path}: arms.{arm}.only: must map flags of the grid to lists of values, such as {{task: [rte, mrpc]}}")
            continue
        strange = [name for name in given if name not in offered]
        problems += [f"{path}: arms.{arm}.only: {name} is not in the grid{nearest(str(name), offered)}" for name in strange]
        missing = [(name, value) for name in given for value in given[name] if value not in offered.get(name, [value])]
        problems += [
            f"{path}: arms.{arm}.only: {name}: {value} is no value of the grid{nearest(value, offered[name])}" for name, value in missing
        ]
    return plain, only, problems


def _flat(where: str, flags: dict[str, Any], problems: list[str]) -> Flags:
    """Flags with lists joined by commas; what is nested deeper is added to the problems."""
    flat = {name: joined(value) for name, value in flags.items()}
    problems += [f"{where}.{name}: must be a single value" for name, value in flat.items() if not isinstance(value, str)]
    return flat


def _read_comparisons(
    path: Path, content: dict[str, Any], arms: dict[str, Any]
) -> tuple[list[tuple[str, str]], dict[str, float], list[str]]:
    """Pairs of arms, margins by metric, and the mistakes in them."""
    pairs, margins, problems = content.get("compare") or [], content.get("margins") or {}, []
    if not isinstance(pairs, list) or not all(_is_list(pair) and len(pair) == 2 for pair in pairs):
        return [], {}, [f"{path}: compare: must be a list of pairs of arms, such as [[a, b], [a, c]]"]
    for place, (first, second) in enumerate(pairs):
        if first == second:
            problems.append(f"{path}: compare: [{first}, {second}] is one arm twice; name two")
        elif [first, second] in pairs[:place] or [second, first] in pairs[:place]:
            problems.append(f"{path}: compare: [{first}, {second}] is named twice; name it once")
    for name in [name for pair in pairs for name in pair if name not in arms]:
        problems.append(f"{path}: compare: {name} is no arm{nearest(name, arms)}; there are {', '.join(arms)}")
    if not isinstance(margins, dict) or not all(isinstance(value, str) for value in margins.values()):
        return [], {}, [*problems, f"{path}: margins: must map metrics to differences, such as mcc: 0.03"]
    found: dict[str, float] = {}
    for name, text in margins.items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = 0.0
        if name not in (*METRICS, *RANK_METRICS) or not 0 < found[name] < 1:
            known = ", ".join((*METRICS, *RANK_METRICS))
            problems.append(f"{path}: margins: {name}: {text}; must be a metric ({known}) and a difference between 0 and 1")
    idle = f"{path}: margins: have no effect without compare; name comparisons, or leave them out"
    problems += [idle] * bool(margins and not pairs)
    return [(first, second) for first, second in pairs], found, problems


def _is_list(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def crossed(choices: dict[str, list[str]]) -> Iterator[Flags]:
    """Every combination of one value per flag, the last flag fastest."""
    return (dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values()))


def _refuse_too_many(path: Path, count: int) -> None:
    if count > MOST_CELLS:
        raise ConfigError(f"{path}: names {count:,} points, at most {MOST_CELLS:,}; leave some out, or set run_cap in a sweep")
