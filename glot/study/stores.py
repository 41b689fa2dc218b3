"""The stores of token states on disk: listed, verified, removed."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from glot.cache import read_facts
from glot.errors import ConfigError, GlotError, StoreError, nearest
from glot.states.store.checksums import checksum, checksum_of_file
from glot.states.store.layout import MANIFEST, PLAN, TOKENS, Manifest
from glot.states.store.reader import StoredTokens, open_store_folder
from glot.states.store.writer import is_locked
from glot.training.folders import find_results

TEXT_STORES = "texts-*"
"""Folders of stores by text (`glot.states.by_text`)."""
COLUMNS = ("name", "model", "layer", "texts", "tokens", "MiB", "date", "used by")


class StoreRow(NamedTuple):
    """One store as a row of the table; fields are `COLUMNS`."""

    name: str
    model: str
    layer: str
    texts: str
    tokens: str
    mebibytes: str
    date: str
    used_by: str


def users_of(runs: Path) -> dict[str, list[tuple[str, str]]]:
    """Store -> (model, folder) of the runs under `runs` whose results name it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(find_results(runs)) if runs.is_dir() else []:
        result = read_facts(path)
        store = result.get("store")
        if isinstance(store, dict):
            for place in store.get("paths") or [store.get("path")]:  # a run on several layers has several
                found.setdefault(Path(str(place)).name, []).append((str(result.get("model")), path.parent.name))
    return found


def list_stores(root: Path, runs: Path) -> list[StoreRow]:
    """All stores under a folder, complete or not."""
    users, rows = users_of(runs), []
    for folder in find_stores(root, []):
        path, manifest, state = folder / TOKENS, None, "(not complete)"
        try:
            manifest = Manifest.read(folder)
        except (ValueError, TypeError):
            state = "(damaged)"
        size = path.stat().st_size if path.is_file() else 0
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime))
        own, about = users.get(folder.name, []), (state, "", "", "")
        if manifest is not None:
            model = Path(own[0][0]).name if own else str(manifest.key.get("backbone"))[:24]
            about = (model, str(manifest.key["layer"]), f"{manifest.num_sentences:,}", f"{manifest.num_tokens:,}")
        used = ", ".join(name for _, name in own[:3]) + ", ..." * (len(own) > 3)
        rows.append(StoreRow(_name_of(folder), *about, f"{size / 2**20:,.1f}", date, used))
    return rows


def find_stores(root: Path, names: list[str]) -> list[Path]:
    """Folders of stores: the named ones, or all.

    Raises:
        ConfigError: no such folder, or no such store in it.
    """
    if not root.is_dir():
        raise ConfigError(f"--store_dir={root}: no such folder; name the one that stores lie in")
    there = {str(path.relative_to(root)): path for path in sorted([*root.iterdir(), *root.glob(f"{TEXT_STORES}/*")]) if _is_store(path)}
    groups: dict[str, list[Path]] = {}
    for name, path in there.items():
        groups.setdefault(name.partition("/")[0], []).append(path)
    wrong = next((name for name in names if name not in {**there, **groups}), None)
    if wrong is not None:
        raise ConfigError(f"{wrong}: no such store under {root}{nearest(wrong, there)}; glot store list shows them")
    return [path for name in names for path in ([there[name]] if name in there else groups[name])] or list(there.values())


def _is_store(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (MANIFEST, PLAN))


def _name_of(folder: Path) -> str:
    """The name of a store under `--store_dir`."""
    inside = folder.parent.match(TEXT_STORES)
    return f"{folder.parent.name}/{folder.name}" if inside else folder.name


def verify_stores(root: Path, names: list[str], adopt: bool) -> tuple[list[str], bool]:
    """Compare stores with their checksums.

    Args:
        root: `--store_dir`.
        names: of the stores; empty = all.
        adopt: give stores of older versions the checksums of what they hold now.

    Returns:
        a line per store; whether all are as they were written.
    """
    lines, fine = [], True
    for folder in find_stores(root, names):
        if not (folder / MANIFEST).is_file():
            lines.append(f"{_name_of(folder)}: not complete")
            continue
        try:
            stored = open_store_folder(folder)
            if stored.manifest.chunk_checksums is None:
                lines.append(
                    f"{_name_of(folder)}: {'checksums added' if adopt else 'has no checksums; --adopt adds those of what it holds now'}"
                )
                if adopt:
                    _adopt(stored)
                continue
            stored.check()
            lines.append(f"{_name_of(folder)}: as written")
        except GlotError as error:
            lines.append(f"{_name_of(folder)}: {error}")
            fine = False
    return lines, fine


def _adopt(stored: StoredTokens) -> None:
    """Write a manifest with the checksum of the whole file as one chunk, and of the plan."""
    chunks = [(0, stored.manifest.num_sentences, checksum_of_file(stored.folder / TOKENS))]
    plan = checksum((stored.folder / PLAN).read_bytes())
    dataclasses.replace(stored.manifest, plan_checksum=plan, chunk_checksums=chunks).write(stored.folder)


def remove_stores(root: Path, names: list[str]) -> list[str]:
    """Remove stores by name.

    Raises:
        ConfigError: no name, or no such store.
        StoreError: a process is writing one.
    """
    if not names:
        raise ConfigError("glot store rm: name the stores to remove; glot store list shows them")
    folders = find_stores(root, names)
    busy = next((folder for folder in folders if is_locked(folder)), None)
    if busy is not None:
        raise StoreError(f"store {busy}: a process is writing it; wait for its end")
    return [_remove(folder) for folder in folders]


def collect_garbage(root: Path, runs: Path, dry_run: bool) -> list[str]:
    """Remove stores that no run folder names and nobody is writing, and what broken rebuilds left.

    Raises:
        ConfigError: there are no runs to go by, so that every store would seem unused.
    """
    users = users_of(runs)
    unused = [folder for folder in find_stores(root, []) if folder.name not in users and not is_locked(folder)]
    unused = [folder for folder in unused if not folder.parent.match(TEXT_STORES)]  # they belong to no run: --mteb_store keeps them
    if unused and not (runs.is_dir() and find_results(runs)):
        raise ConfigError(
            f"--output_dir={runs}: {'holds no finished run' if runs.is_dir() else 'no such folder'}, so every store would seem unused; "
            "name the folder of your runs, or remove stores by name (glot store rm)"
        )
    left = [path for path in root.glob(".*.rebuild") if not is_locked(root / path.name[1:].removesuffix(".rebuild"))]
    folders = [*unused, *(path for path in left if path not in unused)]
    return [f"{folder.name}: would be removed" if dry_run else _remove(folder) for folder in folders] or ["nothing to remove"]


def _remove(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that no partial store looks complete
    name = _name_of(folder)
    shutil.rmtree(folder)
    if folder.parent.match(TEXT_STORES) and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return f"{name}: removed, {size / 2**20:,.1f} MiB"
