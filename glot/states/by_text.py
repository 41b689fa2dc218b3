"""TextStates: the token states of single texts on disk, over all texts that a backbone has read before, in whatever order they come.

<store_dir>/texts-<16 hex>/        named by everything but the texts that states depend on
    <16 hex>/                      a store (see `states.store`) of the texts that were new in one call
        texts.npy                  (S, 16) uint8: a hash of each text with its prompt
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from glot.errors import StateError, StoreError, disk_door, library_door, reason
from glot.prompts import UsedPrompts
from glot.states.backbone import Backbone, join_layers
from glot.states.store import StoredTokens, StoreKey, StorePlan, write_stores
from glot.states.store.layout import MANIFEST
from glot.states.store.reader import open_store_folder
from glot.states.store.writer import WriteOptions
from glot.types import TokenBatch, texts_sha256

TEXTS = "texts.npy"
HASH_BYTES = 16


MOST_OPEN = 128
"""Stores up to which each keeps its file open; a system allows a process about a thousand files."""


class TextStates:
    """Token states by text.

    Args:
        root: where stores live.
        key: what the states depend on; its texts and prompts do not count.
        backbone: reads texts that are new.
        versions: of the libraries, for the stores' descriptions.

    Examples:
        >>> states = TextStates(Path("data/hidden"), key, backbone, versions())
        >>> states.add(["a text"])
        >>> states.gather(["a text"])
    """

    def __init__(self, root: Path, key: StoreKey, backbone: Backbone, versions: dict[str, str]) -> None:
        self._key = replace(key, texts="", prompts="")
        self.folder = root / f"texts-{self._key.fingerprint}"
        self._backbone, self._versions = backbone, versions
        self._stores: list[StoredTokens] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self.folder.glob(f"*/{TEXTS}")):
            if (path.parent / MANIFEST).is_file():
                self._open(path.parent)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, texts: Sequence[str], prompt: str = "", exclude: bool = False, verbose: bool = False) -> None:
        """Read and store the texts that are new.

        Args:
            texts: any.
            prompt: what is put before each.
            exclude: leave the prompt's tokens out.
            verbose: a bar.

        Raises:
            StateError: see `Backbone.encode_sorted`; the text is named by its place.
            StoreError: see `write_stores`.
        """
        hashes = {_hash(text, prompt, exclude): text for text in texts}
        fresh = {known: text for known, text in hashes.items() if known not in self._places}
        if not fresh:
            return
        words = list(fresh.values())
        ids, skips = self._backbone.tokeniser.tokenise(words, self._backbone.max_length, prompt, exclude)
        lengths = np.array([len(tokens) - skip for tokens, skip in zip(ids, skips, strict=True)])
        key = replace(self._key, texts=texts_sha256(words), prompts=UsedPrompts(prompt, prompt, exclude).key)
        plan = StorePlan(lengths, self._backbone.hidden_size, key.store_dtype)

        def encode(rows: np.ndarray) -> list[list[TokenBatch]]:
            """States of some of the new texts."""
            try:
                layers = self._backbone.layers
                found = self._backbone.encode_sorted([ids[row] for row in rows], layers, [skips[row] for row in rows])
                return [[join_layers(batches)] for batches in found]
            except StateError as error:
                raise StateError(error.problem, where="" if error.place is None else f"text {int(rows[error.place])}") from error

        (folder,) = write_stores(self.folder, [key], plan, encode, self._versions, WriteOptions(verbose=verbose), self._backbone.facts)
        partial = folder / f"{TEXTS}.{os.getpid()}.partial"  # another process may have read the same texts
        with disk_door(partial), partial.open("wb") as stream:
            np.save(stream, np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, HASH_BYTES))
        partial.replace(folder / TEXTS)
        self._open(folder)

    def _open(self, folder: Path) -> None:
        """Take a store in, checked: what is scored from damaged states would be remembered by mteb."""
        damaged = f"store {folder}: is damaged"
        try:
            store = open_store_folder(folder)
            store.check()
        except StoreError as error:  # whose advice is for the stores of runs
            raise StoreError(f"{damaged} ({error.problems[0].partition(';')[0]}); remove it with glot store rm") from error
        with library_door(StoreError, lambda error: f"{damaged} ({TEXTS}: {reason(error)}); remove it with glot store rm"):
            hashes = np.load(folder / TEXTS)
        if hashes.shape != (len(store), HASH_BYTES) or hashes.dtype != np.uint8:
            raise StoreError(f"store {folder}: {TEXTS} is damaged; remove it with glot store rm")
        for row, known in enumerate(hashes):
            self._places.setdefault(known.tobytes(), (len(self._stores), row))
        self._stores.append(store)

    def lengths(self, texts: Sequence[str], prompt: str = "", exclude: bool = False) -> np.ndarray:
        """(S,) int64, stored tokens of texts that were added."""
        places = [self._places[_hash(text, prompt, exclude)] for text in texts]
        return np.array([int(self._stores[store].lengths[row]) for store, row in places], dtype=np.int64)

    def gather(self, texts: Sequence[str], prompt: str = "", exclude: bool = False) -> TokenBatch:
        """The states of texts that were added, in their order: float32 (N, d) on the CPU."""
        places = np.array([self._places[_hash(text, prompt, exclude)] for text in texts])
        used = {int(store) for store in places[:, 0]}
        if len(used) == 1:
            found = self._stores[places[0, 0]].gather(places[:, 1])
        else:
            parts = [self._stores[store].gather(np.array([row])).tokens for store, row in places]
            found = TokenBatch.from_lengths(torch.cat(parts), torch.tensor([len(part) for part in parts]))
        if len(self._stores) > MOST_OPEN:
            for store in used:
                self._stores[store].close()
        return found


def _hash(text: str, prompt: str, exclude: bool) -> bytes:
    written = json.dumps([prompt, exclude and bool(prompt), text]).encode()
    return hashlib.blake2b(written, digest_size=HASH_BYTES).digest()
