"""What the user has run is remembered, also where two runs start together."""

import fcntl
import json
import threading

import pytest

from glot.errors import CheckpointError
from glot.trust import check_named, check_trusted, remember_trusted


def test_two_definitions_of_one_module_are_two_names(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("pkg.mod:A", "pkg.mod:B"):
        with pytest.raises(CheckpointError, match="installed package"):
            check_named(name, tmp_path)
        remember_trusted("one hash of both", name)
    for name in ("pkg.mod:A", "pkg.mod:B"):
        check_named(name, tmp_path)
    check_trusted("one hash of both", "pkg.mod:A", tmp_path)


def test_two_runs_that_start_together_remember_both_codes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "glot" / "trusted-code.json"
    remember_trusted("first", "a.py:A")
    with (file.parent / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=remember_trusted, args=("second", "b.py:B"))
        other.start()
        other.join(0.2)
        assert other.is_alive()  # it waits for the one that writes
        file.write_text(json.dumps({**json.loads(file.read_text()), "third": "c.py:C"}))
    other.join(10)
    assert {"first", "second", "third"} <= json.loads(file.read_text()).keys()
