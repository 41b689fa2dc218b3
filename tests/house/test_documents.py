"""Every command and every Python block of the documents parses: a document that drifts from the code fails here."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from glot.cli import COMMANDS
from glot.errors import ConfigError
from glot.settings import commands as command_lines
from glot.settings.flags import STRESS_DEFAULTS, parse
from glot.settings.index import flag_facts

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "data/README.md",
]
NOT_HERE = ("no such folder", "no such file", "not there", "a JSON file that is there")
"""Complaints that follow from where the test runs: data, runs and checkpoints of an example do not exist."""
TOOLS = ("echo", "git", "hf", "pip", "wandb", "source", "bash", "ruff", "xargs", "sort", "tail")


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, text) of each fenced block in a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", match[1]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(place, words) of each command line; pipes and `&&` are cut, comments and leading variables dropped."""
    found = []
    for place, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            parts = " ".join("\0" if word in ("|", "&&") else shlex.quote(word) for word in words).split("\0")
            for part in parts:
                own = [word for word in shlex.split(part) if word != "..."]
                while own and re.fullmatch(r"[A-Z_]+=.*", own[0]):
                    own = own[1:]
                if own:
                    found.append((place, own))
    return found


def parses(words: list[str], defaults: dict | None = None) -> None:
    """The flags are known, their values allowed, and each does something in that run."""
    try:
        assert not parse(words, "main.py", defaults).inert or "--model_name_or_path=bert-base-uncased" in words  # the release's own line
    except ConfigError as error:
        unknown = [problem for problem in error.problems if not any(words in problem for words in NOT_HERE)]
        assert not unknown, unknown


def check_command(words: list[str]) -> None:
    """One command line.

    Raises:
        AssertionError: it would not run.
    """
    program = next((word for word in words if word.endswith((".py", "/glot")) or word in ("glot", "make", "pytest", *TOOLS)), words[0])
    rest = words[words.index(program) + 1 :]
    name = Path(program).name
    if name in ("main.py", "diagnostic_stress_test.py"):
        assert (ROOT / name).is_file()
        parses(rest, STRESS_DEFAULTS if name.startswith("diagnostic") else None)
    elif name == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in rest if "=" not in word), words
    elif name == "glot":
        assert rest[0] in COMMANDS, words
        parser = {"encode": lambda own: command_lines.parse_encode(own)[0]}.get(rest[0], getattr(command_lines, f"parse_{rest[0]}", None))
        if parser is not None:
            parser(rest[1:])
        elif rest[0] in ("run", "stress", "graph"):
            parses(rest[1:], STRESS_DEFAULTS if rest[0] == "stress" else {"pooling_method": "glot"} if rest[0] == "graph" else None)
        elif rest[0] == "sweep":
            assert (ROOT / rest[1]).is_file(), words
    elif "-m" in words and words[words.index("-m") + 1].startswith(("benchmarks", "glot")):
        module = words[words.index("-m") + 1].replace(".", "/")
        assert (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file(), words
    elif name.endswith(".py"):
        assert (ROOT / program).is_file() or name == "my_pooler.py", words  # which `glot new` writes
    else:
        named = [word for word in words if word.endswith((".sh", ".py")) and "*" not in word]
        assert all((ROOT / word).is_file() for word in named), words
        assert name in (*TOOLS, "pytest") or words[0].endswith(("/ruff", "/python", "torchrun")), f"who runs {words}?"


@pytest.mark.parametrize(("place", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_of_the_documents_would_run(place, words):
    check_command(words)


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=lambda value: value[:20])
def test_a_python_block_parses_and_names_what_is_there(place, text):
    import glot

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "glot":
            assert hasattr(glot, node.attr), node.attr


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headings in lower case, with hyphens for spaces and without signs."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere():
    broken, pages = [], [*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "DEVIATIONS", "SECURITY"))]
    for page in dict.fromkeys(pages):
        for target, anchor in re.findall(r"\]\(([^):\s#]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
            place = page.parent / target if target else page
            if not place.exists() or (anchor and anchor not in anchors(place)):
                broken.append(f"{page.name}: {target}#{anchor}")
    assert not broken, broken


def test_the_table_of_flags_without_effect_is_that_of_the_parser():
    text = (ROOT / "DEVIATIONS.md").read_text(encoding="utf-8").split("## Flags of the release that have no effect in a run")[1]
    named = {
        name
        for line in text.split("\n## ")[0].splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`--(\w+)", line.split("|")[1])
    }
    assert named == {name for name, facts in flag_facts().items() if not facts.ours and facts.acts}


def test_a_command_that_would_not_run_is_found():
    for words in (
        ["python", "main.py", "--pooling_metod=glot"],
        ["make", "nothing"],
        ["glot", "sing"],
        ["glot", "sweep", "configs/no.yaml"],
    ):
        with pytest.raises(AssertionError):
            check_command(words)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    outputs = sum(bool(cell.get("outputs")) for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) == outputs >= 7  # the page shows real output


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", sorted((ROOT / "docs/pages").glob("*.html")), ids=lambda path: path.name)
def test_committed_pages_are_those_that_the_toolkit_writes_today(page):
    text = page.read_text(encoding="utf-8")
    for name in ("page.css", "explain.js"):
        assert (ROOT / "glot/resources" / name).read_text(encoding="utf-8").strip() in text, f"write {page.name} again with glot explain"
