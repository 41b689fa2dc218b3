"""Progress in a file or a pipe: lines, not drawings."""

import time

import pytest

from glot import progress


def test_a_long_wait_says_a_line_per_interval_where_stderr_is_no_terminal(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    caplog.set_level("INFO", "glot")
    with progress.counter("encode", "token", 10_000, enabled=True) as counter:
        for _ in range(5):
            time.sleep(0.11)
            counter.update(2_000)
    lines = [record.message for record in caplog.records]
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("encode: ") and " of 10,000 tokens, 00:00 so far, 00:00 to go" in line for line in lines), lines
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("interval", "enabled"), [(60.0, True), (0.0, False)])
def test_a_short_wait_and_a_quiet_one_say_nothing(monkeypatch, caplog, capsys, interval, enabled):
    monkeypatch.setattr(progress, "INTERVAL", interval)
    caplog.set_level("INFO", "glot")
    assert list(progress.bar(range(50), "epoch 1/1", "step", enabled)) == list(range(50))
    assert not caplog.records and capsys.readouterr().err == ""
