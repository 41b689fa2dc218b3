"""Pages: one self-contained HTML file from a template, styles and a script of this package. Whatever data bring is escaped."""

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup


def _read(name: str) -> str:
    return resources.files("glot").joinpath(f"resources/{name}").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(loader=FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["embedded"] = _embedded
    environment.globals["own"] = lambda name: Markup(_read(name))
    return environment


def _embedded(value: Any) -> Markup:
    """JSON inside a script element: `<` is written as an escape, so no text can end the element or open another."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)


def vector(svg: str, name: str) -> Markup:
    """A figure of ours as inline SVG, without the lines before its element; `name` stands before its identifiers."""
    own = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
    return Markup(own)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page.

    Args:
        path: of the file.
        template: under `resources`.
        values: of the template.
    """
    path.write_text(_environment().get_template(template).render(**values) + "\n", encoding="utf-8")
