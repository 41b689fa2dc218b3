"""The hub: fetch one file of a repository, and explain the hub's errors. Model cards have a module of their own."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from glot.progress import warn

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
GATED = f"it is gated; accept its conditions on its page of the hub, then {LOGIN}"
MISSING = f"the hub has nothing of that name, or it is private; check the name, or {LOGIN}"
CUT = ("IncompleteRead", "RemoteProtocolError", "ReadError", "Consistency check failed", "peer closed connection", "File size mismatch")
"""Words by which the libraries involved report a transfer that ended too early."""
COMMIT = "[0-9a-f]{40}"
PATIENCE, REMEMBERED = 5.0, 60.0
"""Seconds after which a hub counts as unreachable, and for how long that is believed."""
UNREACHED = ("TransportError", "ConnectionError", "Timeout")
"""Base classes of the errors of a failed connection, in either HTTP library that huggingface_hub may use."""


def is_cached(repository: str, name: str, revision: str | None) -> bool:
    """Whether a file of a commit is on this machine; of a branch it may be another one by now."""
    is_commit = revision is not None and re.fullmatch(COMMIT, revision)
    return bool(is_commit) and isinstance(try_to_load_from_cache(repository, name, revision=revision), str)


def fetch_file(repository: str, name: str, revision: str | None) -> Path:
    """The cached path of a repository's file, which is fetched if missing. Its folder is named by the commit.

    Raises:
        Exception: any error of huggingface_hub; `explain` describes it.
    """
    if is_cached(repository, name, revision):  # a commit does not change
        return Path(str(try_to_load_from_cache(repository, name, revision=revision)))
    with cache_where_unreachable():
        return Path(hf_hub_download(repository, name, revision=revision))


_SWITCH = RLock()


@contextmanager
def cache_where_unreachable(is_local: bool = False) -> Iterator[None]:
    """Inside, the libraries of the hub use their cache alone if the hub cannot be reached: of themselves they try for 23 s per file.

    One thread at a time, for the switch is the library's own, of the whole process. With `is_local` nothing is asked of the hub.
    """
    if is_local:
        yield
        return
    with _SWITCH:
        known = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = known or not is_reachable()
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = known


def is_reachable() -> bool:
    """Whether the hub takes a connection, asked once per `REMEMBERED` seconds. Behind a proxy it is taken for granted."""
    where = urlsplit(endpoint())
    proxies = {*getproxies()} & {where.scheme, "all"}
    if proxies and not proxy_bypass(where.hostname or ""):
        return True
    moment = time.monotonic()
    if _known.get("until", 0.0) < moment:
        port = where.port or (80 if where.scheme == "http" else 443)
        _known.update(answers=_takes_connections(where.hostname or "", port), until=moment + REMEMBERED)
    return bool(_known["answers"])


_known: dict[str, Any] = {}
"""What `is_reachable` found, and until when it holds."""


def _takes_connections(host: str, port: int) -> bool:
    """Whether one of a host's addresses takes a connection, all of them within `PATIENCE` seconds."""
    end = time.monotonic() + PATIENCE
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(max(0.1, end - time.monotonic()))
            if connection.connect_ex(address) == 0:
                return True
        if time.monotonic() > end:
            break
    return False


def find_file(repository: str, name: str, revision: str | None) -> Path | None:
    """A file that a repository may have, or None. A warning is printed where that is unknown (offline, not in the cache)."""
    try:
        return fetch_file(repository, name, revision)
    except LocalEntryNotFoundError:
        warn(f"{repository}: whether it has {name} cannot be told without the hub; going on as if it had not")
    except EntryNotFoundError:
        pass
    return None


def endpoint() -> str:
    """Address of the hub."""
    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids every connection."""
    return bool(constants.HF_HUB_OFFLINE)


def explain(error: BaseException, revision: str | None = None) -> str | None:
    """The meaning of a hub error and its remedy, as `<meaning>; <remedy>`; None for errors that are not the hub's."""
    chain = list(_chain(error))
    by_class: tuple[tuple[type[BaseException], str], ...] = (
        (GatedRepoError, GATED),
        (RevisionNotFoundError, f"it has no revision {revision}; name a branch, a tag or a commit that it has"),
        (RepositoryNotFoundError, MISSING),
        (HFValidationError, "that is no name of the hub and no folder here; check the spelling"),
    )
    for kind, words in by_class:
        if any(isinstance(one, kind) for one in chain):
            return words
    refused = next((status for one in chain if (status := _status(one)) in (401, 403)), None)
    if refused:
        return f"the hub refuses it ({refused}); {LOGIN}"
    if is_offline() and _is_missing_locally(chain):
        return "it is not in the hub's cache, and HF_HUB_OFFLINE=1 forbids to fetch it; unset that, or name a local folder"
    texts = [f"{type(one).__name__}: {one}" for one in chain]
    if any(word in text for text in texts for word in CUT):
        return "the transfer was cut; run the same command again, it goes on where it stopped"
    is_unreached = any(base.__name__ in UNREACHED for one in chain for base in type(one).__mro__)
    if is_unreached or any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return f"{constants.ENDPOINT} cannot be reached; check the network, or name a local folder"
    status = next((status for one in chain if (status := _status(one)) is not None and status >= 500), None)
    if status:
        return f"the hub answered {status}; try again later"
    if any(isinstance(one, EntryNotFoundError) for one in chain):
        return "the repository lacks a file that is needed; check the name"
    return None


def _is_missing_locally(chain: list[BaseException]) -> bool:
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled)
    return any(isinstance(one, kinds) for one in chain) or any("offline mode" in str(one).lower() for one in chain)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error; None where it has none."""
    is_answer = isinstance(error, HfHubHTTPError) or type(error).__name__ == "HTTPStatusError"
    return getattr(getattr(error, "response", None), "status_code", None) if is_answer else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
