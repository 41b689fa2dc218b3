"""`result.json`, the last file of a run: written with checksums, read with them compared. Light to import, for listings."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from glot.errors import CheckpointError, library_door, reason
from glot.training.folders import RESULT

CONFIG, WEIGHTS, PREDICTIONS = "config.json", "model.safetensors", "predictions.csv"
BACKBONE = "backbone"
AGAIN = "do the run again, or take the file from a copy"
SIDE_BY_SIDE = "trained side by side"
"""How a note of a stacked run begins."""


def write_json(path: Path, value: object) -> None:
    """Whole or absent, and never with NaN."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_checked(path: Path, record: dict[str, Any]) -> None:
    """`write_json` of a record with its own checksum, which is added to it."""
    record["checksum"] = _checksum_of(record)
    write_json(path, record)


def read_mapping(path: Path) -> dict[str, Any]:
    """Names and values of a JSON file.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, not names and values")
    return record


def is_as_written(record: dict[str, Any]) -> bool:
    """Whether a record fits its own checksum; those of older versions have none."""
    return "checksum" not in record or bool(record["checksum"] == _checksum_of(record))


CHECKED = (CONFIG, WEIGHTS, PREDICTIONS)
"""Files of a run whose checksums its result holds; those of a trained backbone besides."""


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """`result.json`, the last file of a run: with the checksums of the others, and its own."""
    files = [path for path in (*(folder / name for name in CHECKED), *sorted((folder / BACKBONE).glob("*"))) if path.is_file()]
    result["files"] = {str(path.relative_to(folder)): _sha256(path) for path in files}
    write_checked(folder / RESULT, result)


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run, with itself and the run's files checked; results of older versions have no checksums.

    Raises:
        CheckpointError: no finished run, or a file that is not what was written.
    """
    if not (folder / RESULT).is_file():
        raise CheckpointError(f"{folder}: no {RESULT}; give the folder of a finished run")
    result = peek_result(folder / RESULT)
    for name, known in result.get("files", {}).items():
        path = folder / name
        if not path.is_file() or _sha256(path) != known:
            raise CheckpointError(f"{path}: {'is not what the run wrote' if path.is_file() else 'is missing'}; {AGAIN}")
    return result


def peek_result(path: Path) -> dict[str, Any]:
    """A `result.json` with its own checksum compared, and not those of the run's other files: for listings.

    Raises:
        CheckpointError: it is not what was written.
    """
    with library_door(CheckpointError, lambda error: f"{path}: is damaged ({reason(error)}); {AGAIN}"):
        result = read_mapping(path)
    if not is_as_written(result):
        raise CheckpointError(f"{path}: is not what the run wrote; {AGAIN}")
    return result


def _checksum_of(record: dict[str, Any]) -> str:
    body = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main_score(result: dict[str, Any]) -> tuple[str, float | None]:
    """The reported metric of a result and its value. For several MTEB tasks it is their mean, or None where one failed."""
    if "scores" not in result:
        return next(iter(result["best"]["metrics"].items()))
    scores = result["scores"]
    if len(scores) + len(result["failed"]) == 1:
        return next(iter({**scores, **dict.fromkeys(result["failed"])}.items()))
    return "mean", None if result["failed"] else math.fsum(scores.values()) / len(scores)
