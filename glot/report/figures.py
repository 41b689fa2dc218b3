"""What every figure shares: made without pyplot, plain names, boxes said once, files. The only module that imports matplotlib."""

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from glot.progress import warn

Given = ParamSpec("Given")
Drawn = TypeVar("Drawn")
MOST_NAME = 48
"""Characters of a name beside a figure."""


def drawing(draw: Callable[Given, Drawn]) -> Callable[Given, Drawn]:
    """Around what draws a file: a dollar sign in a name opens no formula, and characters that the font lacks are said once."""

    @functools.wraps(draw)
    def drawn(*args: Given.args, **options: Given.kwargs) -> Drawn:
        """The same figure, with what is said of it."""
        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", LACKS)
            found = draw(*args, **options)
        for other in (one for one in caught if not re.match(LACKS, str(one.message))):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        if any(re.match(LACKS, str(one.message)) for one in caught):
            path = next((value for value in (*args, *options.values()) if isinstance(value, Path)), "a figure")
            warn(f"{path}: the font of figures lacks characters of these names and shows boxes; pages of --html show them")
        return found

    return drawn


LACKS = "Glyph .* missing from"


def shortened(name: str) -> str:
    """A name that leaves room for the figure beside it; its middle goes."""
    half = MOST_NAME // 2
    return name if len(name) <= MOST_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], dpi: int = 150, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, made without pyplot, because pyplot would choose a backend for the whole process."""
    figure = Figure(figsize=figsize, dpi=dpi)
    return figure, figure.subplots(rows, columns, **options)


def log_axis(axes: Any) -> None:
    """A logarithmic x axis whose numbers are plain: matplotlib writes its powers as formulas, which `drawing` shows as they are."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if low > 0 and math.log10(high / low) < 2:  # at most one power of ten may lie inside: 1, 2 and 5 of each decade get a number
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


@contextmanager
def seeded_svg() -> Iterator[None]:
    """Figures that are drawn as SVG meanwhile keep their texts as text, and are the same each time."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "glot"}):
        yield


FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG, and as PDF and SVG beside it."""
    for suffix in FIGURE_SUFFIXES:
        figure.savefig(path.with_suffix(suffix), bbox_inches="tight")
