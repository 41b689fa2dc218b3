"""Tokeniser: texts to token ids. Training, encoding and exports all prepare the tokenizer here."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from glot.errors import ConfigError, library_door, reason
from glot.hub import cache_where_unreachable, explain
from glot.locate import CONFIG_FILE, WEIGHT_FILES
from glot.progress import warn
from glot.states.backbone.source import AGAIN, BackboneSource
from glot.utf8 import is_utf8

SAVED_TEXTS = ["the red cat", "Unbelievably, 3.14 tokenizers' <tests>!", "Na\u00efve caf\u00e9 \u2014 \u03b1\u03b2 \u2603 \u4e2d\u6587", ""]
"""Texts on which a saved tokenizer is compared with the loaded one."""
NO_LIMIT = 1 << 30
"""The limit in tokens where neither tokenizer nor model names one."""


def load_tokenizer(source: BackboneSource) -> Any:
    """The tokenizer object of transformers for a backbone.

    Raises:
        ConfigError: it cannot be loaded, or does not fit the model.
    """

    def describe(error: Exception) -> str:
        found = explain(error, source.revision) or f"its tokenizer cannot be loaded ({reason(error)}); {AGAIN}"
        return f"--model_name_or_path={source.name}: {found}"

    with library_door(ConfigError, describe), cache_where_unreachable(is_local=source.revision is None):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.path, **source.options)
    entries, rows = len(tokenizer), source.vocabulary_claim
    if rows is not None and 2 * entries < rows:  # transformers returns an empty tokenizer where the files are missing
        raise ConfigError(
            f"--model_name_or_path={source.name}: its tokenizer knows {entries} tokens and the model {rows}; "
            "are the tokenizer's files missing?"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # prompts stand in front, and offsets are counted from there
    return tokenizer


class Tokeniser:
    """Texts -> token ids, special tokens included, without padding.

    Args:
        source: from `find_backbone`.

    Attributes:
        tokenizer: the tokenizer object of transformers.
        limit: most tokens per text by the tokenizer's settings; `NO_LIMIT` where they name none.
        rows: number of rows of the model's embedding; every id is smaller. `Backbone` sets it when the model is loaded.
        end_token: the id that a text without tokens is read as.

    Raises:
        ConfigError: see `load_tokenizer`.

    Examples:
        >>> ids, skips = Tokeniser(find_backbone("minilm")).tokenise(["a text"], max_length=128)
    """

    def __init__(self, source: BackboneSource) -> None:
        self.name, self.source, self.tokenizer = source.name, source, load_tokenizer(source)
        word = self.tokenizer.model_max_length
        self.limit = int(word) if isinstance(word, int | float) and not isinstance(word, bool) and 0 < word < NO_LIMIT else NO_LIMIT
        self.rows: int | None = source.vocabulary_claim
        self._prompt_lengths: dict[str, int] = {}
        self._empty_said = False

    def tokenise(
        self, texts: Sequence[str], max_length: int, prompts: Sequence[str] | str = "", exclude_prompt: bool = False
    ) -> tuple[list[list[int]], list[int]]:
        """Ids of each text with its prompt before it, cut to `max_length` tokens. A text without tokens is read as one end token.

        Args:
            texts: S texts.
            max_length: most tokens per text, prompt and special tokens included.
            prompts: one for all, or one per text.
            exclude_prompt: count the prompt's tokens, which are then left out of pooling.

        Returns:
            ids of S texts, and the number of leading tokens of each that belong to its prompt. That number is 0 unless `exclude_prompt`
            is set, and always smaller than the number of ids.

        Raises:
            ConfigError: the tokenizer fails, or gives an id that the model has no embedding for.
        """
        other = next((place for place, text in enumerate(texts) if not isinstance(text, str)), None)
        if other is not None:
            raise ConfigError(f"text {other} is {texts[other]!r}, not a text; give a list of strings")
        own = [prompts] * len(texts) if isinstance(prompts, str) else list(prompts)
        ids = self._encode([prompt + text for prompt, text in zip(own, texts, strict=True)], truncation=True, max_length=max_length)
        if not all(ids) and not self._empty_said:
            self._empty_said = True
            warn(f"{self.name}: a text without tokens is read as one end token")
        ids = [tokens or [self.end_token] for tokens in ids]
        if not exclude_prompt:
            return ids, [0] * len(ids)
        return ids, [min(self.prompt_length(prompt), len(tokens) - 1) for prompt, tokens in zip(own, ids, strict=True)]

    def prompt_length(self, prompt: str) -> int:
        """Number of a prompt's tokens, with special tokens before it and without the one after it (source: sentence-transformers)."""
        if prompt not in self._prompt_lengths:
            ids = self._encode([prompt])[0] if prompt else []
            ends = bool(ids) and ids[-1] in self.tokenizer.all_special_ids
            self._prompt_lengths[prompt] = len(ids) - ends
        return self._prompt_lengths[prompt]

    def special_ends(self) -> tuple[int, int]:
        """Numbers of special tokens that are put before and behind a text.

        Raises:
            ConfigError: they do not stand around the text.
        """
        whole, plain = self._encode(["a"])[0], self._encode(["a"], add_special_tokens=False)[0]
        places = [place for place in range(len(whole) - len(plain) + 1) if whole[place : place + len(plain)] == plain]
        if not plain or not places:
            raise ConfigError(f"--long_texts=windows: {self.name}: its special tokens do not stand around a text; use cut")
        return places[0], len(whole) - len(plain) - places[0]

    @property
    def end_token(self) -> int:
        known = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id)
        usable = [token for token in known if token is not None and (self.rows is None or token < self.rows)]
        return usable[0] if usable else 0

    @property
    def fill_token(self) -> int:
        """The id of padding. The mask hides it, but some models derive positions from where the padding id is."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and (self.rows is None or pad < self.rows) else self.end_token

    def read_plainly(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text without special tokens, and the span `[start, end)` of each token in the text.

        A slow tokenizer, which has no offsets, encodes word by word. Where the words' ids differ from the text's, each token's span is the
        whole text.
        """
        ids = self._encode([text], add_special_tokens=False, truncation=True, max_length=max_length)[0]
        if self.tokenizer.is_fast:
            coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return ids, [(int(start), int(end)) for start, end in coded["offset_mapping"]][: len(ids)]
        words = [match.span() for match in re.finditer(r"\S+", text)]
        own = self._encode([text[start:end] for start, end in words], add_special_tokens=False)
        spans = [span for span, tokens in zip(words, own, strict=True) for _ in tokens]
        joined = [token for tokens in own for token in tokens]
        return ids, spans[: len(ids)] if joined[: len(ids)] == ids else [(0, len(text))] * len(ids)

    def save(self, folder: Path) -> None:
        """Write the tokenizer so that it gives the same ids when it is loaded from there.

        Some tokenizers change their own files when they save them (BERTweet). Then the files that it was loaded from are copied.

        Raises:
            ConfigError: the saved tokenizer still gives other ids.
        """
        self.tokenizer.save_pretrained(folder)
        if self._is_saved_in(folder):
            return
        for file in self.source.files.iterdir():
            if file.is_file() and file.name != CONFIG_FILE and not any(file.match(pattern) for pattern in WEIGHT_FILES):
                shutil.copyfile(file, folder / file.name)
        if not self._is_saved_in(folder):
            raise ConfigError(
                f"--model_name_or_path={self.name}: its tokenizer gives other ids once it is saved; use --head_only, or another model"
            )

    def _is_saved_in(self, folder: Path) -> bool:
        def describe(error: Exception) -> str:
            return f"--model_name_or_path={self.name}: its tokenizer cannot be loaded once it is saved ({reason(error)}); use --head_only"

        with library_door(ConfigError, describe):
            again = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=self.source.trust_remote_code)
            return again(SAVED_TEXTS)["input_ids"] == self.tokenizer(SAVED_TEXTS)["input_ids"]

    def kept_characters(self, text: str, max_length: int | None) -> int:
        """Number of characters of a text that are left when it is cut to `max_length` tokens (None = not cut)."""
        if self.tokenizer.is_fast:
            cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
            coded = self.tokenizer(text, return_offsets_mapping=True, **cut)
            return max((end for _, end in coded["offset_mapping"]), default=0)
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        low, high = 0, len(ends)  # bisection: the first `low` words fit, at most `high` do
        while low < high:
            middle = (low + high + 1) // 2
            fits = max_length is None or len(self._encode([text[: ends[middle - 1]]])[0]) <= max_length
            low, high = (middle, high) if fits else (low, middle - 1)
        return ends[low - 1] if low else 0

    def _encode(self, texts: list[str], **options: Any) -> list[list[int]]:
        """Call the tokenizer and check the ids that it returns.

        Raises:
            ConfigError: see `tokenise`.
        """

        def describe(error: Exception) -> str:
            broken = next((text for text in texts if not is_utf8(text)), None)
            if broken is not None:
                return f"{broken[:40]!r}: holds half a surrogate pair, which no tokenizer reads; mend the text"
            return f"--model_name_or_path={self.name}: its tokenizer fails ({reason(error)}); {AGAIN}"

        if not texts:
            return []
        with library_door(ConfigError, describe):
            ids = self.tokenizer(texts, padding=False, return_attention_mask=False, return_token_type_ids=False, **options)["input_ids"]
        highest = max((max(tokens) for tokens in ids if tokens), default=0)
        if self.rows is not None and highest >= self.rows:
            raise ConfigError(
                f"--model_name_or_path={self.name}: its tokenizer gives id {highest} ({self.tokenizer.convert_ids_to_tokens(highest)!r}), "
                f"its embedding has {self.rows} rows; tokenizer and weights do not belong together"
            )
        return ids


def kept_characters(source: BackboneSource, texts: list[str], max_length: int | None) -> list[int]:
    """`Tokeniser.kept_characters` of each text: (S,)."""
    tokeniser = Tokeniser(source)
    return [tokeniser.kept_characters(text, max_length) for text in texts]
