"""Cutting definitions out of a source: a name, with every statement that makes or changes what it refers to, and their imports.

So a run remembers, and an export carries, a pooler out of a script that also trains; and an export holds only what it can reach.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeGuard

from glot.errors import ConfigError, nearest

PACKAGE = "glot"


def cut_out(text: str, name: str, path: Path, problem: str) -> str:
    """The definition of `name` in a file, with every statement that makes or may change what it refers to, and their imports.

    Statements that use the definition itself, such as a training with it, are left out, unless they set something of it.

    Raises:
        ConfigError: no such definition, or an import that cannot be carried.
    """
    tree = ast.parse(text)
    if not any(name in made(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign)):
        kinds = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        raise ConfigError(f"{problem}: {path.name} defines no {name}{nearest(name, kinds)}; it defines {', '.join(kinds) or 'nothing'}")
    kept = reached(tree.body, {name}, name)
    for node in kept:
        _refuse_imports(node, path, problem)
    return "\n\n".join(ast.unparse(node) for node in kept) + "\n"


def reached(body: list[ast.stmt], names: set[str], target: str | None = None) -> list[ast.stmt]:
    """The statements, in their order, that make or may change `names` and all that these refer to, and the imports that they use.

    Args:
        body: of a module.
        names: what is wanted.
        target: definition of which mere users are left out.
    """
    body = [part for node in body for part in (node.orelse if _is_main_block(node) else [node])]
    imports = [node for node in body if is_import(node)]
    rest = [node for node in body if not is_import(node)]
    effects = ModuleEffects(rest)
    makes = {id(node): made(node) for node in rest}
    changes = {id(node): set[str]() if target is not None and target in effects.uses(node) else effects.changed_by(node) for node in rest}
    defined = set[str]().union(*makes.values())
    wanted, kept = set(names), set[int]()
    while True:
        more = [node for node in rest if id(node) not in kept and (makes[id(node)] | changes[id(node)]) & wanted]
        if not more:
            break
        kept |= {id(node) for node in more}
        wanted |= {used for node in more for used in _used(node)} & defined
    used = set[str]().union(*(_used(node) for node in rest if id(node) in kept))
    used |= {name for node in imports if _bound(node) & used for name in _used(node)}  # `try: ... except ImportError: quick = json`
    needed = {id(node): _only(node, used) for node in imports if is_future(node) or _bound(node) & (used | {"*"})}
    return [needed.get(id(node), node) for node in body if id(node) in kept or id(node) in needed]


class ModuleEffects:
    """What statements of a module may change beyond what they name as their aim: by calls, decorators, subclasses and other names.

    It errs on the side of more: a call may change whatever it is given, and what the functions behind it change.

    Args:
        body: its statements but imports.

    Examples:
        >>> ModuleEffects(tree.body).changed_by(tree.body[-1])  # of `fill(T)`: {"T"}, and what `fill` changes
    """

    def __init__(self, body: list[ast.stmt]) -> None:
        self.definitions: dict[str, list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = {}
        self.others: dict[str, set[str]] = {}
        mutable, fixed = set[str](), set[str]()
        for node in (inner for statement in body for inner in ast.walk(statement)):
            if isinstance(node, DEFINITIONS):
                self.definitions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Global):
                mutable |= set(node.names)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.comprehension | ast.withitem):
                value = node.iter if isinstance(node, ast.For | ast.comprehension) else getattr(node, "value", None)
                value = node.context_expr if isinstance(node, ast.withitem) else value
                for name in set().union(*(_stored(target) for target in _targets(node))):
                    self.others.setdefault(name, set()).update(_used(value) if value is not None else ())
                    (fixed if value is not None and _is_fixed(value) else mutable).add(name)
        self.fixed = fixed - mutable

    def uses(self, node: ast.AST) -> set[str]:
        """Names that a statement refers to, and those that the definitions among them refer to."""
        found, open_names = set[str](), _used(node)
        while open_names:
            found |= open_names
            open_names = {used for name in open_names for one in self.definitions.get(name, []) for used in _used(one)} - found
        return found

    def changed_by(self, node: ast.AST) -> set[str]:
        """Names whose objects may be others after a statement: those that it changes, and those that stand for the same objects."""
        found, open_names = set[str](), self._changes(_running(node), set())
        while open_names:
            found |= open_names
            open_names = {other for name in open_names for other in self.others.get(name, ())} - found
        return found - self.fixed

    def _changes(self, nodes: Iterable[ast.AST], seen: set[int]) -> set[str]:
        changed: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                changed.add(_root(node))
            elif isinstance(node, ast.Global):
                changed |= set(node.names)
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name) and node.func.id in READERS:
                    continue
                changed |= {_root(node.func)} if isinstance(node.func, ast.Attribute) else set()
                changed |= {used for given in (*node.args, *node.keywords) for used in _used(given)}
                changed |= self._changes_of(_root(node.func), seen)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for called in (*node.decorator_list, *getattr(node, "bases", ()), *(one.value for one in getattr(node, "keywords", ()))):
                    changed |= ({_root(called)} if isinstance(called, ast.Attribute) else set()) | self._changes_of(_root(called), seen)
        return changed

    def _changes_of(self, name: str, seen: set[int]) -> set[str]:
        """What a call of a definition of this module may change."""
        called = [one for one in self.definitions.get(name, []) if id(one) not in seen]
        seen |= {id(one) for one in called}
        return {found for one in called for found in self._changes((inner for part in one.body for inner in ast.walk(part)), seen)}


DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
READERS = (
    *("abs", "bool", "callable", "float", "format", "getattr", "hasattr", "hash", "id", "int", "isinstance", "issubclass", "len", "max"),
    *("min", "open", "print", "range", "repr", "round", "sorted", "str", "sum", "type"),
)
"""Functions of Python that change nothing that they are given."""


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with a statement: of a function its decorators and defaults alone."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parts: Iterable[ast.AST] = (*node.decorator_list, node.args)
    else:
        parts = ast.iter_child_nodes(node)
    for part in parts:
        yield from _running(part)


def _targets(node: ast.AST) -> list[ast.AST]:
    found = getattr(node, "targets", None) or [getattr(node, "target", None) or getattr(node, "optional_vars", None)]
    return [one for one in found if one is not None]


def _stored(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}


def _is_fixed(value: ast.AST) -> bool:
    """Whether an expression makes a number, a string, or a tuple of such, which nothing can change."""
    allowed = ast.Constant | ast.Tuple | ast.UnaryOp | ast.BinOp | ast.operator | ast.unaryop | ast.expr_context
    return all(isinstance(inner, allowed) for inner in ast.walk(value))


def _only(node: ast.stmt, used: set[str]) -> ast.stmt:
    """An import without the names that nobody uses."""
    if not isinstance(node, ast.Import | ast.ImportFrom) or is_future(node):
        return node
    names = [alias for alias in node.names if alias.name == "*" or (alias.asname or alias.name.partition(".")[0]) in used]
    kept = ast.Import(names) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, names, node.level)
    return ast.copy_location(kept, node)


def is_import(node: ast.stmt) -> bool:
    """An import, or a `try` whose body holds nothing but imports."""
    tried = isinstance(node, ast.Try) and all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body)
    return tried or isinstance(node, ast.Import | ast.ImportFrom)


def is_future(node: ast.stmt) -> bool:
    """`from __future__ import ...`, which must stand first in a file."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_main_block(node: ast.stmt) -> TypeGuard[ast.If]:
    """`if __name__ == "__main__":`, which is not run on an import either; its `else` is."""
    return isinstance(node, ast.If) and any(isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test))


def _bound(node: ast.AST) -> set[str]:
    """Names that imports bind; `*` for all of a module."""
    inside = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name.partition(".")[0] for inner in inside for alias in inner.names}


def made(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds, or names as what it changes: `K = 3`, `T["a"] = 1`, `L.append(2)`, `setattr(C, "a", 1)`.

    Also inside `if`, `for`, `try` and the like. A loop that changes its variable changes what it goes over: `for c in (A, B): c.a = 1`.
    """
    if isinstance(node, DEFINITIONS):
        return {node.name}
    bound, changed = _bound(node) - {"*"}, set[str]()
    for inner in ast.walk(node):
        if isinstance(inner, DEFINITIONS):
            bound.add(inner.name)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
            bound.add(inner.id)
        elif isinstance(inner, ast.MatchAs | ast.MatchStar | ast.MatchMapping):
            bound.add(str(inner.rest if isinstance(inner, ast.MatchMapping) else inner.name))
        elif isinstance(inner, ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store | ast.Del):
            changed.add(_root(inner))
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and not isinstance(node, ast.Assign | ast.AnnAssign):
            bound.add(_root(inner.func))
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in ("setattr", "delattr") and inner.args:
            changed.add(_root(inner.args[0]))
    loops = [inner for inner in ast.walk(node) if isinstance(inner, ast.For) and _used(inner.target) & changed]
    return bound | changed | {used for loop in loops for used in _used(loop.iter)}


def _root(node: ast.AST) -> str:
    """`T` of `T["a"].b`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _used(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _refuse_imports(node: ast.AST, path: Path, problem: str) -> None:
    """Imports that a run or an export cannot carry: of files beside, and of this package as a whole or inside a function."""
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Import | ast.ImportFrom):
            continue
        where = f"{problem}: line {inner.lineno} of {path.name}"
        module = "." * inner.level + (inner.module or "") if isinstance(inner, ast.ImportFrom) else ""
        for name in [module] if isinstance(inner, ast.ImportFrom) else [alias.name for alias in inner.names]:
            first = name.partition(".")[0]
            if first == PACKAGE and (isinstance(inner, ast.Import) or inner is not node):
                raise ConfigError(f"{where} imports {name}; write `from glot import Pooler, ...` at the top, which an export can carry")
            if first != PACKAGE and (name.startswith(".") or _is_beside(first, path.parent)):
                raise ConfigError(
                    f"{where} imports {name}, a file beside it: no run can carry it; "
                    "put what is needed into the same file, or make an installed package of it"
                )


def _is_beside(module: str, folder: Path) -> bool:
    """Whether a module is a file of the folder, and neither Python's nor of an installed package."""
    there = (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()
    return there and module not in sys.stdlib_module_names and module not in metadata.packages_distributions()
