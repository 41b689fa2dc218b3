"""The source code of an export: one file, joined from the modules of this package that it needs."""

import ast
import re
from functools import cache
from pathlib import Path

import glot
from glot.errors import ConfigError
from glot.nn.cutting import is_future, is_import, made, reached

ROOT_MODULE = "glot.integrations.sentence_transformers"
EXAMPLES = re.compile(r'\n\n +Examples:\n(?:(?! *""").*\n)*(?= *""")')
"""The last part of a docstring: how Python callers of the package use it."""
EVERYTHING = "*"
"""In place of a name: all that the modules define."""


@cache
def bundle(names: frozenset[str] = frozenset(), root: str = ROOT_MODULE) -> str:
    """One source file: of `root` and the modules of this package that it needs, what `root` and `names` refer to, imports first.

    Args:
        names: further definitions to hold, such as what a user's own pooler imports; `*` for all.
        root: module that is held as a whole.

    Raises:
        ConfigError: see `modules_needed`.
    """
    texts = {name: _file(name).read_text(encoding="utf-8") for name in modules_needed(root)}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    nodes = [node for tree in trees.values() for node in tree.body if not (_is_for_types(node) or _is_own(node) or is_future(node))]
    wanted = set(names).union(*(made(node) for node in (nodes if EVERYTHING in names else trees[root].body)))
    kept = reached(nodes, wanted)
    typed = [node for tree in trees.values() for node in tree.body if _is_for_types(node)]
    for_annotations = {alias.name for node in typed for inner in ast.walk(node) for alias in _own_names(inner)}
    whole = {id(node) for node in kept if not is_import(node)}
    imports = _merged([*ast.parse("import importlib; from typing import Any").body, *(node for node in kept if is_import(node))])
    parts = {name: _lines_of(texts[name], tree.body, whole) for name, tree in trees.items()}
    bodies = [f"# {name.removeprefix('glot.')}\n{part}" for name, part in parts.items() if part]
    notice = f'"""The pooler of a GLOT export, version {glot.__version__} of glot-toolkit, MIT licence. Written by `glot export`."""'
    joined = "\n".join(
        [
            notice,
            "",
            "from __future__ import annotations",
            "",
            *imports,
            "",
            *(f"{name} = Any" for name in sorted(for_annotations)),
            "\n",
            "\n\n\n".join(bodies),
            "",
        ]
    )
    return _import_pyg_late(EXAMPLES.sub("\n", joined))


def _merged(imports: list[ast.stmt]) -> list[str]:
    """Imports with one line per module."""
    lines: dict[str, None] = {}
    names: dict[str, set[str]] = {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(str(node.module), set()).update(ast.unparse(alias) for alias in node.names)
        else:
            lines[ast.unparse(node)] = None
    return [*sorted(lines), *(f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names))]


def _lines_of(text: str, body: list[ast.stmt], kept: set[int]) -> str:
    """Of a module the kept statements, each with the comment above it and the string below it that describes it."""
    lines, end, held, parts = text.splitlines(), 0, False, []
    for node in body:
        is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        held = id(node) in kept or (is_string and held)
        parts += lines[end : node.end_lineno] if held else []
        end = node.end_lineno or end
    return "\n".join(parts).strip("\n")


def defined_names(text: str) -> set[str]:
    """Names that a joined source defines or imports at its top."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}
    return names


def modules_needed(root: str) -> list[str]:
    """The modules of this package that `root` imports, directly or not, in topological order, `root` last.

    Imports under `if TYPE_CHECKING` are skipped: they are for annotations, which a joined file never evaluates.

    Raises:
        ConfigError: an import that cannot be joined: of a module as a whole, under another name, or inside a function.
    """
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        """Add a module after those that it imports."""
        if name in found:
            return
        tree = ast.parse(_file(name).read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and _is_own(node)]
        for_types = {id(inner) for node in tree.body if _is_for_types(node) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or not _is_own(node):
                continue
            nested = id(node) not in for_types and node not in top
            renamed = node in top and (isinstance(node, ast.Import) or any(alias.asname for alias in node.names))
            if nested or renamed:
                raise ConfigError(f"{name}, line {node.lineno}: an export cannot carry `{ast.unparse(node)}`; import names at the top")
        for node in top:
            visit(str(getattr(node, "module", "")))
        found[name] = None

    visit(root)
    return list(found)


def _file(name: str) -> Path:
    """The source file of a module or package.

    Raises:
        ConfigError: there is none.
    """
    path = Path(glot.__file__).parent.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        raise ConfigError(f"{name}: an export needs it, and there is no {file}")
    return file


def _is_own(node: ast.AST) -> bool:
    """Whether a statement imports from this package."""
    if isinstance(node, ast.ImportFrom):
        return str(node.module).split(".")[0] == "glot"
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "glot" for alias in node.names)


def _own_names(node: ast.AST) -> list[ast.alias]:
    """What a statement imports from this package."""
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) and _is_own(node) else []


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _import_pyg_late(text: str) -> str:
    """Turn imports of torch_geometric into calls of `import_module`.

    transformers' loader requires every package named in an import statement, but torch_geometric is needed by some poolers only.
    """
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words[:3] == ["from", "torch_geometric.nn", "import"]:
            indent = line[: len(line) - len(line.lstrip())]
            line = f'{indent}{words[3]} = importlib.import_module("torch_geometric.nn").{words[3]}'
        lines.append(line)
    return "\n".join(lines) + "\n"
