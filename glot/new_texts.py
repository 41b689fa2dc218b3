"""New texts from a file through a trained run to a file: labels (`glot predict`) or vectors (`glot encode`), of any size."""

import hashlib
import itertools
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glot.data.custom import read_texts, split_names
from glot.data.outputs import Output, RowOutput, check_output, make_npy
from glot.data.records import STDIN, Record, read_records, read_stdin
from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError, DataError
from glot.files import find_files
from glot.opening import open_encoder
from glot.predictor import Predictor, load_predictor, text_columns
from glot.progress import counter, say, warn
from glot.settings.choices import PAIR_POOLERS
from glot.settings.config import RunConfig, read_config, read_saved
from glot.training.result_file import CONFIG
from glot.words import counted

AT_ONCE = 2048
"""Rows between two writes: about what a killed command repeats."""
PREDICTED, ENCODED = (".csv", ".jsonl", ".parquet"), (".npy", ".jsonl", ".parquet")


class Streams(NamedTuple):
    """Where rows come from and go to.

    Attributes:
        source, target: as in `--input` and `--output`.
        columns: of the texts; None = those of the run.
        batch_size: texts that pass the backbone together.
        overwrite: replace the target.
    """

    source: str
    target: str
    columns: str | None = None
    batch_size: int = 32
    overwrite: bool = False

    def check(self, suffixes: tuple[str, ...], names: tuple[str, ...]) -> None:
        """Refuse what cannot be read or written, before a backbone is loaded: of each input file the first row is read.

        Raises:
            ConfigError: see `find_files` and `check_output`.
            DataError: no file has a row, or see `texts_of`.
        """
        check_output(self.target, suffixes, self.overwrite)
        if self.source != STDIN:
            firsts = [record for path in find_files("input", self.source) for record in itertools.islice(read_records(path), 1)]
            for record in firsts:
                texts_of(record, names)
            if not firsts:
                raise DataError(f"--input={self.source}: holds no rows; check the file")

    def asked(self, *facts: object) -> str:
        """What the output depends on, as one hash: facts of the model, input files with size and time of change, columns."""
        if self.source == STDIN:  # what it gave before cannot be known, so nothing is resumed
            return secrets.token_hex(16)
        files = find_files("input", self.source)
        listing = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return hashlib.sha256(json.dumps([listing, self.columns, self.batch_size, facts]).encode()).hexdigest()


def predict_file(run: Path, streams: Streams, opening: dict[str, Any]) -> str:
    """Label the rows of a file; returns what was done, in words. `opening`: options of `load_encoder`.

    Raises:
        ConfigError, CheckpointError, DataError, StateError: one line each.
    """
    trained_on = text_columns(RunConfig.from_dict(read_config(run / CONFIG)["flags"]))
    names = split_names(streams.columns) if streams.columns else trained_on
    if len(names) != len(trained_on):
        raise ConfigError(f"--text_columns={streams.columns}: {run} takes {len(trained_on)}: {', '.join(trained_on)}")
    streams.check(PREDICTED, names)
    predictor = load_predictor(run, **opening)
    asked = streams.asked(predictor.fingerprint(), str(run.resolve()), names)

    def answer(records: list[Record]) -> list[dict[str, Any]]:
        """The rows with what the run says of them."""
        rows = [texts_of(record, names) for record in records]
        texts: list[Any] = [row[0] for row in rows] if len(names) == 1 else [tuple(row) for row in rows]
        found = predictor.scores(texts, streams.batch_size)
        return [_labelled(record, output, predictor) for record, output in zip(records, found, strict=True)]

    with RowOutput(streams.target, asked) as output:
        _say_resumed(output.done)
        for part in _parts(streams, output.done):
            output.add(answer(part))
        output.finish()
    return f"{streams.target}: {counted(output.done, 'row')}"


def _labelled(record: Record, output: np.ndarray, predictor: Predictor) -> dict[str, Any]:
    """A row's own columns, behind them the prediction and its scores."""
    own = {str(name): value for name, value in record.values.items()}
    if not predictor.classes:
        return {**own, _free("prediction", own): round(float(output), 6)}
    share = np.exp(output - output.max())
    found = {"prediction": predictor.classes[int(output.argmax())], "probability": round(float(share.max() / share.sum()), 6)}
    found |= {f"score_{name}": float(f"{value:.9g}") for name, value in zip(predictor.classes, output.tolist(), strict=True)}
    return own | {_free(name, own): value for name, value in found.items()}


def _free(name: str, taken: dict[str, Any]) -> str:
    """A name that no column of the input has."""
    return name if name not in taken else _free(f"{name}_", taken)


def column_of(run: Path | None, streams: Streams) -> str:
    """Name of the column that is encoded: as asked for, else of the run's texts (of pairs the first), else `text`.

    Raises:
        ConfigError: several columns are asked for.
        CheckpointError: the run's pooler gives no sentence vector.
    """
    saved = read_saved(run) if run is not None else None
    method = "" if saved is None else saved["flags"]["pooling_method"]
    if method in PAIR_POOLERS:
        raise CheckpointError(f"{run}: --pooling_method={method} scores pairs and gives no sentence vector; use glot predict")
    columns = text_columns(RunConfig.from_dict(saved["flags"])) if saved is not None else ("text",)
    names = split_names(streams.columns) if streams.columns else columns[:1]
    if not streams.columns and len(columns) > 1:
        warn(f"--text_columns={columns[0]}: the first of the two that {run} takes ({', '.join(columns)}); name the other for its vectors")
    if len(names) > 1:
        raise ConfigError(f"--text_columns={streams.columns}: one column at a time has vectors; name one")
    return names[0]


def encode_file(encoder: SentenceEncoder, name: str, streams: Streams, normalize: bool = True) -> str:
    """Write the vectors of a file's texts; returns what was done, in words.

    Args:
        encoder: of a run, or of a pooler without training.
        name: column of the texts.
        streams: from where to where.
        normalize: vectors of length one.

    Raises:
        ConfigError, DataError, StateError: one line each.
    """
    encoder.check_vectors()
    asked = streams.asked(encoder.fingerprint(), name, normalize)

    def vectors(records: list[Record]) -> np.ndarray:
        """(S, D) float32."""
        return encoder.encode([texts_of(record, (name,))[0] for record in records], streams.batch_size, normalize)

    if Path(streams.target).suffix == ".npy":
        with Output(Path(streams.target), asked) as output:
            _say_resumed(output.done)
            for part in _parts(streams, output.done):
                output.add(vectors(part).tobytes(), len(part))
            total = output.done
            output.finish(make_npy(encoder.dim))
    else:
        with RowOutput(streams.target, asked) as rows:
            _say_resumed(rows.done)
            for part in _parts(streams, rows.done):
                found = vectors(part).tolist()
                rows.add([{**record.values, _free("vector", record.values): row} for record, row in zip(part, found, strict=True)])
            total = rows.done
            rows.finish()
    return f"{streams.target}: {counted(total, 'vector')} of {encoder.dim} numbers"


def open_plain_encoder(config: RunConfig) -> SentenceEncoder:
    """The encoder of a pooler without training."""
    encoder, _, remarks = open_encoder(config)
    for remark in remarks:
        say(remark.replace("--mteb_max_length", "--max_length"))
    return encoder


def texts_of(record: Record, names: tuple[str, ...]) -> list[str]:
    """The texts of a row; a line of plain text is the one text that is asked for.

    Raises:
        ConfigError: a plain line where two texts are asked for.
        DataError: see `read_texts`.
    """
    if record.file == STDIN and list(record.values) == ["text"] and "text" not in names:
        if len(names) > 1:
            raise ConfigError(f"--input=-: line {record.line} is one text; give a JSON object with {', '.join(names)} per line")
        return [str(record.values["text"])]
    return read_texts(record, names)


def _parts(streams: Streams, done: int) -> Iterator[list[Record]]:
    """Rows that are not done yet, some at a time, behind a bar."""
    rows = read_stdin() if streams.source == STDIN else _rows_of_files(streams.source)
    with counter("rows", "row", None, enabled=True) as bar:
        bar.update(done)
        rest = itertools.islice(rows, done, None)
        size = AT_ONCE
        if streams.source == STDIN:  # whoever types a line waits for its answer
            size = 1 if sys.stdin.isatty() else streams.batch_size
        while part := list(itertools.islice(rest, size)):
            yield part
            bar.update(len(part))


def _rows_of_files(source: str) -> Iterator[Record]:
    for path in find_files("input", source):
        yield from read_records(path)


def _say_resumed(done: int) -> None:
    say(f"{counted(done, 'row', be=True)} there, going on", enabled=done > 0)
