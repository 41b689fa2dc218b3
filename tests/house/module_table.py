"""The module table of ARCHITECTURE.md, from each file's first sentence. `python tests/house/module_table.py` writes it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE, PACKAGE = ROOT / "ARCHITECTURE.md", ROOT / "glot"
START, END = "<!-- modules: written by tests/house/module_table.py -->", "<!-- end of modules -->"
ORDER = ("", "study", "explain", "integrations", "report", "training", "data", "states", "nn", "settings")


def first_sentence(path: Path) -> str:
    """What a file says of itself, up to the first full stop."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text)[0].rstrip(".:")


def table() -> str:
    """One row per file, wing by wing."""
    rows = ["| module | what is in it |", "|---|---|"]
    for wing in ORDER:
        files = sorted(PACKAGE.glob("*.py") if not wing else (PACKAGE / wing).rglob("*.py"))
        for path in files:
            name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/__init__", "/")
            if name != "__main__":
                rows.append(f"| `{name}` | {first_sentence(path)} |")
    return "\n".join(rows)


def page() -> str:
    """ARCHITECTURE.md with the table as it should be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
