"""StoreKey and Manifest: what a store depends on, its description, and the names of its files."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from glot.states.store.checksums import checksum

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEY, PLAN, TOKENS, CHUNKS, MANIFEST, LOCK = "key.json", "plan.npz", "tokens.bin", "chunks.jsonl", "manifest.json", "lock"


@dataclass(frozen=True)
class StoreKey:
    """Everything that the stored states depend on.

    Attributes:
        backbone: identity of the model and tokenizer files (hub id and commit, or a hash).
        layer: index of the hidden state, or mean4.
        max_length: number of tokens that a text is cut to; 0 = the model's limit.
        backbone_dtype: precision of the forward pass.
        store_dtype: precision on disk.
        texts: SHA-256 of the distinct texts in order.
        prompts: `UsedPrompts.key`. An empty one is not part of the key, so that stores without prompts keep their names.
        windows: overlap of windows, `quarter` = of the model's limit. Empty where texts are cut, and then not part of the key either.

    Examples:
        >>> StoreKey("owner/name@commit", "6", 128, "float32", "float16", texts_sha256(["a text"])).fingerprint
    """

    backbone: str
    layer: str
    max_length: int
    backbone_dtype: str
    store_dtype: str
    texts: str
    format_version: int = FORMAT_VERSION
    prompts: str = ""
    windows: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the folder's name."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Indented JSON with sorted keys."""
        return json.dumps(self._fields(), indent=1, sort_keys=True)

    def _fields(self) -> dict[str, object]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("prompts", "windows") or value}

    def folder(self, root: Path) -> Path:
        """The folder of this key's store under `root`."""
        return root / self.fingerprint

    def differences(self, other: dict[str, object]) -> list[str]:
        """Names of the fields in which a key read from disk differs from this one."""
        mine = self._fields()
        return [name for name in sorted(mine.keys() | other.keys()) if mine.get(name) != other.get(name)]


@dataclass(frozen=True)
class Manifest:
    """The description of a complete store.

    `backbone` holds the facts measured on the model that made it; None in stores of older versions.

    `plan_checksum` is that of `plan.npz`; `chunk_checksums` holds (first, last, checksum) of each chunk. Older stores have neither.

    Examples:
        >>> Manifest.read(key.folder(root))
    """

    key: dict[str, object]
    num_sentences: int
    num_tokens: int
    hidden_size: int
    size_bytes: int
    chunks: int
    versions: dict[str, str]
    backbone: dict[str, object] | None = None
    plan_checksum: str | None = None
    chunk_checksums: list[tuple[int, int, str]] | None = None

    def write(self, folder: Path) -> None:
        """Write to a temporary name and rename, so that a manifest is complete or absent; its own checksum is its last field."""
        body = dataclasses.asdict(self)
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(json.dumps({**body, "checksum": _checksum_of(body)}, indent=1))
        partial.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest of a folder, or None where the store is not complete.

        Raises:
            ValueError: it is not what was written.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        body = json.loads(path.read_text())
        if not isinstance(body, dict):
            raise ValueError("it holds no fields")
        known = body.pop("checksum", None)  # stores of older versions have none
        if known is not None and known != _checksum_of(body):
            raise ValueError("its checksum differs")
        made = cls(**body)
        counts = (made.num_sentences, made.num_tokens, made.hidden_size, made.size_bytes, made.chunks)
        if (
            not isinstance(made.key, dict)
            or {"layer", "store_dtype"} - made.key.keys()
            or not all(isinstance(count, int) for count in counts)
        ):
            raise ValueError("a field is missing or of another kind")
        return made


def _checksum_of(body: dict[str, object]) -> str:
    return checksum(json.dumps(body, sort_keys=True).encode())
