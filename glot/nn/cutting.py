"""Cutting definitions out of a source: a name, with every statement that makes or changes what it refers to, and their imports.

So a run remembers, and an export carries, a pooler out of a script that also trains; and an export holds only what it can reach.
"""

import ast
import sys
from importlib import metadata
from pathlib import Path

from glot.errors import ConfigError, nearest

PACKAGE = "glot"


def cut_out(text: str, name: str, path: Path, problem: str) -> str:
    """The definition of `name` in a file, with every statement that makes or changes what it refers to, and their imports.

    Raises:
        ConfigError: no such definition, or an import that cannot be carried.
    """
    tree = ast.parse(text)
    if not any(name in made(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign)):
        kinds = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        raise ConfigError(f"{problem}: {path.name} defines no {name}{nearest(name, kinds)}; it defines {', '.join(kinds) or 'nothing'}")
    kept = reached(tree.body, {name})
    for node in kept:
        _refuse_imports(node, path, problem)
    return "\n\n".join(ast.unparse(node) for node in kept) + "\n"


def reached(body: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """The statements, in their order, that make or change `names` and all that these refer to, and the imports that they use."""
    imports = [node for node in body if is_import(node)]
    rest = [node for node in body if not is_import(node) and not _is_main_block(node)]
    makes = {id(node): made(node) for node in rest}
    defined = set().union(*makes.values())
    wanted, kept = set(names), set[int]()
    while True:
        more = [node for node in rest if id(node) not in kept and makes[id(node)] & wanted]
        if not more:
            break
        kept |= {id(node) for node in more}
        wanted |= {used for node in more for used in _used(node)} & defined
    used = set().union(*(_used(node) for node in rest if id(node) in kept))
    used |= {name for node in imports if _bound(node) & used for name in _used(node)}  # `try: ... except ImportError: quick = json`
    kept |= {id(node) for node in imports if is_future(node) or "*" in _bound(node) or _bound(node) & used}
    return [node for node in body if id(node) in kept]


def is_import(node: ast.stmt) -> bool:
    """An import, or a `try` whose body holds nothing but imports."""
    tried = isinstance(node, ast.Try) and all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in node.body)
    return tried or isinstance(node, ast.Import | ast.ImportFrom)


def is_future(node: ast.stmt) -> bool:
    """`from __future__ import ...`, which must stand first in a file."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_main_block(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`, which is not run on an import either."""
    return isinstance(node, ast.If) and any(isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test))


def _bound(node: ast.AST) -> set[str]:
    """Names that imports bind; `*` for all of a module."""
    inside = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name.partition(".")[0] for inner in inside for alias in inner.names}


def made(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds or changes: `K = 3`, `T["a"] = 1`, `L.append(2)`, `setattr(C, "a", 1)`.

    Also inside `if`, `for` and `with`. A loop that changes its variable changes what it goes over: `for c in (A, B): c.a = 1`.
    """
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    bound: set[str] = set()
    changed: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            bound.add(inner.name)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
            bound.add(inner.id)
        elif isinstance(inner, ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store | ast.Del):
            changed.add(_root(inner))
        elif isinstance(inner, ast.Call) and isinstance(node, ast.Expr | ast.For | ast.If | ast.With):
            if isinstance(inner.func, ast.Attribute):
                bound.add(_root(inner.func))
            elif isinstance(inner.func, ast.Name) and inner.func.id in ("setattr", "delattr") and inner.args:
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
