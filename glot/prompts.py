"""Prompts: strings put before a text, by name (query, document, or a task's name), as in sentence-transformers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glot.errors import ConfigError, nearest
from glot.locate import expand_user

AUTO, NONE = "auto", "none"
MODEL_FILE = "config_sentence_transformers.json"
QUERY, DOCUMENT = "query", "document"
DOCUMENT_NAMES = (DOCUMENT, "passage", "corpus")
"""Names of the prompt of a searched text, in order of preference.

Source: sentence-transformers, `encode_document`.
"""


class UsedPrompts(NamedTuple):
    """The prompts of a training run: before queries and before searched texts. For a labelled task both are the same."""

    query: str = ""
    document: str = ""
    exclude: bool = False

    @property
    def key(self) -> str:
        """The part of a store's key that the prompts determine; empty without prompts."""
        return json.dumps(list(self)) if self.query or self.document else ""


NO_PROMPTS = UsedPrompts()


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        texts: name -> prompt.
        default: the name that `encode` uses where none is given; None = no prompt.
        exclude: leave the prompt's tokens out of pooling.
        from_file: whether they come from the user's own file. Then a labelled task may have a prompt under its name.

    Examples:
        >>> Prompts({"query": "query: ", "document": "passage: "}).named("query")
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    exclude: bool = False
    from_file: bool = False

    def named(self, name: str | None) -> str:
        """The prompt of a name; None = the default.

        Raises:
            ConfigError: no such name; the message lists the known ones.
        """
        name = self.default if name is None else name
        if name is None:
            return ""
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            raise ConfigError(f"prompt_name={name}: this model has no such prompt{nearest(name, self.texts)}; it has {known}")
        return self.texts[name]

    def for_task(self, task: str) -> UsedPrompts:
        """The prompt of a labelled task: empty, unless the user's own file has one under the task's name."""
        own = self.texts.get(task, "") if self.from_file else ""
        return UsedPrompts(own, own, self.exclude)

    def for_pairs(self) -> UsedPrompts:
        """The prompts of queries and of searched texts."""
        return UsedPrompts(self.first_of([QUERY]), self.first_of(list(DOCUMENT_NAMES)), self.exclude)

    def first_of(self, names: list[str]) -> str:
        """The prompt of the first known name; empty where no name is known."""
        return next((self.texts[name] for name in names if name in self.texts), "")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any] | None) -> "Prompts":
        """The inverse of `to_dict`; None, as in runs of older versions, = no prompts."""
        return cls(**(saved or {}))


def read_prompts(flag: str, model_file: Path | None, exclude: bool) -> Prompts:
    """The prompts that a run uses.

    Args:
        flag: `--prompts`: auto (the model's own file), none, or a JSON file {name: text} or {"prompts": {name: text}}.
        model_file: `config_sentence_transformers.json` of the model; None where it has none.
        exclude: leave the prompt's tokens out of pooling.

    Raises:
        ConfigError: a file that is missing or holds something else.
    """
    if flag == NONE or (flag == AUTO and model_file is None):
        return Prompts(exclude=exclude)
    path = model_file if flag == AUTO else expand_user(flag)
    assert path is not None
    shape = 'give a JSON file {"query": "...", "document": "..."}'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--prompts={flag}: {path} cannot be read ({error.strerror}); {shape}") from error
    except ValueError as error:
        raise ConfigError(f"--prompts={flag}: {path} is not JSON ({' '.join(str(error).split())}); {shape}") from error
    nested = isinstance(found, dict) and ("prompts" in found or flag == AUTO)
    texts = (found.get("prompts") or {}) if nested else found
    default = found.get("default_prompt_name") if nested else None
    if not isinstance(texts, dict) or not all(isinstance(text, str | None) for text in texts.values()):
        raise ConfigError(f"--prompts={flag}: {path} does not hold texts by name; {shape}")
    texts = {str(name): text or "" for name, text in texts.items()}
    if default is not None and not (isinstance(default, str) and default in texts):
        raise ConfigError(f"--prompts={flag}: {path} names {default!r} as its default and has no such prompt; mend it, or use none")
    return Prompts(texts, default, exclude, flag != AUTO)
