"""`glot compare RUN1 RUN2`: what differs in configuration, versions and scores, and which rows changed."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glot.csv_files import read_rows
from glot.errors import CheckpointError, ConfigError, disk_door
from glot.report.tables import markdown
from glot.settings.config import RunConfig, read_config
from glot.settings.effects import acting_flags
from glot.settings.index import flag_facts
from glot.study.comparisons import RESAMPLES, read_predictions
from glot.study.statistics import draw_rows, interval, mcnemar, resampled, wald
from glot.training.predictions import text_columns_of
from glot.training.result_file import CONFIG, PREDICTIONS, read_result
from glot.words import signed

MOST_ROWS, MOST_CHARACTERS = 10, 200
UNTOLD = ("output_dir", "run_name", "overwrite", "store_dir", "verbose", "log_every", "report_to", "save_dir")
"""Flags that say where results go, and change none."""


class Difference(NamedTuple):
    """What two runs differ in. Tables are header and rows of text.

    Attributes:
        names: of both runs.
        flags: flag, and its value in both.
        versions: library, and its version in both.
        scores: metric, both scores, their difference.
        sentences: what the rows say.
        rows: rows whose answer changed, the first `MOST_ROWS` of the terminal, all of a page.
    """

    names: tuple[str, str]
    flags: list[list[str]]
    versions: list[list[str]]
    scores: list[list[str]]
    sentences: list[str]
    rows: tuple[list[str], list[list[str]]]


def compare_runs(first: Path, second: Path) -> Difference:
    """Compare two finished runs.

    Raises:
        CheckpointError: no finished run.
        ConfigError: both are the same folder.
    """
    if first.resolve() == second.resolve():
        raise ConfigError(f"{second}: is the same run twice; name two")
    results = [read_result(folder) for folder in (first, second)]
    for folder, result in zip((first, second), results, strict=True):
        if "best" not in result and "scores" not in result:
            raise CheckpointError(f"{folder}: holds several runs; name one of them, such as {folder}/seed-0")
    configs = [RunConfig.from_dict(read_config(folder / CONFIG)["flags"]) for folder in (first, second)]
    sentences, rows = _rows(first, second, results)
    names = (first.resolve().name, second.resolve().name)
    names = names if names[0] != names[1] else (str(first), str(second))
    return Difference(names, _flags(configs), _versions(results), _scores(results), sentences, rows)


def _flags(configs: list[RunConfig]) -> list[list[str]]:
    """Flags that differ, with a dash where one does nothing in a run."""
    known = []
    for config in configs:
        flat, acting = config.to_dict(), set(acting_flags(config))
        known.append({name: str(flat[name]) if name in acting else "-" for name in flat})
    wanted = [name for name in flag_facts() if name not in UNTOLD]
    return [[f"--{name}", *(one[name] for one in known)] for name in wanted if known[0][name] != known[1][name]]


def _versions(results: list[dict[str, Any]]) -> list[list[str]]:
    known = [{**result.get("versions", {}), "commit": str(result.get("made_by", {}).get("commit"))} for result in results]
    names = dict.fromkeys([*known[0], *known[1]])
    return [[name, *(str(one.get(name, "-")) for one in known)] for name in names if known[0].get(name) != known[1].get(name)]


def _scores(results: list[dict[str, Any]]) -> list[list[str]]:
    known = [result["scores"] if "scores" in result else result["best"]["metrics"] for result in results]
    lines = []
    for name in dict.fromkeys([*known[0], *known[1]]):
        one, other = (found.get(name) for found in known)
        change = signed(other - one) if one is not None and other is not None else "-"
        lines.append([name, *("-" if value is None else f"{value:.4f}" for value in (one, other)), change])
    return lines


def _rows(first: Path, second: Path, results: list[dict[str, Any]]) -> tuple[list[str], tuple[list[str], list[list[str]]]]:
    """What the evaluation rows say: a test, and the rows whose answer changed."""
    nothing: tuple[list[str], list[list[str]]] = ([], [])
    paths = [folder / PREDICTIONS for folder in (first, second)]
    if any(not path.is_file() or "label" not in path.open(encoding="utf-8").readline().strip().split(",") for path in paths):
        return ["There are no labelled predictions of both runs, so rows cannot be compared."], nothing
    (labels, ours), (theirs_labels, theirs) = (read_predictions(path) for path in paths)
    if not np.array_equal(labels, theirs_labels) or ours.shape != theirs.shape or not _same_texts(paths):
        return [f"They were scored on other rows ({len(labels):,} and {len(theirs_labels):,}), so rows cannot be compared."], nothing
    if ours.ndim == 1:
        return _scored_rows(labels, ours, theirs, results), nothing
    right = [outputs.argmax(1) == labels for outputs in (ours, theirs)]
    changed = np.flatnonzero(ours.argmax(1) != theirs.argmax(1))
    lost, gained = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    sentences = [
        f"{len(changed):,} of {len(labels):,} rows have another answer: {gained:,} became right, {lost:,} became wrong, "
        f"{len(changed) - gained - lost:,} stay wrong.",
        f"McNemar's exact test: p = {mcnemar(lost, gained):.4f}.",
    ]
    return sentences, _changed_rows(paths, changed)


def _same_texts(paths: list[Path]) -> bool:
    """Whether both predictions are of the same rows, as far as they say: names of labels, and texts where both hold them."""
    seen = []
    for path in paths:
        header, rows = read_rows(path)
        columns = [name for name in ("label_name", *text_columns_of(header)) if name in header]
        seen.append({name: [row[name] for row in rows] for name in columns})
    return all(seen[0][name] == seen[1][name] for name in seen[0].keys() & seen[1].keys())


def _scored_rows(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, results: list[dict[str, Any]]) -> list[str]:
    """A paired bootstrap over rows of the reported metric."""
    known = [result["best"]["metrics"] for result in results]
    metric = next((name for name in known[0] if all(one.get(name) is not None for one in known)), None)
    if metric is None:
        return ["They have no metric in common that is a number in both, so rows cannot be compared."]
    counts = draw_rows(len(labels), RESAMPLES)
    draws = resampled(metric, labels, theirs, counts) - resampled(metric, labels, ours, counts)
    difference = results[1]["best"]["metrics"][metric] - results[0]["best"]["metrics"][metric]
    error, low, high = interval(draws)
    if np.isnan(error):
        return [
            f"The difference of {metric} is {signed(difference)}; it is not defined on most resamples of the rows, so they tell nothing."
        ]
    p, _ = wald(difference, error, None)
    return [
        f"The difference of {metric} is {signed(difference)}, 95 % over rows [{signed(low)}, {signed(high)}], p = {p:.4f} "
        f"(paired bootstrap, {RESAMPLES:,} draws)."
    ]


def _changed_rows(paths: list[Path], changed: np.ndarray) -> tuple[list[str], list[list[str]]]:
    (names, *_), tables = zip(*map(read_rows, paths), strict=True)
    columns = text_columns_of(names)
    header = ["row", "label", "first", "second", *columns]
    lines = []
    for row in changed.tolist():
        one, other = tables[0][row], tables[1][row]
        texts = (one[name][:MOST_CHARACTERS] for name in columns)
        lines.append([one["row"], one["label_name"], one["prediction_name"], other["prediction_name"], *texts])
    return header, lines


def in_words(found: Difference) -> str:
    """What the terminal shows."""
    parts = []
    for title, header, rows in tables_of(found):
        shown = rows[:MOST_ROWS] if title.startswith("Rows") else rows
        parts.append(f"{title}:\n{markdown(header, shown)}")
        if len(shown) < len(rows):
            parts.append(f"... and {len(rows) - len(shown):,} more; --html shows all")
    equal = [] if found.flags else ["Both runs have the same flags."]
    return "\n\n".join([*equal, *parts, " ".join(found.sentences)])


def tables_of(found: Difference) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table that has rows."""
    one, other = found.names
    tables = [
        ("Flags", ["flag", one, other], found.flags),
        ("Versions", ["of", one, other], found.versions),
        ("Scores", ["metric", one, other, "difference"], found.scores),
        ("Rows with another answer", *found.rows),
    ]
    return [table for table in tables if table[2]]


def write_comparison(found: Difference, path: Path) -> None:
    """The page of a comparison.

    Raises:
        ConfigError: the file's folder is not there.
    """
    from glot.report.page import write_page
    from glot.study.pages import Part, Table

    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--html={path}: {'is a folder' if path.is_dir() else 'its folder is not there'}; name a file in a folder")
    title = f"{found.names[0]} and {found.names[1]}"
    tables = [Table(*table) for table in tables_of(found)]
    with disk_door(path):
        write_page(path, "report.html", title=title, parts=[Part(title, found.sentences, [], tables, [], [], [], [])], run_header=[])
