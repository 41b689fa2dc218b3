"""Hashes of model files and folders. Equal hashes mean equal states."""

import hashlib
import json
from pathlib import Path

from glot.cache import cache_folder, read_facts, remember

IDENTITY_SUFFIXES = (
    *(".json", ".txt", ".model", ".safetensors", ".bin", ".py", ".gguf"),
    *(".codes", ".spm", ".bpe", ".tiktoken", ".vocab", ".merges"),
)
"""Files that states depend on: configuration, weights, code and tokenizer files."""
REMEMBERED_FROM = 1 << 23
"""Bytes of a file whose hash is kept in the user's cache: hashing so many takes a few milliseconds."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. That of a large one is cached by path, size and modification time, so that it is read once."""
    status = path.stat()
    if status.st_size < REMEMBERED_FROM:  # reading it takes no longer than reading the cache, which would grow with every small file
        return hashlib.sha256(path.read_bytes()).hexdigest()
    entry = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    remembered = cache_folder() / "hashes.json"
    known = read_facts(remembered).get(entry)
    if known is not None:
        return str(known)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    remember(remembered, {entry: digest})
    return digest


def hash_folder(folder: Path) -> str:
    """A hash over the files of a model folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in IDENTITY_SUFFIXES and file.is_file())
    files += sorted(file for file in folder.glob("*/**/*.py") if file.is_file())  # code that comes with a model may lie deeper
    listing = json.dumps([[str(file.relative_to(folder)), file_sha256(file)] for file in files])
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
