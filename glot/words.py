"""Numbers in sentences and tables."""


def counted(count: int, noun: str, plural: str = "", be: bool = False) -> str:
    """`1 row`, `2,767 rows`, `3 classes`; with `be` the verb too: `1 row is`, `2 rows are`."""
    words = f"{count:,} {noun if count == 1 else plural or noun + 's'}"
    return f"{words} {'is' if count == 1 else 'are'}" if be else words


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, and zero without a minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
