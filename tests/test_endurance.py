"""The soak and the loads at a small size: `make soak` and `make load` run them whole."""

import subprocess
import sys

import pytest
from conftest import ROOT
from load import MOST_MEMORY, measure

pytestmark = pytest.mark.slow


def test_commands_equal_undisturbed_ones_after_faults():
    done = subprocess.run(
        [sys.executable, "tests/soak.py", "--seconds=8", "--least=4", "--seed=1"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.splitlines()
    assert int(first.split()[0]) > 3 and second.endswith("; 0 failures")


def test_loads_stay_within_their_memory_and_leave_nothing_open():
    for name in ("store", "runs"):
        found = measure(name, 0.02)
        assert 0 < found["peak_MiB"] < MOST_MEMORY, found
