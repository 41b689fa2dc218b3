"""Whether a text can be written: UTF-8 takes no half of a surrogate pair."""


def is_utf8(text: str) -> bool:
    """False for half a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
