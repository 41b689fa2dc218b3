"""The hub: one file of a repository, and what an error of the hub means. The only door to huggingface_hub."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
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
"""What the libraries between us and the hub call a transfer that ended too early."""
UNREACHED = ("TransportError", "ConnectionError", "Timeout")
"""Base classes of the errors of a connection that did not come about, whichever HTTP library the hub's uses."""


def fetch_file(repository: str, name: str, revision: str | None) -> Path:
    """A file of a model repository in the library's cache, fetched if need be; the folder is named by the commit.

    Raises:
        Exception: whatever huggingface_hub raises; `explain` puts it into words.
    """
    return Path(hf_hub_download(repository, name, revision=revision))


def find_file(repository: str, name: str, revision: str | None) -> Path | None:
    """A file that a repository may have; None where it has not, which is said where nobody can tell (offline, not in the cache)."""
    try:
        return fetch_file(repository, name, revision)
    except LocalEntryNotFoundError:
        warn(f"{repository}: whether it has {name} cannot be told without the hub; going on as if it had not")
    except EntryNotFoundError:
        pass
    return None


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids every connection."""
    return bool(constants.HF_HUB_OFFLINE)


def explain(error: BaseException, revision: str | None = None) -> str | None:
    """What an error of the hub means and the way out, as `<what>; <way out>`; None where the hub has no part in it."""
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
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain) or (is_offline() and _is_missing_locally(chain)):
        return "it is not in the hub's cache, and HF_HUB_OFFLINE=1 forbids to fetch it; unset that, or name a local folder"
    texts = [f"{type(one).__name__}: {one}" for one in chain]
    if any(word in text for text in texts for word in CUT):
        return "the transfer was cut; run the same command again, it goes on where it stopped"
    if any(base.__name__ in UNREACHED for one in chain for base in type(one).__mro__):
        return f"{constants.ENDPOINT} cannot be reached; check the network, or name a local folder"
    status = next((status for one in chain if (status := _status(one)) is not None and status >= 500), None)
    if status:
        return f"the hub answered {status}; try again later"
    if any(isinstance(one, EntryNotFoundError) for one in chain):
        return "the repository lacks a file that is needed; check the name"
    return None


def _is_missing_locally(chain: list[BaseException]) -> bool:
    return any(isinstance(one, LocalEntryNotFoundError) for one in chain) or any("offline mode" in str(one).lower() for one in chain)


def _status(error: BaseException) -> int | None:
    """The hub's answer, of the libraries' errors that carry one."""
    is_answer = isinstance(error, HfHubHTTPError) or type(error).__name__ == "HTTPStatusError"
    return getattr(getattr(error, "response", None), "status_code", None) if is_answer else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
