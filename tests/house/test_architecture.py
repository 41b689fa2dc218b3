"""The house rules of ARCHITECTURE.md as sentences, read off the source with `ast`. A new file in a wing needs no entry here."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import module_table
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "glot"
FILES = sorted(PACKAGE.rglob("*.py"))
STOREYS = (
    ("__main__",),
    ("cli",),
    ("subcommands",),
    ("api",),
    ("study", "doctor", "starters"),
    ("reuse",),
    ("recipes", "new_texts", "surveys", "explain"),
    ("integrations",),
    ("predictor", "encoders"),
    ("opening",),
    ("encoder",),
    ("report",),
    ("training",),
    ("data",),
    ("states", "nn"),
    ("settings",),
    ("distributed",),
    (
        "hub",
        "hub_card",
        "files",
        "csv_files",
        "utf8",
        "cache",
        "locate",
        "prompts",
        "types",
        "progress",
        "words",
        "trust",
        "interrupts",
        "locks",
        "machine",
        "given",
        "errors",
    ),
)
"""A wing imports only from storeys below its own; wings of one storey do not import each other, but the ground floor is one house."""
STOREY = {name: level for level, names in enumerate(STOREYS) for name in names}
GROUND = len(STOREYS) - 1
DOORS = {
    "transformers": ("states/backbone",),
    "tokenizers": ("states/backbone",),
    "huggingface_hub": ("hub", "hub_card"),
    "datasets": ("data/hub",),
    "pyarrow": ("data/parquet",),
    "torch_geometric": ("nn/poolers",),
    "accelerate": ("distributed", "training/tracking"),
    "submitit": ("study/cluster",),
    "optuna": ("study/search",),
    "peft": ("states/backbone/adapters",),
    "mteb": ("integrations/mteb",),
    "sentence_transformers": ("integrations",),
    "wandb": ("training/wandb_runs",),
    "matplotlib": ("report/figures",),
    "argcomplete": ("settings/commands",),
    "argparse": ("settings/flags", "settings/commands", "study/sweep"),
    "yaml": ("settings/flags", "settings/strict_yaml", "study/files", "nn/poolers"),
    "sklearn": ("training/metrics", "training/linear_heads", "data"),
    "scipy": ("training/metrics", "study/statistics"),
    "tqdm": ("progress",),
    "jinja2": ("report/page",),
    "xxhash": ("states/store/checksums",),
}
"""Library -> the only files or wings that import it."""
FORBIDDEN_NAMES = ("utils", "helpers", "common", "misc", "manager")


def place(path: Path) -> str:
    """`nn/poolers/glot` for its file."""
    return str(path.relative_to(PACKAGE).with_suffix("")).removesuffix("/__init__")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever the import stands, but for those that are only for annotations."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield str(node.module), node.lineno
            if node.module == "glot" or (PACKAGE / "/".join(str(node.module).split(".")[1:])).is_dir():
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wings_of(name: str) -> str | None:
    """The wing that a module of ours is in; None for a name of the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "glot" and len(parts) > 1 and parts[1] in STOREY else None


def check_none(rule: str, broken: list[str]) -> None:
    assert not broken, f"{rule}\n" + "\n".join(broken)


def test_a_wing_imports_only_from_storeys_below():
    broken = []
    for path in FILES:
        own = place(path).split("/")[0]
        for name, line in imports(path):
            wing = wings_of(name)
            if wing is None or wing == own or own in (".", "__init__"):
                continue
            below = STOREY[wing] > STOREY[own] or STOREY[wing] == STOREY[own] == GROUND
            if not below:
                broken.append(f"{path}:{line}: {own} imports {name}")
    check_none("A wing imports only from storeys below its own.", broken)


def test_no_two_modules_import_each_other():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        names = {name for name, _ in imports(path) if name.startswith("glot.")}
        found = {known for name in names if (known := name.replace(".", "/").removeprefix("glot/")) and _is_module(known)}
        graph[place(path)] = {name for name in found if name != place(path)}
    graph = {name: {other for other in others if other not in ("", ".")} for name, others in graph.items() if name not in ("", ".")}
    packages = {name for name in graph if (PACKAGE / name).is_dir()}
    inner = {
        name: {other for other in others if not (other in packages and name.startswith(f"{other}/"))} for name, others in graph.items()
    }
    order = list(graphlib.TopologicalSorter(inner).static_order())  # raises where there is a circle, and names it
    assert set(inner) <= set(order)


def _is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()


def test_each_library_has_one_door():
    broken = []
    for path in FILES:
        for name, line in imports(path):
            allowed = DOORS.get(name.split(".")[0])
            if allowed is not None and not any(place(path) == door or place(path).startswith(f"{door}/") for door in allowed):
                broken.append(f"{path}:{line}: {name} is imported by {', '.join(allowed) or 'nobody'} alone")
    check_none("Each library has one door.", broken)


def test_files_functions_and_parameter_lists_are_short():
    broken = []
    for path in FILES:
        lines = path.read_text().splitlines()
        if len(lines) > 400:
            broken.append(f"{path}: {len(lines)} lines, at most 400")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                size, count = node.end_lineno - node.lineno, len(node.args.args) + len(node.args.kwonlyargs)
                if size >= 50:
                    broken.append(f"{path}:{node.lineno}: {node.name} has {size + 1} lines, at most 50")
                if count > 8:
                    broken.append(f"{path}:{node.lineno}: {node.name} takes {count} parameters, at most 8")
    check_none("A file has at most 400 lines, a function 50 lines and 8 parameters.", broken)


def calls_and_handlers(kind: type) -> Iterator[tuple[Path, ast.AST]]:
    for path in FILES:
        yield from ((path, node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kind))


def test_one_place_steps_an_optimizer():
    steps = [place(path) for path, node in calls_and_handlers(ast.Call) if ast.unparse(node.func) == "optimizer.step"]
    assert steps == ["training/train"]


def test_one_place_reads_csv_files():
    """Elsewhere a long text would be an error: Python's reader has a limit of its own."""
    readers = {place(path) for path, node in calls_and_handlers(ast.Attribute) if ast.unparse(node) in ("csv.reader", "csv.DictReader")}
    assert readers == {"csv_files", "report/published"}  # the latter of figures in the package


def test_one_place_catches_every_exception():
    caught = [
        place(path) for path, node in calls_and_handlers(ast.ExceptHandler) if node.type is None or ast.unparse(node.type) == "Exception"
    ]
    assert caught == ["errors"]  # library_door, for five doors


def test_every_module_says_what_is_in_it_and_none_is_a_drawer():
    broken = [f"{path}: no docstring" for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    broken += [f"{path}: names no content" for path in FILES if path.stem in FORBIDDEN_NAMES or path.stem.startswith("base_")]
    check_none("Every module says in its first line what is in it.", broken)


def test_the_module_table_is_that_of_the_tree():
    assert module_table.PAGE.read_text(encoding="utf-8") == module_table.page(), "python tests/house/module_table.py writes it anew"


def test_every_wing_stands_on_a_storey():
    names = {place(path).split("/")[0] for path in FILES} - {".", "__init__"}
    assert names <= set(STOREY)


@pytest.mark.parametrize("rule", ["up", "door"])
def test_a_broken_rule_is_named_by_file_line_and_sentence(rule, tmp_path, monkeypatch):
    (tmp_path / "nn").mkdir()
    line = {"up": "from glot.training.train import fit", "door": "import transformers"}[rule]
    (tmp_path / "nn" / "odd.py").write_text(f'"""Odd."""\n\n{line}\n')
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "FILES", [tmp_path / "nn" / "odd.py"])
    check = {"up": test_a_wing_imports_only_from_storeys_below, "door": test_each_library_has_one_door}[rule]
    with pytest.raises(AssertionError, match=r"(A wing imports only|Each library has one door)[\s\S]*nn/odd\.py:3: "):
        check()


BROUGHT = {"pandas", "pyarrow", "markupsafe"}
"""Libraries that `datasets` and Jinja2 are made of."""


def test_every_library_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "glot").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    first = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"glot"}
    owners = metadata.packages_distributions()
    undeclared = {name for name in first if not {owner.lower().replace("_", "-") for owner in owners.get(name, [])} & declared}
    assert undeclared == BROUGHT


def test_types_hold():
    """Here, so that `make test` checks them beside other tests."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
