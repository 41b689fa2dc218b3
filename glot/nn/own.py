"""A user's own pooler or graph rule: found by `file.py:Name`, `package.module:Name` or an entry point, cut out of its file, and run.

Of a file only the named definition, what it refers to, and their imports are kept. That source is what a run remembers and an export
carries, so that a script which trains can hold its own pooler.
"""

import ast
import builtins
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from glot.errors import ConfigError, library_door, nearest, reason
from glot.nn.pooler import Pooler
from glot.types import TokenBatch

GROUP = "glot.poolers"
"""Entry points of installed packages that are poolers."""
PACKAGE = "glot"


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


_classes: dict[str, type] = {}
"""Classes that were handed over in this process: their files are not run again."""


def is_own(name: str) -> bool:
    """Whether a value of `--pooling_method` or `--graph_adj` names a user's own definition."""
    return ":" in name or name in _entry_points()


def find_code(name: str, flag: str) -> OwnCode:
    """The definition that a flag names.

    Raises:
        ConfigError: no such file, module or definition, or one that cannot be cut out of its file.
    """
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
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
    return OwnCode(name, cut_out(text, attribute, path, problem))


def _module_file(module: str, problem: str) -> Path:
    with library_door(ConfigError, lambda error: f"{problem}: {module} cannot be imported ({reason(error)}); check the name"):
        found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(f"{problem}: there is no module {module}; install its package, or name file.py:Name")
    return Path(found.origin)


def _entry_points() -> dict[str, str]:
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


def name_of_class(kind: type) -> str:
    """The name under which a class that is at hand can be named in a flag.

    Raises:
        ConfigError: it stands in no file (a notebook), or inside a function.
    """
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:
        file = None
    if file is None or not Path(file).is_file() or "." in kind.__qualname__:
        raise ConfigError(f"pooler={kind.__qualname__}: must stand at the top of a file, so that a run can be loaded again; save it as one")
    name = f"{file}:{kind.__qualname__}"
    _classes[name] = kind
    return name


def cut_out(text: str, name: str, path: Path, problem: str) -> str:
    """The definition of `name` in a file, with the definitions that it refers to and the imports that these need.

    Raises:
        ConfigError: no such definition, or an import that cannot be carried (of a file beside it).
    """
    tree = ast.parse(text)
    defined = {bound: node for node in tree.body if not _is_import(node) for bound in _bound(node)}
    if name not in defined:
        kinds = [bound for bound, node in defined.items() if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        raise ConfigError(f"{problem}: {path.name} defines no {name}{nearest(name, kinds)}; it defines {', '.join(kinds) or 'nothing'}")
    wanted, waiting = {name}, [name]
    while waiting:
        used = _used(defined[waiting.pop()])
        waiting += sorted(used & defined.keys() - wanted)
        wanted |= used & defined.keys()
    kept = {id(defined[bound]): defined[bound] for bound in wanted}
    used = set().union(*(_used(node) for node in kept.values()))
    imports = [node for node in tree.body if _is_import(node) and (set(_bound(node)) & used or _is_future(node))]
    for node in imports:
        _refuse_beside(node, path, problem)
    nodes = sorted([*kept.values(), *imports], key=lambda node: node.lineno)
    return "\n\n".join(ast.unparse(node) for node in nodes) + "\n"


def _is_import(node: ast.stmt) -> bool:
    """An import, or a `try` that holds nothing but imports."""
    tried = isinstance(node, ast.Try) and any(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body)
    return tried or isinstance(node, ast.Import | ast.ImportFrom)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        yield from (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store))
    elif isinstance(node, ast.Try):
        yield from (name for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom) for name in _bound(inner))


def _used(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} - set(dir(builtins))


def _refuse_beside(node: ast.AST, path: Path, problem: str) -> None:
    for inner in ast.walk(node):
        names = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else []
        names += [inner.module or "."] if isinstance(inner, ast.ImportFrom) else []
        for name in names:
            first = name.partition(".")[0]
            is_relative = isinstance(inner, ast.ImportFrom) and inner.level > 0
            if is_relative or (path.parent / f"{first}.py").is_file() or (path.parent / first / "__init__.py").is_file():
                raise ConfigError(
                    f"{problem}: line {getattr(inner, 'lineno', 0)} of {path.name} imports {name}, a file beside it: no run can carry it; "
                    "put what is needed into the same file, or make an installed package of it"
                )


def run_code(code: OwnCode, problem: str) -> Any:
    """The object that a definition makes.

    Raises:
        ConfigError: its code fails.
    """
    if code.name in _classes:
        return _classes[code.name]

    def describe(error: Exception) -> str:
        return f"{problem}: its code cannot be run ({reason(error)}); mend it"

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
    for alias in node.names:
        home = vars(importlib.import_module(str(node.module))) if __name__.startswith(f"{PACKAGE}.") else globals()
        if alias.name not in home and __name__.startswith(f"{PACKAGE}."):
            home = {alias.name: getattr(importlib.import_module(str(node.module)), alias.name)}
        names[alias.asname or alias.name] = home[alias.name]
    return True


def package_names(source: str) -> list[str]:
    """What a source imports from this package."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes if str(node.module).partition(".")[0] == PACKAGE for alias in node.names]


def libraries(source: str) -> list[str]:
    """Top-level modules that a source imports, but those of Python and of this package."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    first = dict.fromkeys(name.partition(".")[0] for name in names)
    return [name for name in first if name not in sys.stdlib_module_names and name != PACKAGE]


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
        self.net: Any = net
        self.code, self._problem = code, problem

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, D), and weights (N,) where the module has a `readout`."""
        if not hasattr(self.net, "readout"):
            return self(batch), None
        with library_door(ConfigError, self._complaint):
            vectors, weights = self.net.readout(batch)
        self._check(vectors, batch)
        if weights is not None and tuple(weights.shape) != (batch.tokens.shape[0],):
            raise ConfigError(
                f"{self._problem}: readout gives weights {tuple(weights.shape)}, not one per token ({batch.tokens.shape[0]},)"
            )
        return vectors, weights

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, D)."""
        with library_door(ConfigError, self._complaint):
            vectors = self.net(batch)
        self._check(vectors, batch)
        return vectors

    def _complaint(self, error: Exception) -> str:
        return f"{self._problem}: fails on a batch ({reason(error)}); mend it"

    def _check(self, vectors: Any, batch: TokenBatch) -> None:
        found = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        if found != (len(batch), self.out_dim):
            raise ConfigError(f"{self._problem}: gives {found} for {len(batch)} sentences, not ({len(batch)}, {self.out_dim}); mend it")
