"""`glot explain RUN`: texts through a run and the runs beside it, to the terminal, a figure, JSON or a page."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from glot.csv_files import read_rows
from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError, disk_door
from glot.explain.measure import Explanation, explain
from glot.explain.over_split import WeightCensus, in_words
from glot.explain.show import LEGEND, answer_in_words, as_text, to_dict
from glot.predictor import load_any
from glot.progress import bar
from glot.settings.choices import short_name
from glot.settings.config import read_config
from glot.training.predictions import text_columns_of
from glot.training.result_file import CONFIG, PREDICTIONS, read_result

FIGURES = (".png", ".pdf", ".svg")
FORMATS = (*FIGURES, ".json")


class Asked(NamedTuple):
    """What `glot explain` is asked: runs, the first of which is explained; texts or pairs; where results go; options of `load_encoder`."""

    runs: list[Path]
    texts: list[tuple[str, ...]]
    html: Path | None
    out: Path | None
    opening: dict[str, Any]


def check_files(asked: Asked) -> None:
    """Refuse a file that cannot be written, before anything is loaded.

    Raises:
        ConfigError: an unknown ending, or a folder that is not there.
    """
    if asked.out is not None and asked.out.suffix not in FORMATS:
        raise ConfigError(f"--out={asked.out}: ends with none of {', '.join(FORMATS)}")
    for flag, path in (("html", asked.html), ("out", asked.out)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"--{flag}={path}: {'is a folder' if path.is_dir() else 'its folder is not there'}; name a file in a folder")


def run_explain(asked: Asked) -> str:
    """Explain every text by every run. Returns what the terminal shows; files are written where they are asked for."""
    check_files(asked)
    loaded = [(path, *open_run(path, opening)) for path, opening in _openings(asked)]
    found = [[explain(encoder, texts, run_name(path), name) for path, encoder, name in loaded] for texts in asked.texts]
    colour = sys.stdout.isatty()
    shown = "\n\n".join(as_text(one, colour) for group in found for one in group)
    written = write_out(asked.out, found) if asked.out is not None else []
    if asked.html is not None:
        from glot.report.page import write_page

        with disk_door(asked.html):
            write_page(
                asked.html,
                "explain.html",
                title=f"What {run_name(asked.runs[0])} weighs",
                data=[[to_dict(one) for one in group] for group in found],
            )
        written.append(asked.html)
    return "\n".join([shown, "", LEGEND, *(f"written: {path}" for path in written)])


def explain_split(asked: Asked, split: str, limit: int) -> str:
    """Where the weight of each run goes over the first rows of its evaluation split. Returns tables; a figure or JSON where asked for.

    Raises:
        ConfigError: predictions of another split.
    """
    check_files(asked)
    found, rows = [], []
    for path in asked.runs:  # all of them before the first is explained
        result = read_result(path)
        if "rows" not in result:
            raise CheckpointError(f"{path}: holds several runs, or none that was trained; name a run, such as {path}/seed-0")
        known = list(result["rows"])[1:]
        if split not in known[:1]:
            raise ConfigError(f"--split={split}: the predictions of {path} are of {', '.join(known[:1]) or 'no split'}")
        rows.append(texts_of_rows(path, None)[:limit])
    for (path, opening), texts in zip(_openings(asked), rows, strict=True):
        encoder, name = open_run(path, opening)
        flags = read_config(path / CONFIG)["flags"]
        is_stress = flags["task"] == "stress"
        census = WeightCensus(run_name(path), name, f"ratio {flags['distractor_ratio']:g}" if is_stress else "", is_stress)
        for row in bar(texts, f"explain {run_name(path)}", "row", enabled=True):
            census.add(explain(encoder, row, run_name(path), name, with_words=False))
            if not census.texts:
                raise ConfigError(f"{path}: {name} gives tokens no weights, so none can be counted; name a run with another pooler")
        found.append(census)
    shown = [in_words(found)]
    if asked.out is not None:
        _write_census(asked.out, found)
        shown.append(f"written: {asked.out}")
    return "\n\n".join(shown)


def _write_census(path: Path, found: list[WeightCensus]) -> None:
    if path.suffix == ".json":
        with disk_door(path):
            path.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
        return
    from glot.report.token_plots import WeightShares, plot_weight_shares  # matplotlib

    rows = []
    for one in found:
        shares = {"special tokens": one.special, "punctuation": one.punctuation, "needles": one.needles}
        rows.append(WeightShares(f"{one.run} {one.about}".strip(), shares, one.top_words))
    with disk_door(path):
        plot_weight_shares(rows, path)


def texts_of_rows(run: Path, asked: str | None) -> list[tuple[str, ...]]:
    """The texts of some rows of a run's evaluation split, from its predictions; None = of all.

    Raises:
        ConfigError: no numbers, no such row, or predictions without texts.
    """
    path = run / PREDICTIONS
    if not path.is_file():
        raise CheckpointError(f"{run}: no {PREDICTIONS}; give the folder of a finished run with labels")
    if asked is not None and not all(word.strip().isdecimal() for word in asked.split(",")):
        raise ConfigError(f"--rows={asked}: must be numbers of rows such as 0,7")
    header, table = read_rows(path)
    columns = text_columns_of(header) if table else []
    wanted = range(len(table)) if asked is None else [int(word) for word in asked.split(",")]
    missing = next((row for row in wanted if row >= len(table)), None)
    if missing is not None:
        raise ConfigError(f"--rows={asked}: there is no row {missing}; {path} has rows 0 to {len(table) - 1}")
    if not columns:
        raise ConfigError(f"{path}: holds no texts, they were too long; give them with --text")
    return [tuple(table[row][name] for name in columns) for row in wanted]


def run_name(path: Path) -> str:
    """The folder's own name, also of `.`."""
    return path.resolve().name


def _openings(asked: Asked) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each run with its options. `backbone` is for the first, and for those whose own folder is gone too."""
    for place, path in enumerate(asked.runs):
        folder = read_config(path / CONFIG)["resolved"].get("folder") if path.is_dir() else None
        is_moved = not place or (folder is not None and not Path(folder).is_dir())
        yield path, asked.opening if is_moved else {**asked.opening, "backbone": None}


def open_run(path: Path, opening: dict[str, Any]) -> tuple[SentenceEncoder, str]:
    """The encoder of a run with its head, and the name of its pooler."""
    encoder = load_any(path, **opening)
    flags = read_config(path / CONFIG)["flags"] if path.is_dir() else {"pooling_method": "pooler"}
    return encoder, short_name(flags["pooling_method"])


def write_out(path: Path, found: Sequence[Sequence[Explanation]]) -> list[Path]:
    """A file per text, numbered where there are several; JSON holds them all."""
    if path.suffix == ".json":
        plain = [[to_dict(one) for one in group] for group in found]
        with disk_door(path):
            path.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return [path]
    from glot.report.token_plots import plot_tokens  # matplotlib

    paths = [path if len(found) == 1 else path.with_name(f"{path.stem}-{place}{path.suffix}") for place in range(len(found))]
    for target, group in zip(paths, found, strict=True):
        rows = [
            (f"{one.run}: {one.pooler}, {answer_in_words(one)}", side.tokens, side.weights, side.without_token)
            for one in group
            for side in one.sides
        ]
        with disk_door(target):
            plot_tokens(rows, target)
    return paths
