"""What a store depends on, what it says about itself, and where its files lie."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEY, PLAN, TOKENS, CHUNKS, MANIFEST, LOCK = "key.json", "plan.npz", "tokens.bin", "chunks.jsonl", "manifest.json", "lock"


@dataclass(frozen=True)
class StoreKey:
    """Everything that the stored states are a function of.

    Attributes:
        backbone: identity of the model and tokenizer files (hub id and commit, or a hash).
        layer: index of the hidden state, or mean4.
        max_length: tokens a text is cut to; 0 = the model's limit.
        backbone_dtype: precision of the forward pass.
        store_dtype: precision on disk.
        texts: SHA-256 of the distinct texts in order.
        prompts: `UsedPrompts.key`; not part of the key where it is empty, so that stores without prompts keep their names.
    """

    backbone: str
    layer: str
    max_length: int
    backbone_dtype: str
    store_dtype: str
    texts: str
    format_version: int = FORMAT_VERSION
    prompts: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits: the folder's name."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Readable, with sorted keys."""
        return json.dumps(self._fields(), indent=1, sort_keys=True)

    def _fields(self) -> dict[str, object]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "prompts" or value}

    def folder(self, root: Path) -> Path:
        """Where a store of this key lies under `root`."""
        return root / self.fingerprint

    def differences(self, other: dict[str, object]) -> list[str]:
        """The fields in which a key read from disk differs from this one."""
        mine = self._fields()
        return [name for name in sorted(mine.keys() | other.keys()) if mine.get(name) != other.get(name)]


@dataclass(frozen=True)
class Manifest:
    """A complete store's account of itself; `backbone` holds what was found out about the model that made it (older stores: nothing)."""

    key: dict[str, object]
    num_sentences: int
    num_tokens: int
    hidden_size: int
    size_bytes: int
    chunks: int
    versions: dict[str, str]
    backbone: dict[str, object] | None = None

    def write(self, folder: Path) -> None:
        """Write through a temporary name, so that a manifest is whole or absent."""
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        partial.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest of a folder, or None where the store is not complete."""
        path = folder / MANIFEST
        return cls(**json.loads(path.read_text())) if path.is_file() else None
