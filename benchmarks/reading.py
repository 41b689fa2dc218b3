"""Reading a store: `python -m benchmarks.reading [GIGABYTES]`.

random rows   batches of 32 rows of about 9 kB from memory, against memcpy of as many bytes, Arrow lists (`datasets`) and a pickle a batch
cold epoch    a shuffled epoch with an empty page cache, against reading the file front to back
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from benchmarks.timing import ROUNDS, Timings
from glot.states.store import StoredTokens, StoreKey, StorePlan, open_store, write_stores
from glot.states.store.layout import TOKENS
from glot.states.store.writer import WriteOptions
from glot.types import TokenBatch

WIDTH, MEAN_TOKENS, BATCH, PADDED = 384, 12, 32, 128
PART = 2048
"""Pickles are read for one row in so many."""


def make_store(root: Path, size_bytes: int) -> StoredTokens:
    """Random float16 states of sentences of 6 to 18 tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(6, 19, size_bytes // (2 * WIDTH * MEAN_TOKENS))
    plan = StorePlan(lengths, WIDTH, "float16")
    key = StoreKey("random", "0", 128, "float32", "float16", "none")
    pool = torch.randn(1 << 16, WIDTH).half()  # the same states again and again: only bytes count here

    def encode(rows: np.ndarray) -> object:
        """States for some rows, 2,000 sentences at a time."""
        for part in np.array_split(rows, max(1, len(rows) // 2000)):
            counts = torch.from_numpy(lengths[part])
            yield [TokenBatch.from_lengths(pool[: int(counts.sum())], counts)]

    write_stores(root, [key], plan, encode, {}, WriteOptions())
    store = open_store(root, key)
    assert store is not None
    return store


def random_rows(folder: Path, rows: int = 1 << 14) -> Timings:
    """Seconds for `rows` rows in random order, 32 at a time: `store`, `memcpy` of as many bytes, `datasets`; `pickles` a part of them."""
    store = make_store(folder, rows * 2 * WIDTH * MEAN_TOKENS)
    order = np.random.default_rng(1).permutation(len(store))
    batches = np.array_split(order, len(order) // BATCH)
    states = [store.gather(np.array([row])).tokens for row in range(len(store))]
    table = Dataset.from_dict({"tokens": [state.half().numpy().ravel() for state in states]}).with_format("torch")
    source = torch.cat(states).half()
    target = torch.empty_like(source)
    few = order[: max(1, len(order) // PART)]
    for number in {row // BATCH for row in few}:
        padded = torch.zeros(BATCH, PADDED, WIDTH)
        for place, state in enumerate(states[number * BATCH : (number + 1) * BATCH]):
            padded[place, : len(state)] = state
        (folder / f"{number}.pkl").write_bytes(pickle.dumps(padded))

    def every(read: Callable[[np.ndarray], object]) -> Callable[[], None]:
        """All batches, one after the other; none is kept."""

        def work() -> None:
            """In the shuffled order."""
            for part in batches:
                read(part)

        return work

    def unpickle() -> None:
        """The file of a sample's batch is read whole for every sample."""
        for row in few:
            pickle.loads((folder / f"{row // BATCH}.pkl").read_bytes())[row % BATCH].clone()

    sides: dict[str, Callable[[], object]] = {
        "store": every(store.gather),
        "memcpy": lambda: target.copy_(source),
        "datasets": every(lambda part: table[part]),
        "pickles": unpickle,
    }
    return Timings(sides, ROUNDS)


def cold_epoch(folder: Path, size_bytes: int, rounds: int = ROUNDS) -> Timings:
    """Seconds of a shuffled epoch over a store (`shuffled`) and of reading its file (`sequential`), each with an empty page cache."""
    store = make_store(folder, size_bytes)
    path = store.folder / TOKENS
    order = np.random.default_rng(1).permutation(len(store))

    def forget() -> None:
        """Write back, unmap, and drop the file's pages."""
        store._tokens = None
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def shuffled() -> None:
        """Batches of 32 random rows."""
        for start in range(0, len(order), BATCH):
            store.gather(order[start : start + BATCH])

    def sequential() -> None:
        """Eight megabytes at a time."""
        buffer = bytearray(8 << 20)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return Timings({"shuffled": shuffled, "sequential": sequential}, rounds, before=forget)


def main() -> None:
    """Both, in words."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory() as folder:
        found = random_rows(Path(folder))
    print(
        f"random rows: {1 / found.ratio('store', 'memcpy'):.2f} of memcpy's rate, {found.ratio('datasets', 'store'):.0f} times as fast as"
    )
    print(f"datasets, {PART * found.ratio('pickles', 'store'):.0f} times as fast as pickles")
    with tempfile.TemporaryDirectory() as folder:
        found = cold_epoch(Path(folder), int(gigabytes * 2**30), 3)
    print(f"cold shuffled epoch of {gigabytes:g} GiB: {found.seconds('shuffled'):.1f} s, sequential {found.seconds('sequential'):.1f} s, ")
    print(f"{found.ratio('sequential', 'shuffled'):.2f} of the disk's rate")


if __name__ == "__main__":
    main()
