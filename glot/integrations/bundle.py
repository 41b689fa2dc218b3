"""The source code of an export: one file, joined from the modules of this package that it needs."""

import ast
from functools import cache
from pathlib import Path

import glot
from glot.errors import ConfigError

ROOT_MODULE = "glot.integrations.sentence_transformers"


@cache
def bundle(root: str = ROOT_MODULE) -> str:
    """`root` and all modules of this package that it needs, as one source file: first their imports without repeats, then their code.

    Raises:
        ConfigError: see `modules_needed`.
    """
    imports: dict[str, None] = {"import importlib": None, "from typing import Any": None}
    bodies, for_annotations = [], set()
    for name in modules_needed(root):
        text = _file(name).read_text(encoding="utf-8")
        lines = text.splitlines()
        for index, node in enumerate(ast.parse(text).body):
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            if is_import and not _is_own(node) and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
                imports[ast.unparse(node)] = None
            if _is_for_types(node):
                for_annotations |= {alias.name for inner in ast.walk(node) for alias in _own_names(inner)}
            is_docstring = index == 0 and isinstance(node, ast.Expr)
            if is_import or is_docstring or _is_for_types(node):
                lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
        bodies.append(f"# {name.removeprefix('glot.')}\n" + "\n".join(lines).strip("\n"))
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
    return _import_pyg_late(joined)


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
