"""The report of a study: one row per arm and grid point, compared with the baseline over equal seeds."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from glot.csv_files import read_rows
from glot.data.shortcuts import SHORTCUTS
from glot.errors import DataError, library_door, reason
from glot.report.published import published_score
from glot.report.tables import csv_text, markdown
from glot.study.backbones import SIZES_EXPLAINED, draw_backbones
from glot.study.caveats import caveats
from glot.study.comparisons import ArmRuns, comparison_table, named_comparisons, section
from glot.study.drawings import draw, draw_comparisons, draw_layer_weights, label, row_spread
from glot.study.paper_table import paired_rows, paper_table
from glot.study.statistics import LEVEL, Paired, Spread, holm
from glot.training.folders import RESULT
from glot.training.metrics import floors
from glot.training.result_file import is_as_written, main_score, peek_result, read_mapping, read_result
from glot.words import counted, signed


@dataclass(frozen=True)
class Row:
    """One arm at one grid point.

    Attributes:
        point: grid key -> value.
        arm: its name in the file.
        metric: the reported metric.
        values: seed -> value; runs without a number are left out.
        tuned: flag -> value that tuning chose.
        failed: number of runs that did not finish.
        floor: score of a constant answer, where it is known.
        published: the paper's figure for this backbone, pooler and task.
        seconds: of training and evaluating, mean over the runs; None where they do not say.
        resolution: one scored row's share; 0 = not known; None = seeds change nothing, one run serves for all.

    Examples:
        >>> Row({"tau": "0.6"}, "glot", "accuracy", {0: 0.91, 1: 0.93}, {}, 0, 0.5, None)
    """

    point: dict[str, str]
    arm: str
    metric: str
    values: dict[int, float]
    tuned: dict[str, Any]
    failed: int
    floor: float | None
    published: float | None
    seconds: float | None = None
    resolution: float | None = 0.0


def write_report(folder: Path) -> str:
    """Write report.md, .csv, .tex and figures beside study.json, every run's score in seeds.csv, and return the Markdown.

    Raises:
        DataError: no study there, or runs that cannot be compared.
    """
    study = load_study(folder)
    rows = [read_row(cell, study["published"]) for cell in study["cells"]]
    pairs = list(zip(rows, study["cells"], strict=True))
    check_together(rows, study["cells"])
    tests = compare(rows, study["baseline"])
    table = full_table(rows, tests)
    short = [markdown(*short_table(rows, tests))] if len({label(row.point) for row in rows}) > 1 else []
    named = named_comparisons(study, {(row.arm, label(row.point)): arm_runs(row, cell) for row, cell in pairs})
    sized = draw_backbones(rows, study["cells"], folder / "backbones.png")
    over_rows = draw_rows_of(pairs, folder / "report.png")
    parts = [section(named), *short, markdown(*table), explain(study, rows, over_rows), SIZES_EXPLAINED * sized, caveats(study["cells"])]
    parts.append(shortcut_table(study["cells"]))
    text = "\n\n".join(filter(None, parts)) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.tex").write_text(paper_table(rows), encoding="utf-8")
    (folder / "report.csv").write_text(csv_text(*table) + "\n", encoding="utf-8")
    if named:
        (folder / "comparisons.csv").write_text(csv_text(*comparison_table(named)) + "\n", encoding="utf-8")
        draw_comparisons(named, folder / "comparisons.png")
    (folder / "seeds.csv").write_text(csv_text(*seed_table(rows)) + "\n", encoding="utf-8")
    further = [", comparisons.csv, .png"] * bool(named)
    further += [", backbones.png"] * sized
    further += [", layer_weights.png"] * draw_layer_weights(study["cells"], folder / "layer_weights.png")
    return f"{text}\nwritten: {folder}/report.md, .csv, .tex, .png, .pdf, .svg, seeds.csv{''.join(further)}"


def seed_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """One line per run: everything that a test of the study needs."""
    lines = [[row.arm or "-", label(row.point), row.metric, str(seed), repr(value)] for row in rows for seed, value in row.values.items()]
    return ["arm", "where", "metric", "seed", "value"], lines


def draw_rows_of(pairs: list[tuple[Row, dict[str, Any]]], path: Path) -> bool:
    """The figure of the arms that have a score. Returns whether it has a band over rows."""
    rows, cells = [row for row, _ in pairs if row.values], [cell for row, cell in pairs if row.values]
    floors = {label(row.point): row.floor for row in rows if row.floor is not None}
    shortcuts = {place: scores for place, cell in enumerate(cells) if (scores := shortcut_scores(cell))}
    return draw(rows, cells, floors, shortcuts, path)


def arm_runs(row: Row, cell: dict[str, Any]) -> ArmRuns:
    """The runs behind a row."""
    folders = {run["seed"]: Path(run["run_dir"]) for run in cell["runs"] if run["run_dir"] is not None}
    return ArmRuns(row.metric, row.values, folders)


def load_study(folder: Path) -> dict[str, Any]:
    """`study.json`, its runs found wherever the folder was moved to.

    Raises:
        DataError: no study there, or a damaged file.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise DataError(f"{folder}: no study.json; give the folder that glot sweep made")
    with library_door(DataError, lambda error: f"{path}: is damaged ({reason(error)}); run glot sweep again, finished runs are found"):
        study = read_mapping(path)
        if not is_as_written(study):
            raise ValueError("it was changed since it was written")
        for cell in study["cells"]:
            for run in cell["runs"]:
                inside = folder / "runs" / Path(run["run_dir"] or "").name
                if run["run_dir"] is not None and inside.is_dir():
                    run["run_dir"] = str(inside)
    return study


def first_result(cell: dict[str, Any]) -> dict[str, Any]:
    """The result of a cell's first finished run; empty where no run is finished."""
    finished = next((run["run_dir"] for run in cell["runs"] if run["run_dir"] is not None), None)
    return {} if finished is None else read_result(Path(finished))


def shortcut_scores(cell: dict[str, Any]) -> dict[str, float]:
    """Scores of length, words and bigrams alone on a cell's data; empty for tasks other than stress."""
    return first_result(cell).get("shortcuts", {})


def shortcut_table(cells: list[dict[str, Any]]) -> str:
    """One row per stress data set of a study: scores of shortcuts, and the share of texts that keep their signal when cut."""
    lines: dict[str, list[str]] = {}
    for cell in cells:
        found = first_result(cell)
        if "shortcuts" in found:
            data = {key: value for key, value in cell["grid"].items() if key not in ("hidden_layer", "tau")}
            shares = [*(found["shortcuts"][name] for name in SHORTCUTS), found["signal_kept"]]
            lines[label(data)] = [f"{100 * share:.1f} %" for share in shares]
    if not lines:
        return ""
    table = markdown(["data", *SHORTCUTS, "signal kept"], [[name, *values] for name, values in lines.items()])
    return f"{table}\n\nAccuracy of rules that understand nothing; `signal kept`: evaluation texts whose signal survives the cut."


def read_row(cell: dict[str, Any], published: str | None) -> Row:
    """The row of one cell, from its finished runs."""
    values, metric, floor, result, seconds = {}, "-", None, None, list[float]()
    for run in cell["runs"]:
        if run["run_dir"] is None:
            continue
        result = read_result(Path(run["run_dir"]))
        metric, value = main_score(result)
        known = result["floor"].get(metric) if "floor" in result else run_floor(Path(run["run_dir"]), metric)
        floor = known if floor is None else floor
        if value is not None:
            values[run["seed"]] = value
        spent = result.get("seconds", {})
        seconds += [spent.get("train", 0.0) + spent.get("evaluate", 0.0)] if spent else []
    failed = sum(run["run_dir"] is None for run in cell["runs"])
    figure = None if result is None or published is None else _published(published, result, metric, cell["grid"])
    mean = fmean(seconds) if seconds else None
    counts = list((result or {}).get("rows", {}).values())
    rows = next(iter(counts[1:] or counts), 0)  # training rows stand first, where there are others
    is_still = len(values) > 1 and len({run["run_dir"] for run in cell["runs"]}) == 1
    resolution = None if is_still else 1 / rows if rows else 0.0
    return Row(cell["grid"], cell["arm"], metric, values, cell["tuned"]["values"], failed, floor, figure, mean, resolution)


def run_floor(run_dir: Path, metric: str) -> float | None:
    """Score of a constant answer on the labels of an older run's predictions; None for similarities."""
    if not (run_dir / "predictions.csv").is_file():
        return None
    _, rows = read_rows(run_dir / "predictions.csv")
    if "score_0" not in rows[0]:
        return None
    return floors(np.array([float(row["label"]) for row in rows]), is_class=True).get(metric)


def check_together(rows: list[Row], cells: list[dict[str, Any]]) -> None:
    """Refuse to compare runs of one grid point that used different data or selection rules.

    Raises:
        DataError: the message says what differs, and between which arms.
    """
    seen: dict[str, dict[str, tuple[str, str]]] = {}
    for row, cell in zip(rows, cells, strict=True):
        for run in cell["runs"]:
            if run["run_dir"] is None:
                continue
            folder = Path(run["run_dir"])
            result = read_result(folder)
            rule = "selection" if "selection" in result else "select_by"  # older runs have only `select_by`, a sentence
            facts = {name: str(result[name]) for name in (rule, "task")}
            facts["data"] = json.loads((folder / "config.json").read_text())["resolved"]["data"]
            for name, fact in facts.items():
                first, arm = seen.setdefault(label(row.point), {}).setdefault(name, (fact, row.arm))
                if first != fact:
                    raise DataError(
                        f"{label(row.point)}: {name} differs between {arm} ({first}) and {row.arm} ({fact}); they cannot be compared"
                    )


class Test(NamedTuple):
    """An arm's test against the baseline at its point (None for the baseline itself), and p after Holm over the whole study."""

    paired: Paired | None
    p: float


def compare(rows: list[Row], baseline: str | None) -> list[Test]:
    """One test per row, against the baseline over equal seeds."""
    base = {label(row.point): row for row in rows if row.arm == baseline}
    tests = [None if row.arm == baseline or (other := base.get(label(row.point))) is None else paired_rows(row, other) for row in rows]
    corrected = holm([math.nan if test is None else test.p for test in tests])
    return [Test(test, p) for test, p in zip(tests, corrected, strict=True)]


def short_table(rows: list[Row], tests: list[Test]) -> tuple[list[str], list[list[str]]]:
    """One line per arm, one column per grid point: mean and half-width of the interval, with a star where p is below 0.05."""
    points = {label(row.point): "-" for row in rows} | {label(row.point): row.metric for row in rows if row.values}
    cells = {}
    for row, test in zip(rows, tests, strict=True):
        found = row_spread(row) if row.values else None
        star = "*" if test.p < 1 - LEVEL else ""
        cells[row.arm, label(row.point)] = "" if found is None else f"{found.in_words}{star}"
    arms = list(dict.fromkeys(row.arm for row in rows))
    header = ["arm", *(f"{point} ({metric})" for point, metric in points.items())]
    return header, [[arm or "-", *(cells.get((arm, point), "") for point in points)] for arm in arms]


def full_table(rows: list[Row], tests: list[Test]) -> tuple[list[str], list[list[str]]]:
    """One line per arm and grid point, with all statistics."""
    header = ["arm", "where", "metric", "mean", "sd", "95 %", "n", "tuned", "difference", "p (Holm)", "detectable", "floor", "published"]
    header += ["seconds"]
    lines = []
    for row, (test, p) in zip(rows, tests, strict=True):
        found = row_spread(row) if row.values else Spread(math.nan, math.nan, 0, math.nan)
        tuned = " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.tuned.items())
        difference = ["", "", ""] if test is None else [signed(test.difference), _number(p), _number(test.detectable)]
        numbers = [
            _number(found.mean),
            _number(found.sd),
            f"± {_number(found.half_width)}" if found.n > 1 and found.sd > 0 else "",
            f"{found.n}{f' (-{row.failed})' if row.failed else ''}",
        ]
        known = [_number(row.floor), _number(row.published), "" if row.seconds is None else f"{row.seconds:.1f}"]
        lines.append([row.arm or "-", label(row.point), row.metric, *numbers, tuned, *difference, *known])
    return header, lines


def _published_in_words(table: str | None, rows: list[Row]) -> str:
    if any(row.published is not None for row in rows):
        return f"`published` is the paper's figure, {table}."
    return f"`published`: {table} has no figure of these tasks, backbones and poolers." if table else ""


def _published(table: str, result: dict[str, Any], metric: str, point: dict[str, str]) -> float | None:
    """The paper's figure for a result. Names of stress tasks in the paper's table include their ratio."""
    ratio = point.get("distractor_ratio")
    task = f"{result['task']}@{float(ratio):g}" if ratio else result["task"]
    number, _, backbone = table.partition(",")  # of another backbone, where the study says so
    return published_score(backbone.strip() or result["model"], result["pooler"], task, metric, number)


def explain(study: dict[str, Any], rows: list[Row], over_rows: bool) -> str:
    """The meaning of the columns, and the study's cost."""
    failed = sum(row.failed for row in rows)
    against = ""
    if study["baseline"]:
        kind = "exploratory, " if study.get("compare") else ""
        against = f"`difference`, `p` and `detectable` are {kind}against the arm {study['baseline']!r}: paired t-test over seeds, "
    sentences = [
        "Mean ± half-width of the 95 % t-interval over seeds; * = p below 0.05 after Holm. `sd` is over seeds.",
        "An arm in which seeds change nothing has no interval over them, and two of them have no test."
        if any(map(_is_still, rows))
        else "",
        f"{against}p corrected by Holm over the table, and the smallest difference that these seeds could have shown." if against else "",
        "`seconds` of training and evaluating, mean over the runs.",
        "`floor` is what a constant answer scores (majority class; F1 of answering 1 to everything).",
        _published_in_words(study["published"], rows),
        f"{counted(failed, 'run')} failed and {'is' if failed == 1 else 'are'} not counted." if failed else "",
        "In the figure, the band of an arm whose seeds all score alike, or that has one seed, is that of a bootstrap over rows."
        if over_rows
        else "",
        f"Training and evaluating these runs took {run_seconds(study['cells']):,.0f} s of one process, tuning not counted.",
        f"The last call of glot sweep took {study['seconds']['total']:,.0f} s, {study['seconds']['encode']:,.0f} s of it in the backbone.",
    ]
    return " ".join(filter(None, sentences))


def run_seconds(cells: list[dict[str, Any]]) -> float:
    """Seconds of training and evaluating the finished runs, each counted once though it may serve several seeds."""
    folders = {run["run_dir"] for cell in cells for run in cell["runs"] if run["run_dir"] is not None}
    spent = [peek_result(Path(folder) / RESULT).get("seconds", {}) for folder in sorted(folders)]
    return sum(one.get("train", 0.0) + one.get("evaluate", 0.0) for one in spent)


def _is_still(row: Row) -> bool:
    return row.resolution is None


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
