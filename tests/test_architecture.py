"""The house rules of ARCHITECTURE.md, read off the source with `ast`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "glot"
FILES = sorted(PACKAGE.rglob("*.py"))
RANKS = {
    0: ("errors", "names"),
    1: ("config", "metrics", "losses", "progress", "distributed", "edges", "places", "locate", "prompts"),
    2: ("checks", "hub", "types"),
    3: ("segment", "graph", "heads", "datasets", "backbone", "store", "tracking"),
    4: ("poolers", "model", "loader", "census"),
    5: ("tasks", "tokens", "train", "evaluate", "stack"),
    6: ("checkpoint", "result", "report"),
    7: ("splits", "heatmap", "released"),
    8: ("encoder",),
    9: ("integrations", "run"),
    10: ("recipes",),
    11: ("flags", "demo", "workers"),
    12: ("sweep",),
    13: ("cli",),
    14: ("__main__",),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
INSIDE = {
    "backbone": ("source", "facts", "tokenizer", "states", "model", "live", "__init__"),
    "poolers": ("mixing", "gat", "convs", "fixed", "scored", "attention", "glot", "__init__"),
    "store": ("layout", "writer", "reader", "__init__"),
    "datasets": ("hub", "stress", "shortcuts", "pairs", "__init__"),
    "report": ("statistics", "tables", "plots", "published", "mteb", "study", "__init__"),
    "integrations": ("mteb", "sentence_transformers", "export", "__init__"),
}
"""Inside a package a module imports only those before it."""
DOORS = {
    "transformers": ("backbone",),
    "huggingface_hub": ("hub",),
    "datasets": ("datasets",),
    "torch_geometric": ("poolers",),
    "accelerate": ("distributed",),
    "peft": (),
    "mteb": ("integrations",),
    "sentence_transformers": ("integrations",),
    "wandb": ("tracking",),
    "matplotlib": ("report",),
    "argparse": ("flags", "sweep"),
    "yaml": ("flags", "sweep"),
    "sklearn": ("metrics", "datasets"),
    "scipy": ("metrics", "report"),
    "tqdm": ("progress",),
}


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Every imported module with its line, wherever the import stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node.module, node.lineno))
            if node.module == "glot":
                found += [(f"glot.{alias.name}", node.lineno) for alias in node.names if not alias.name.startswith("__")]
    return found


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_the_rules(path):
    tree = ast.parse(path.read_text())
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    for name, line in imports(tree):
        top, *rest = name.split(".")
        if top == "glot" and rest:
            if rest[0] == own and own in INSIDE:
                order = INSIDE[own]
                assert len(rest) == 1 or order.index(rest[1]) < order.index(parts[1]), f"{path.name}:{line} imports {name} upward"
            else:
                assert parts == ("__init__",) or RANK[rest[0]] < RANK[own], f"{path.name}:{line} ({RANK[own]}) imports {name} upward"
        assert top not in DOORS or own in DOORS[top], f"{path.name}:{line} opens a second door to {top}"
    assert len(path.read_text().splitlines()) <= 400
    for function in functions(tree):
        parameters = len(function.args.args) + len(function.args.kwonlyargs)
        assert function.end_lineno - function.lineno < 50, f"{path.name}: {function.name} is too long"
        assert parameters <= 8, f"{path.name}: {function.name} takes {parameters} parameters"


def test_one_optimizer_step_and_no_catch_all():
    steps, catches = [], []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "optimizer.step":
                steps.append(path.name)
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
                catches.append(path.name)
    assert steps == ["train.py"]
    assert catches == ["errors.py"]  # library_door


def test_every_module_has_a_rank():
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert names <= set(RANK)
