"""An edited pooler gives another fingerprint; an edited comment, or a pooler that the run does not use, gives none."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from glot.nn.poolers import CLASSES
from glot.training import code


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A copy of the package whose files a test may change; `edited(file, before, after)` -> hash by pooler."""
    shutil.copytree(ROOT / "glot", tmp_path / "glot", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "_file", lambda name: _place(tmp_path, name))

    def change(file: str, before: str, after: str) -> dict[str, str]:
        path = tmp_path / "glot" / file
        text = path.read_text()
        assert before in text, before
        path.write_text(text.replace(before, after))
        code._imports.cache_clear()
        code._tree.cache_clear()
        code._tree_hash.cache_clear()
        found = {name: code.code_hash(CLASSES[name].__module__) for name in ("mean", "adapool", "glot")}
        path.write_text(text)
        return found

    yield change
    code._imports.cache_clear()
    code._tree.cache_clear()
    code._tree_hash.cache_clear()


def _place(root: Path, name: str) -> Path:
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_the_hash_follows_the_code_that_a_runs_numbers_go_through(edited):
    plain = edited("nn/poolers/glot.py", "class GlotPooler", "class GlotPooler")
    assert len(set(plain.values())) == 3

    def changed(*edit: str) -> set[str]:
        return {name for name, value in edited(*edit).items() if value != plain[name]}

    assert changed("nn/poolers/glot.py", "SMALLEST_SCORER = 128", "SMALLEST_SCORER = 64") == {"glot"}
    assert changed("nn/poolers/convs.py", "norm_kwargs", "norm_kwarg") == {"glot"}
    assert changed("nn/graph.py", "> view.rule.tau", ">= view.rule.tau") == {"glot"}
    assert changed("nn/poolers/scored.py", "nn.Tanh()", "nn.ReLU()") == {"adapool", "glot"}  # GLOT scores its tokens with it
    assert changed("nn/segment.py", "TOKENS_PER_PRODUCT, TOKENS_ON_CARD = 1024", "TOKENS_PER_PRODUCT, TOKENS_ON_CARD = 512") == {
        "mean",
        "adapool",
        "glot",
    }
    assert changed("training/train.py", "model.train()", "model.eval()") == {"mean", "adapool", "glot"}
    assert changed("states/backbone/states.py", "TOLERANCES = {", "TOLERANCE = {") == {"mean", "adapool", "glot"}
    assert changed("nn/poolers/glot.py", "SMALLEST_SCORER = 128", "SMALLEST_SCORER = 128  # a comment") == set()
    assert changed("training/train.py", '"""One pass', '"""Another word: one pass') == set()
    assert changed("report/figures.py", "dpi: int = 150", "dpi: int = 151") == set()
    assert changed("cli.py", "def main", "def main_") == set()
