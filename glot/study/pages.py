"""`glot report DIR .. --html FILE`: a study, single runs, or any folder of runs, as one page that stands alone."""

import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from glot.csv_files import read_csv, read_rows
from glot.errors import ConfigError, disk_door
from glot.progress import warn
from glot.report.figures import seeded_svg
from glot.report.page import vector, write_page
from glot.report.plots import plot_arms, plot_lines
from glot.settings.choices import short_name
from glot.settings.index import flag_facts
from glot.study.caveats import caveats
from glot.study.comparisons import Comparison, comparison_table, named_comparisons, verdicts
from glot.study.drawings import draw_comparisons, draw_layer_weights, label, row_spread
from glot.study.report import (
    Row,
    arm_runs,
    check_together,
    compare,
    draw_rows_of,
    explain,
    full_table,
    load_study,
    read_row,
)
from glot.study.runs import is_listed, refuse_damaged
from glot.study.statistics import Spread, spread
from glot.training.folders import RESULT, find_results
from glot.training.predictions import text_columns_of
from glot.training.result_file import CONFIG, PREDICTIONS, main_score, read_result
from glot.words import counted

LONGEST_VALUE = 24
SEED_FLAGS = ("seed", "seeds", "order_seed", "stack_seeds", "data_dir", "model_name_or_path", "train_file", "eval_file")
"""Flags in which runs of one arm may differ: seeds, and where the same things lie."""
HARDEST, MOST_CHARACTERS = 12, 400
"""Rows shown that most runs get wrong, and characters of their texts."""


class Figure(NamedTuple):
    """A figure, inline, with what it shows in words."""

    caption: str
    svg: Any


class Table(NamedTuple):
    """A table of text."""

    caption: str
    header: list[str]
    rows: list[list[str]]

    @property
    def prose(self) -> list[bool]:
        """Whether a column holds texts, which are left-aligned and may wrap."""
        return [any(len(row[column]) > LONGEST_VALUE for row in self.rows) for column in range(len(self.header))]


class RunRow(NamedTuple):
    """One run as a row that opens to its configuration."""

    cells: list[str]
    command: str
    facts: str


class Part(NamedTuple):
    """A study, or a folder of runs, as a section of the page."""

    title: str
    sentences: list[str]
    figures: list[Figure]
    tables: list[Table]
    confusions: list[Table]
    runs: list[RunRow]
    hardest: list[Table]
    notes: list[str]


class Run(NamedTuple):
    """A finished run, its arm and grid point in words."""

    arm: str
    where: str
    folder: Path
    result: dict[str, Any]


RUN_HEADER = ["arm", "where", "seed", "metric", "score", "floor", "epoch", "seconds", "folder"]


def write_html(folders: list[Path], path: Path) -> str:
    """Write the page of some folders.

    Raises:
        ConfigError: a folder without a study or a run, or a file that cannot be written.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--html={path}: {'is a folder' if path.is_dir() else 'its folder is not there'}; name a file in a folder")
    parts = [study_part(folder) if (folder / "study.json").is_file() else runs_part(folder) for folder in folders]
    title = ", ".join(part.title for part in parts)
    with disk_door(path):
        write_page(path, "report.html", title=title, parts=parts, run_header=RUN_HEADER)
    count, size = sum(len(part.runs) for part in parts), path.stat().st_size / 2**20
    return f"{path}: {counted(len(parts), 'part')}, {counted(count, 'run')}, {size:.1f} MiB"


def study_part(folder: Path) -> Part:
    """The section of a study."""
    study = load_study(folder)
    rows = [read_row(cell, study["published"]) for cell in study["cells"]]
    check_together(rows, study["cells"])
    tests = compare(rows, study["baseline"])
    pairs = list(zip(rows, study["cells"], strict=True))
    named = named_comparisons(study, {(row.arm, label(row.point)): arm_runs(row, cell) for row, cell in pairs})
    folders = [
        (row, Path(path)) for row, cell in pairs for path in dict.fromkeys(run["run_dir"] for run in cell["runs"]) if path is not None
    ]
    runs = [Run(row.arm or "-", label(row.point), folder, read_result(folder)) for row, folder in folders]
    figures = (
        [
            Figure(
                "Named comparisons: difference, its 95 % intervals over rows (thin) and seeds (thick), margin in grey.",
                _svg(lambda to: draw_comparisons(named, to)),
            )
        ]
        if named
        else []
    )
    scored, over_rows = [row for row in rows if row.values], list[bool]()
    if scored:
        dots = {(label(row.point), row.arm or "run"): list(row.values.values()) for row in scored}
        floors = {label(row.point): row.floor for row in scored if row.floor is not None}
        arms = [(label(row.point), row.arm or "run", row.metric, row_spread(row)) for row in scored]
        figures.append(
            Figure(
                "Score by arm: mean, 95 % interval over seeds, and each seed as a dot; dashed: the floor.",
                _svg(lambda to: plot_arms(arms, to, floors, dots)),
            )
        )
        if _has_axis(scored):
            figures.append(Figure("Score over the grid.", _svg(lambda to: over_rows.append(draw_rows_of(pairs, to)))))
    figures += _curves(runs)
    layers = _maybe_svg(lambda to: draw_layer_weights(study["cells"], to))
    figures += [] if layers is None else [Figure("Learnt weight of each hidden layer.", layers)]
    tables = [Table("Named comparisons", *comparison_table(named))] if named else []
    tables += [Table("Arms with their tests, floors and published figures", *full_table(rows, tests))]
    sentences = _sentences(study["name"], rows, named, len(runs))
    notes = [explain(study, rows, any(over_rows)), *caveats(study["cells"]).split("\n\n")]
    return Part(study["name"], sentences, figures, tables, _confusions(runs), [_run_row(run) for run in runs], _hardest(runs), notes)


def runs_part(folder: Path) -> Part:
    """The section of a single run, or of all runs under a folder.

    Raises:
        ConfigError: no finished run there.
    """
    runs = _named_apart(_find_runs(folder))
    if not runs:
        raise ConfigError(f"{folder}: holds neither study.json nor a finished run; give a study's folder, a run, or a folder of runs")
    title = folder.resolve().name
    sentences = [f"{title} holds {len(runs)} finished run{'s' * (len(runs) > 1)}."]
    scored = [(score, metric, run) for run in runs for metric, score in [main_score(run.result)] if score is not None]
    if scored and len({(metric, run.where) for _, metric, run in scored}) == 1:
        score, metric, best = max(scored, key=lambda row: row[0])
        sentences.append(
            f"The best score is {metric} {score:.4f}, of {best.folder.resolve().name} ({best.result['pooler']} on {best.where})."
        )
    tables = [_metric_table(runs[0])] if len(runs) == 1 and "best" in runs[0].result else []
    return Part(title, sentences, _curves(runs), tables, _confusions(runs), [_run_row(run) for run in runs], _hardest(runs), [])


def _find_runs(folder: Path) -> list[Path]:
    """The finished runs of a folder, without the folds of a run and the summaries of seeds; damaged ones are said and left out."""
    refuse_damaged(folder)
    own = [folder / RESULT] if (folder / RESULT).is_file() and is_listed(folder / RESULT) else []
    return [path.parent for path in own or (find_results(folder) if folder.is_dir() else []) if is_listed(path)]


def _named_apart(folders: list[Path]) -> list[Run]:
    """Runs that differ in their seed alone share an arm; other data are another place, another configuration is another arm."""
    found = []
    for folder in folders:
        result, config = read_result(folder), folder / CONFIG
        saved = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {"flags": {}, "resolved": {}}
        flags = {name: value for name, value in saved["flags"].items() if name in flag_facts() and flag_facts()[name].identity}
        flags = {name: value for name, value in flags.items() if name not in SEED_FLAGS}
        found.append((folder, result, json.dumps([saved["resolved"].get("data")]), json.dumps(flags, sort_keys=True)))
    data_of: dict[str, list[str]] = {}
    kinds_of: dict[tuple[str, str], list[str]] = {}
    for _, result, data, kind in found:
        task = str(result.get("task_name", result["task"]))
        data_of.setdefault(task, []).append(data)
        kinds_of.setdefault((data, result["pooler"]), []).append(kind)
    runs = []
    for folder, result, data, kind in found:
        task = str(result.get("task_name", result["task"]))
        sets, kinds = list(dict.fromkeys(data_of[task])), list(dict.fromkeys(kinds_of[data, result["pooler"]]))
        where = task if len(sets) == 1 else f"{task}, data {sets.index(data) + 1}"
        pooler = short_name(str(result["pooler"]))
        runs.append(Run(pooler if len(kinds) == 1 else f"{pooler} {kinds.index(kind) + 1}", where, folder, result))
    return runs


def _metric_table(run: Run) -> Table:
    best, floor = run.result["best"], run.result.get("floor", {})
    rows = [[name, _number(value), _number(floor.get(name))] for name, value in best["metrics"].items()]
    return Table(f"Metrics of epoch {best['epoch']}", ["metric", "score", "floor"], rows)


def _sentences(name: str, rows: list[Row], named: list[Comparison], runs: int) -> list[str]:
    """What was asked and what came out."""
    arms, points = list(dict.fromkeys(row.arm or "run" for row in rows)), list(dict.fromkeys(label(row.point) for row in rows))
    seeds = max((len(row.values) for row in rows), default=0)
    what = f"The study {name} compares {len(arms)} arm{'s' * (len(arms) > 1)} at {len(points)} grid point{'s' * (len(points) > 1)}"
    sentences = [f"{what}, with up to {seeds} seed{'s' * (seeds != 1)} each: {runs} finished runs."]
    for point in points:
        own = [row for row in rows if label(row.point) == point and row.values]
        if own:
            best = max(own, key=lambda row: fmean(row.values.values()))
            score = row_spread(best).in_words
            floor = f"; the floor is {best.floor:.3f}" if best.floor is not None else ""
            sentences.append(f"{point}: the highest mean {best.metric} is {score}, of {best.arm or 'run'}{floor}.".removeprefix("-: "))
    if named:
        words = [word for _, word in verdicts(named)]
        listed = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        sentences.append(f"Of {len(named)} comparisons that were named beforehand: {listed}.")
    failed = sum(row.failed for row in rows)
    return sentences + ([f"{counted(failed, 'run')} failed and {'is' if failed == 1 else 'are'} not counted."] if failed else [])


def _run_row(run: Run) -> RunRow:
    result = run.result
    metric, value = main_score(result)
    seconds = result.get("seconds", {})
    epoch = str(result["best"]["epoch"]) if "best" in result else "-"
    cells = [run.arm, run.where, str(result["seed"]), metric, _number(value), _number(result.get("floor", {}).get(metric)), epoch]
    cells += [f"{sum(seconds.values()):.1f}" if seconds else "-", run.folder.resolve().name]
    config = run.folder / CONFIG
    flags = json.loads(config.read_text(encoding="utf-8"))["flags"] if config.is_file() else {}
    facts = {"versions": result.get("versions", {}), "made by": {k: v for k, v in result.get("made_by", {}).items() if k != "command"}}
    facts |= {"notes": result.get("notes", []), "flags": {name: value for name, value in flags.items() if value is not None}}
    return RunRow(cells, result.get("made_by", {}).get("command", "-"), "\n".join(in_lines(facts)))


def in_lines(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Facts as `name: value`, a line each; those inside another stand under it. Quotes would be escaped, and take half of the page."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from in_lines(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{name}: {'; '.join(map(str, value)) or '-'}"
        else:
            yield f"{indent}{name}: {value}"


def _curves(runs: list[Run]) -> list[Figure]:
    """Score by epoch of each arm, on the rows that select the epoch."""
    curves: dict[tuple[str, str], list[list[float]]] = {}
    metrics: dict[str, str] = {}
    for run in runs:
        history = run.result.get("history") or []
        values = [next(iter(epoch["metrics"].values()), None) for epoch in history]
        if len(values) > 1 and all(value is not None for value in values):
            curves.setdefault((run.where, run.arm), []).append([float(value) for value in values if value is not None])
            metrics[run.where] = next(iter(history[0]["metrics"]))
    rows: list[tuple[str, float, str, Spread]] = []
    for (where, arm), many in curves.items():
        for place in range(min(map(len, many))):
            rows.append((where, place + 1.0, arm, spread([one[place] for one in many])))
    if not rows:
        return []
    return [
        Figure(
            "Score by epoch on the rows that select it: mean and 95 % band over seeds.",
            _svg(lambda to: plot_lines(rows, {}, "epoch", metrics, to)),
        )
    ]


def _confusions(runs: list[Run]) -> list[Table]:
    """Confusion matrices of the arms, summed over their seeds."""
    sums: dict[tuple[str, str], tuple[list[str], np.ndarray, int]] = {}
    for run in runs:
        path = run.folder / "confusion.csv"
        if path.is_file():
            header, lines = read_csv(path)
            if len(lines) < 1 or len(lines) != len(header) - 1 or not all(cell.isdecimal() for line in lines for cell in line[1:]):
                warn(f"{path}: is no table of counts, so it is left out")
                continue
            counts = np.array([[int(cell) for cell in line[1:]] for line in lines])
            names, known, count = sums.get((run.where, run.arm), (header[1:], np.zeros_like(counts), 0))
            if known.shape == counts.shape and names == header[1:]:
                sums[run.where, run.arm] = names, known + counts, count + 1
    tables = []
    for (where, arm), (names, counts, count) in sums.items():
        rows = [[name, *(f"{cell / count:.1f}" for cell in line)] for name, line in zip(names, counts.tolist(), strict=True)]
        over = f", mean of {count} runs" if count > 1 else ""
        tables.append(Table(f"{arm}, {where}: rows of each label by prediction{over}", ["label", *names], rows))
    return tables


def _hardest(runs: list[Run]) -> list[Table]:
    """Per grid point the rows that most runs get wrong, with their texts."""
    wrong: dict[str, dict[str, list[int]]] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    names: dict[str, list[str]] = {}
    for run in runs:
        path = run.folder / PREDICTIONS
        if not path.is_file():
            continue
        header, table = read_rows(path)
        if "label_name" not in header:
            continue
        own = text_columns_of(header)
        names[run.where] = own
        for line in table:
            wrong.setdefault(run.where, {}).setdefault(line["row"], []).append(int(line["label_name"] != line["prediction_name"]))
            texts[run.where, line["row"]] = [line["label_name"], *(line[name][:MOST_CHARACTERS] for name in own)]
    tables = []
    for where, rows in wrong.items():
        hardest = sorted(rows, key=lambda row: (-fmean(rows[row]), int(row)))[:HARDEST]
        lines = [[row, f"{sum(rows[row])} of {len(rows[row])}", *texts[where, row]] for row in hardest if sum(rows[row])]
        if lines:
            tables.append(Table(f"Hardest rows, {where}: wrong in most runs", ["row", "wrong", "label", *names[where]], lines))
    return tables


def _has_axis(rows: list[Row]) -> bool:
    return any(len({row.point.get(key) for row in rows} - {None}) > 2 for key in ("distractor_ratio", "hidden_layer", "tau"))


_NUMBERS = itertools.count()


def _svg(draw: Callable[[Path], object]) -> Any:
    found = _maybe_svg(draw)
    assert found is not None
    return found


def _maybe_svg(draw: Callable[[Path], object]) -> Any | None:
    """A figure that a function draws into a file, as inline SVG; None where it draws nothing."""
    with tempfile.TemporaryDirectory() as place, seeded_svg():
        path = Path(place) / "figure.svg"
        draw(path)
        return vector(path.read_text(encoding="utf-8"), f"figure{next(_NUMBERS)}") if path.is_file() else None


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
