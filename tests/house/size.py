"""Size of the house: lines, files, arrows between them, the largest file and function. `python tests/house/size.py [REVISION]`."""

import ast
import subprocess
import sys


def room(path: str) -> str:
    """What an arrow leads from or to: a file's folder below `glot`, or the file itself where it lies at the top."""
    parts = path.removesuffix(".py").split("/")[1:]
    return "/".join(parts[:-1]) if len(parts) > 1 else parts[0]


def main(revision: str) -> None:
    """Print the figures of a commit."""
    names = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", revision, "glot"], text=True).split()
    files = {name: subprocess.check_output(["git", "show", f"{revision}:{name}"], text=True) for name in names if name.endswith(".py")}
    arrows, functions = set(), []
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("glot."):
                target = str(node.module).replace(".", "/")
                known = f"{target}.py" if f"{target}.py" in files else f"{target}/__init__.py"
                arrows |= {(room(name), room(known))} - {(room(name), room(name))} if known in files else set()
            if isinstance(node, ast.FunctionDef):
                functions.append(((node.end_lineno or 0) - node.lineno + 1, f"{name}: {node.name}"))
    lines = {name: text.count("\n") for name, text in files.items()}
    largest = max(lines, key=lines.__getitem__)
    rooms = {room(name) for name in files}
    print(f"{revision}: {sum(lines.values()):,} lines in {len(files)} files, {len(rooms)} rooms, {len(arrows)} arrows between them")
    print(f"largest file {largest} ({lines[largest]} lines), largest function {max(functions)[1]} ({max(functions)[0]} lines)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
