"""A user's own pooler or graph rule: found by `file.py:Name`, `package.module:Name` or an entry point, cut out of its file, and run."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import tokenize
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from glot.errors import ConfigError, library_door, nearest, reason
from glot.nn.cutting import PACKAGE, cut_out
from glot.nn.pooler import Pooler
from glot.types import TokenBatch

GROUP = "glot.poolers"
"""Entry points of installed packages that are poolers."""


class OwnCode(NamedTuple):
    """A definition of a user's.

    Attributes:
        name: as the flag names it.
        source: the definition with what it needs; of a package's module the whole file.
        module: to import, where it is of an installed package; None = the source is run.
        path: the module's file.
    """

    name: str
    source: str
    module: str | None = None
    path: Path = Path()

    @property
    def sha256(self) -> str:
        """Of the source without comments and docstrings: what results depend on."""
        return hashlib.sha256(ast.dump(_without_docstrings(ast.parse(self.source))).encode()).hexdigest()

    @property
    def attribute(self) -> str:
        """Name of the definition inside its module."""
        return self.name.rpartition(":")[2]


_classes: dict[str, Any] = {}
"""Classes that were handed over in this process: their files are not run again."""

_sources: dict[str, str] = {}
"""Sources of a finished run that is done again: they count, and not what is in the files now."""


def hold_sources(sources: dict[str, str]) -> None:
    """Take these definitions, by the names in flags, in place of what stands in the files from now on."""
    _sources.update(sources)


def hand_over(name: str, kind: Any) -> None:
    """Take a class or function that is at hand by the name that it has in a flag; its file is not run."""
    _classes[name] = kind


@contextmanager
def from_sources() -> Iterator[None]:
    """Inside, definitions are made of their sources, as a run that is loaded makes them, also those that are at hand."""
    kept = dict(_classes)
    _classes.clear()
    try:
        yield
    finally:
        _classes.update(kept)


def is_at_hand(name: str) -> bool:
    """Whether a class or function was handed over by this name."""
    return name in _classes


def is_own(name: str) -> bool:
    """Whether a value of `--pooling_method` or `--graph_adj` names a user's own definition."""
    return ":" in name or name in _sources or name in _entry_points()


def find_code(name: str, flag: str) -> OwnCode:
    """The definition that a flag names.

    Raises:
        ConfigError: no such file, module or definition, or one that cannot be cut out of its file.
    """
    if name in _sources:
        return OwnCode(name, _sources[name])
    name = _entry_points().get(name, name)
    place, _, attribute = name.rpartition(":")
    problem = f"--{flag}={name}"
    if not attribute.isidentifier():
        raise ConfigError(f"{problem}: must be file.py:Name or package.module:Name")
    if not place.endswith(".py"):
        origin = _module_file(place, problem)
        return OwnCode(name, origin.read_text(encoding="utf-8"), place, origin)
    path = Path(place).expanduser()
    if not path.is_file():
        beside = [f"{file.name}" for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"{problem}: no such file{nearest(path.name, beside)}; name a Python file and what is in it, file.py:Name")
    with library_door(ConfigError, lambda error: f"{problem}: is not Python ({reason(error)}); mend the file"):
        with tokenize.open(path) as stream:  # which knows the file's own encoding
            text = stream.read()
        ast.parse(text)
    return OwnCode(name, cut_out(text, attribute, path, problem))


def _module_file(module: str, problem: str) -> Path:
    with library_door(ConfigError, lambda error: f"{problem}: {module} cannot be imported ({reason(error)}); check the name"):
        found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise ConfigError(f"{problem}: there is no module {module} written in Python; install its package, or name file.py:Name")
    return Path(found.origin)


def _entry_points() -> dict[str, str]:
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


def run_code(code: OwnCode, problem: str) -> Any:
    """The object that a definition makes.

    Raises:
        ConfigError: its code fails.
    """
    if code.name in _classes:
        return _classes[code.name]

    def describe(error: Exception) -> str:
        advice = "mend it, or put what a script alone needs under if __name__ == '__main__'"
        return f"{problem}: its code cannot be run ({reason(error)}); {advice}"

    with library_door(ConfigError, describe):
        if code.module is not None:
            return getattr(importlib.import_module(code.module), code.attribute)
        module = types.ModuleType(f"glot_own_{code.sha256[:12]}")
        module.__file__ = f"<{code.name}>"
        linecache.cache[module.__file__] = (len(code.source), None, code.source.splitlines(keepends=True), module.__file__)
        sys.modules[module.__name__] = module
        tree = ast.parse(code.source)
        tree.body = [node for node in tree.body if not _take_from_package(node, vars(module))]
        exec(compile(tree, module.__file__, "exec"), vars(module))
        return getattr(module, code.attribute)


def _take_from_package(node: ast.stmt, names: dict[str, Any]) -> bool:
    """Fill in what a statement imports from this package: in an export, whose single file holds it all, there is no package."""
    if not isinstance(node, ast.ImportFrom) or str(node.module).partition(".")[0] != PACKAGE:
        return False
    names_of = [alias.name for alias in node.names]
    if names_of == ["*"]:
        names |= {name: value for name, value in _everything().items() if name not in names}
        return True
    for alias in node.names:
        home = vars(importlib.import_module(str(node.module))) if __name__.startswith(f"{PACKAGE}.") else globals()
        if alias.name not in home and __name__.startswith(f"{PACKAGE}."):
            home = {alias.name: getattr(importlib.import_module(str(node.module)), alias.name)}
        names[alias.asname or alias.name] = home[alias.name]
    return True


def _everything() -> dict[str, Any]:
    """What `from glot import *` brings; in an export, whatever its file holds."""
    if not __name__.startswith(f"{PACKAGE}."):
        return {name: value for name, value in globals().items() if not name.startswith("_")}
    package = importlib.import_module(PACKAGE)
    return {name: getattr(package, name) for name in package.__all__ if not name.startswith("_")}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


class OwnPooler(Pooler):
    """A user's module as a pooler, with what it gives checked.

    Args:
        code: of its class.
        in_dim: d.
        options: further arguments of its constructor.

    Raises:
        ConfigError: it cannot be made, or has no usable `out_dim`.

    Examples:
        >>> OwnPooler(find_code("my_pooler.py:Gated", "pooling_method"), 384, {"heads": 4})
    """

    def __init__(self, code: OwnCode, in_dim: int, options: dict[str, Any]) -> None:
        problem = f"--pooling_method={code.name}"
        kind = run_code(code, problem)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ConfigError(f"{problem}: must be a class of torch.nn.Module (glot.Pooler is one)")
        try:
            inspect.signature(kind).bind(in_dim, **options)
        except TypeError as error:
            raise ConfigError(
                f"{problem}: takes other options ({error}); it is made as {kind.__name__}{inspect.signature(kind)}"
            ) from error
        with library_door(ConfigError, lambda error: f"{problem}: cannot be made for d = {in_dim} ({reason(error)}); mend it"):
            net = kind(in_dim, **options)
            width = getattr(net, "out_dim", None)
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ConfigError(f"{problem}: out_dim is {width!r}; set it to the width of its vectors in the constructor")
        super().__init__(in_dim, width)
        if any(is_lazy(weight) for weight in net.parameters()):
            raise ConfigError(f"{problem}: has lazy layers, whose widths are not known; give each layer its widths")
        self.net: Any = net
        self.code, self._problem = code, problem

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, D), and weights (N,) where the module has a `readout`."""
        if not hasattr(self.net, "readout"):
            return self(batch), None
        with library_door(ConfigError, self._complaint):
            vectors, weights = self.net.readout(batch)
        vectors = self._checked(vectors, batch)
        if weights is not None and tuple(weights.shape) != (batch.tokens.shape[0],):
            raise ConfigError(
                f"{self._problem}: readout gives weights {tuple(weights.shape)}, not one per token ({batch.tokens.shape[0]},)"
            )
        return vectors, weights

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, D)."""
        with library_door(ConfigError, self._complaint):
            vectors = self.net(batch)
        return self._checked(vectors, batch)

    def _complaint(self, error: Exception) -> str:
        return f"{self._problem}: fails on a batch ({reason(error)}); mend it"

    def _checked(self, vectors: Any, batch: TokenBatch) -> Tensor:
        """The vectors in the tokens' precision."""
        found = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        if found != (len(batch), self.out_dim):
            raise ConfigError(f"{self._problem}: gives {found} for {len(batch)} sentences, not ({len(batch)}, {self.out_dim}); mend it")
        if not vectors.is_floating_point():
            raise ConfigError(f"{self._problem}: gives {vectors.dtype}, not floating-point numbers; mend it")
        return vectors.to(batch.tokens.dtype)
