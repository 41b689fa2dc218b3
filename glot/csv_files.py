"""Reading CSV files: fields may have any length, where Python's reader stops at 131,072 characters by itself."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONGEST_FIELD = 1 << 27
"""Characters of one field."""


def csv_reader(lines: Iterable[str], delimiter: str = ",", strict: bool = False) -> Any:
    """Python's reader of these lines, with that limit."""
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(lines, delimiter=delimiter, strict=strict)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a file that this toolkit wrote; an empty file has neither."""
    with path.open(encoding="utf-8", newline="") as stream:
        header, *rows = list(csv_reader(stream)) or [[]]
    return header, rows


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns of a file that this toolkit wrote, and its rows by these names."""
    header, rows = read_csv(path)
    return header, [dict(zip(header, row, strict=False)) for row in rows]
