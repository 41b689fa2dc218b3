"""What code a run's numbers depend on, as one hash: a pooler that was edited gives another fingerprint."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import glot

CORE = (
    *("glot.training.train", "glot.training.record", "glot.training.evaluate", "glot.training.metrics", "glot.training.splits"),
    *("glot.data.loader", "glot.data.tasks", "glot.states.backbone.model", "glot.states.backbone.states", "glot.states.tokens"),
    *("glot.nn.model", "glot.nn.heads", "glot.nn.losses"),
)
"""Modules that every run goes through; what they import counts too."""
NOT_NUMBERS = (
    *(
        "glot.settings",
        "glot.errors",
        "glot.progress",
        "glot.hub",
        "glot.locate",
        "glot.files",
        "glot.utf8",
        "glot.trust",
        "glot.interrupts",
    ),
    *("glot.data.hub", "glot.data.tables", "glot.data.parquet", "glot.data.custom", "glot.data.records", "glot.data.pairs"),
    *("glot.data.stress", "glot.data.labels", "glot.states.store", "glot.training.checkpoint", "glot.training.result_file"),
    *("glot.training.predictions", "glot.training.resume", "glot.training.folders", "glot.nn.own", "glot.nn.stack", "glot.interrupts"),
)
"""Modules that decide no number: flags and rows count by their values, own code and the pooler's module by themselves."""
PACKAGES = ("glot.data", "glot.nn.poolers")
"""Packages whose own file only gathers what is in them."""


def code_hash(*modules: str) -> str:
    """Hash of the syntax trees, without docstrings and comments, of the core and of further modules (the run's pooler's)."""
    roots = dict.fromkeys([*CORE, *modules])
    needed: dict[str, None] = {}
    for root in roots:
        _visit(root, needed)
    listing = [f"{name} {_tree_hash(name)}" for name in sorted(needed)]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


def _visit(name: str, found: dict[str, None]) -> None:
    if name in found:
        return
    found[name] = None
    for other in _imports(name):
        if not other.startswith(NOT_NUMBERS) and other not in PACKAGES:
            _visit(other, found)


def _file(name: str) -> Path:
    path = Path(str(glot.__file__)).parent.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(name: str) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return tree


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Modules of this package that a module imports at its top, or inside a function."""

    def walk() -> Iterator[str]:
        """Each, as it stands in the source."""
        for node in ast.walk(_tree(name)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("glot.") and _file(str(node.module)).is_file():
                yield str(node.module)

    return tuple(dict.fromkeys(walk()))


@cache
def _tree_hash(name: str) -> str:
    return hashlib.sha256(ast.dump(_tree(name)).encode()).hexdigest()[:16]


def _is_text(node: ast.stmt) -> bool:
    """A docstring, or a text that stands under a constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
