"""The tokens of a text by name, and the word of the text that each belongs to."""

import re
from typing import NamedTuple

from glot.states.backbone.tokenizer import NO_LIMIT, Tokeniser


class NamedTokens(NamedTuple):
    """The tokens of a text by name, whether each is special, the word that it belongs to (-1 = none), and whether the text was cut."""

    tokens: list[str]
    special: list[bool]
    word_of: list[int]
    is_cut: bool


def name_tokens(tokeniser: Tokeniser, text: str, max_length: int, prompt: str = "") -> NamedTokens:
    """The tokens of `Tokeniser.tokenise` for one text, by name.

    A slow tokenizer, which has no offsets, encodes word by word. Where the words' ids are not those of the text, no word is known.
    """
    (ids,), _ = tokeniser.tokenise([text], max_length, prompt)
    (whole,), _ = tokeniser.tokenise([text], NO_LIMIT, prompt)
    tokenizer, known = tokeniser.tokenizer, set(tokeniser.tokenizer.all_special_ids)
    ends = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad", "mask")}
    known -= {tokenizer.unk_token_id} - ends  # it stands for a word of the text, where it is no other token's name too
    special = [token in known for token in ids]
    words = [match.span() for match in re.finditer(r"\S+", text)]
    word_of = [-1] * len(ids)
    if tokenizer.is_fast:
        spans = tokenizer(prompt + text, return_offsets_mapping=True, truncation=True, max_length=max_length)["offset_mapping"]
        for place, (start, end) in enumerate(spans[: len(ids)]):
            first, last = start - len(prompt), end - len(prompt)
            word_of[place] = next((at for at, (left, right) in enumerate(words) if first < right and left < last), -1)
    elif words:
        own = tokenizer([text[start:end] for start, end in words], add_special_tokens=False)["input_ids"]
        joined = [(at, token) for at, tokens in enumerate(own) for token in tokens]
        room = [min(len(joined), len(ids) - start) for start in range(len(ids))]
        starts = [at for at in range(len(ids)) if ids[at : at + room[at]] == [token for _, token in joined[: room[at]]]]
        if starts and (room[starts[0]] == len(joined) or len(whole) > len(ids)):
            for offset in range(room[starts[0]]):
                word_of[starts[0] + offset] = joined[offset][0]
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    return NamedTokens(names, special, word_of, len(whole) > len(ids))
