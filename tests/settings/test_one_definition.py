"""A new flag is one new field: parser, help, checks, fingerprint, run folder and what a checkpoint brings follow from it."""

import json
import shutil

import processes
import pytest
from conftest import ROOT

from glot.errors import ConfigError
from glot.settings.config import RunConfig

FIELD = '    heads: int = flag(4, POOLER, "number of heads", bounds=(1, 64), acts="glot", ours=True, brought=WEIGHTS)\n'


@pytest.fixture
def extended(tmp_path):
    """A copy of the package with one more field, and a function that runs it."""
    package = tmp_path / "copy" / "glot"
    shutil.copytree(ROOT / "glot", package, ignore=shutil.ignore_patterns("__pycache__"))
    sections = package / "settings" / "sections.py"
    before, after = sections.read_text().split("    jk_mode: str = flag(", 1)
    sections.write_text(before + FIELD + "    jk_mode: str = flag(" + after)

    def call(*commands: list[str]) -> list[dict]:
        """What each command gives, all in one new process."""
        return processes.answers(list(commands), cwd=tmp_path, path=(package.parent,))

    return call


@pytest.mark.slow
def test_a_flag_is_a_field(extended, tiny_flags, tmp_path):
    glot = ["run", *tiny_flags, "--pooling_method=glot"]
    mteb = ["run", "--task=mteb", f"--checkpoint_path={tmp_path / 'runs/h7'}", "--mteb_task=X", "--print_config"]
    shown, wrong, idle, four, seven, brought, other = extended(
        ["run", "--help"],
        [*glot, "--heads=65"],
        ["run", *tiny_flags, "--pooling_method=mean", "--heads=2"],
        [*glot, "--heads=4", "--run_name=h4", "--epochs=1"],
        [*glot, "--heads=7", "--run_name=h7", "--epochs=1"],
        mteb,
        [*mteb, "--heads=4"],
    )
    assert shown["code"] == 0 and "--heads INT" in shown["out"] and "number of heads [4]" in shown["out"]
    assert "--heads=65: must be between 1 and 64" in wrong["err"] and "--heads: has no effect in this run" in idle["err"]
    assert four["code"] == seven["code"] == 0, (four, seven)
    assert json.loads(four["out"])["fingerprint"] != json.loads(seven["out"])["fingerprint"]
    assert json.loads((tmp_path / "runs/h7/config.json").read_text())["flags"]["heads"] == 7
    assert "heads: 7\n" in brought["out"]
    assert "--heads=4: " in other["err"] and "was trained with 7" in other["err"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"lr": -1.0}, "--lr=-1.0: must be between 0 and 1000"),
        ({"tau": 5.0}, "--tau=5.0: must be at least -1 and below 1"),
        ({"pooling_method": "glott"}, r"--pooling_method=glott: unknown \(did you mean 'glot'\?\)"),
        ({"epochs": "3"}, "--epochs='3': must be a whole number"),
        ({"verbose": 1}, "--verbose=1: must be 0 or 1"),
        ({"batch_size": None}, "--batch_size=None: must be a whole number"),
        ({"pooling_metod": "glot"}, r"pooling_metod: no such flag \(did you mean 'pooling_method'\?\)"),
    ],
)
def test_python_callers_get_the_same_errors_as_the_command_line(values, complaint):
    from glot import recipes

    with pytest.raises(ConfigError, match=complaint):
        recipes.run_task(RunConfig().with_values(task="cola", **values))
