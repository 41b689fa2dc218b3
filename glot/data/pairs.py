"""Rows {query, pos, neg} for contrastive training, streamed from JSON lines: what stays in memory is a few numbers per row, no texts.

Source of the layout: the release's `msmarco-triplets.jsonl`; the first entry of `pos` is the positive.
"""

import gzip
import hashlib
import json
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from glot.errors import DataError
from glot.progress import counter
from glot.prompts import NO_PROMPTS, UsedPrompts
from glot.utf8 import is_utf8

MISSING = -1
"""Stands where a row has fewer negatives than asked for."""


@dataclass(frozen=True)
class PairOptions:
    """What is read from a file of pairs.

    Attributes:
        rows: the first so many good rows; None = all.
        negatives: entries of `neg` to take from each row.
        skip_bad: count malformed rows and go on.
        verbose: a bar.
        used: what is put before queries and before the texts that are searched; a text in both places is then two.
    """

    rows: int | None = None
    negatives: int = 0
    skip_bad: bool = False
    verbose: bool = False
    used: UsedPrompts = NO_PROMPTS


class PairFile:
    """The distinct texts of a file of pairs in order of first appearance, and which of them each row holds.

    Iterating streams the texts from the file again, so that a file larger than memory can be encoded.

    Attributes:
        queries, positives: (S,) int64, places among the distinct texts.
        negatives: (S, n) int64, `MISSING` where a row has fewer.
        bad: number of malformed rows that were skipped.
        sha256: one hash over everything that was read.

    Raises:
        DataError: the file is missing or damaged, a row is malformed (named by its line number), or no row is left.
    """

    def __init__(self, path: Path, options: PairOptions) -> None:
        self.path, self.options, self.bad = path, options, 0
        places: dict[bytes, int] = {}
        lines, rows, roles = array("q"), array("q"), array("b")
        digest = hashlib.sha256(f"{options.negatives}\n".encode())
        with counter(f"read {path.name}", "row", options.rows, options.verbose) as bar:
            for line, texts in self._rows(self._skip):
                row = []
                for role, text in enumerate(texts):
                    prompt = self._prompt_of_role(role)
                    key = hashlib.blake2b(text.encode(), digest_size=16, salt=_salt(prompt)).digest()
                    row.append(places.setdefault(key, len(lines)))
                    if row[-1] == len(lines):
                        lines.append(line)
                        roles.append(min(role, 1))
                rows.extend(row + [MISSING] * (2 + options.negatives - len(row)))
                digest.update(json.dumps(texts).encode())
                bar.update(1)
        if not rows:
            raise DataError(f"--train_file={path}: holds no row ({self.bad} malformed ones were skipped)")
        self.sha256 = digest.hexdigest()
        self._lines, self._roles = np.array(lines, dtype=np.int64), np.array(roles, dtype=np.int8)
        self._sides = np.array(rows, dtype=np.int64).reshape(-1, 2 + options.negatives)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        known = 0
        for row, (_, texts) in enumerate(self._rows(lambda problem: None)):
            for place, text in zip(self._sides[row].tolist(), texts, strict=False):
                if place == known:  # places were given in this very order
                    known += 1
                    yield text

    @property
    def num_rows(self) -> int:
        """S."""
        return len(self._sides)

    @property
    def queries(self) -> np.ndarray:
        return self._sides[:, 0]

    @property
    def positives(self) -> np.ndarray:
        return self._sides[:, 1]

    @property
    def negatives(self) -> np.ndarray:
        return self._sides[:, 2:]

    @cached_property
    def short_rows(self) -> int:
        """How many rows have fewer negatives than asked for."""
        return int((self.negatives == MISSING).any(1).sum())

    @property
    def used(self) -> UsedPrompts:
        """What is put before queries and before the texts that are searched."""
        return self.options.used

    def prompt(self, place: int) -> str:
        """What is put before one text."""
        return self._prompt_of_role(int(self._roles[place]))

    def _prompt_of_role(self, role: int) -> str:
        return self.used.document if role else self.used.query

    def where(self, place: int) -> str:
        """The first row that holds a text, in words."""
        return f"{self.path}: line {self._lines[place]}"

    def _skip(self, problem: str) -> None:
        if not self.options.skip_bad:
            raise DataError(f"{problem}; mend it, or count such rows with --skip_bad_rows=1")
        self.bad += 1

    def _rows(self, malformed: Callable[[str], None]) -> Iterator[tuple[int, list[str]]]:
        """Line number and texts (query, positive, negatives) of each good row; `malformed` hears of the others."""
        left = self.options.rows
        try:
            with open_lines(self.path) as stream:
                for number, line in enumerate(stream, start=1):
                    if left == 0:
                        return
                    if not line.strip():
                        continue
                    try:
                        texts = parse_pair(line, self.options.negatives)
                    except ValueError as error:
                        malformed(f"{self.path}: line {number}: {error}")
                        continue
                    left = None if left is None else left - 1
                    yield number, texts
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"--train_file={self.path}: cannot be read ({error}); rows {{query, pos, neg}}, .jsonl or .jsonl.gz") from error


def open_lines(path: Path) -> BinaryIO:
    """The lines of a file, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def parse_pair(line: bytes, negatives: int) -> list[str]:
    """Query, first positive and up to `negatives` different negatives of one line, none of them its query or positive.

    Raises:
        ValueError: what is wrong with it, ready to print behind the line number.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not an object {query, pos, neg}")
    listed = {"pos": row.get("pos"), "neg": row.get("neg", [])}
    for name, texts in listed.items():
        if not isinstance(texts, list):
            raise ValueError(f"{name} must be a list of texts, it is {type(texts).__name__}")
    if not listed["pos"]:
        raise ValueError("pos is empty")
    own = {"query": row.get("query"), "pos": listed["pos"][0]}
    for name, text in [*own.items(), *(("neg", text) for text in (listed["neg"] if negatives else []))]:
        if not isinstance(text, str) or not text.strip() or not is_utf8(text):
            raise ValueError(f"{name} holds {text!r}, not a text")
    others = [text for text in dict.fromkeys(listed["neg"]) if text not in own.values()]
    return [*own.values(), *others[:negatives]]


def _salt(prompt: str) -> bytes:
    """Keeps a text apart from itself behind another prompt; nothing without a prompt."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).digest() if prompt else b""
