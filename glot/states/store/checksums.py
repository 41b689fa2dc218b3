"""Checksums of a store's files (XXH3, 64 bits): every chunk of states, the plan, the manifest itself. The only door to xxhash."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

READ_AT_ONCE = 8 << 20


def checksum(data: bytes | memoryview) -> str:
    """Of some bytes: 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def new_checksum() -> "xxhash.xxh3_64":
    """One that grows with `.update(bytes)`; `.hexdigest()` is equal to `checksum` of all of them."""
    return xxhash.xxh3_64()


def checksum_of_file(path: Path) -> str:
    """`checksum` of a whole file, read part by part."""
    own = new_checksum()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(READ_AT_ONCE):
            own.update(data)
    return own.hexdigest()


class Part(NamedTuple):
    """Some bytes of a file, and what their checksum must be."""

    start: int
    stop: int
    expected: str


def damaged_parts(path: Path, parts: Sequence[Part]) -> list[int]:
    """The places of the parts whose bytes are not what they were; a part that is not there counts."""
    found = []
    with path.open("rb", buffering=0) as stream:
        for place, part in enumerate(parts):
            stream.seek(part.start)
            left, own = part.stop - part.start, new_checksum()
            while left and (data := stream.read(min(left, READ_AT_ONCE))):
                own.update(data)
                left -= len(data)
            if left or own.hexdigest() != part.expected:
                found.append(place)
    return found


class BackgroundCheck:
    """`damaged_parts` in a thread; reading the file in order also brings its pages into memory.

    Args:
        path: of the file.
        parts: see there.

    Examples:
        >>> BackgroundCheck(path, parts).result()
    """

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self._found: list[int] = []
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._read, args=(path, parts), daemon=True)
        self._thread.start()

    def _read(self, path: Path, parts: Sequence[Part]) -> None:
        try:
            self._found = damaged_parts(path, parts)
        except OSError as error:
            self._error = error

    def result(self) -> list[int]:
        """Wait for the end; the damaged parts.

        Raises:
            OSError: the file could not be read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found
