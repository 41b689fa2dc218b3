"""The benchmark runs and fills its table; what it measures is for people to read, not for tests to judge."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import benchmarks.__main__ as bench
from benchmarks import graph_share, mixing_on_card
from benchmarks.timing import Timings
from glot.nn.poolers.gat import GatConv
from glot.types import TokenBatch

pytestmark = pytest.mark.slow


def test_every_section_runs(tmp_path, mirror, mteb_data):
    (tmp_path / "data").mkdir()
    for folder in (*mirror.iterdir(), *mteb_data.iterdir()):
        (tmp_path / "data" / folder.name).symlink_to(folder)
    words = [sys.executable, "-m", "benchmarks", "--smoke", f"--data_dir={tmp_path / 'data'}", f"--to={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = tmp_path.glob("*.json")
    found = json.loads(record.read_text())
    kinds = {line["what"].split(",")[0].split(" of ")[0].split(" ")[0] for line in found["lines"]}
    assert kinds == {"step", "two", "memory", "random", "shuffled", "encode", "store", "2", "probe", "a", "mteb", "predict"}
    assert all(line["value"] > 0 for line in found["lines"])
    assert record.with_suffix(".md").read_text() in done.stdout
    assert found["machine"]["cores"] == os.cpu_count() and found["machine"]["versions"]["torch"]


def test_without_data_it_says_what_is_left_out(tmp_path, monkeypatch, caplog):
    for part in ("steps", "sparse_graphs", "memories", "readings"):
        monkeypatch.setattr(bench, part, lambda smoke: iter(()))
    monkeypatch.setattr(sys, "argv", ["benchmarks", f"--data_dir={tmp_path}", f"--to={tmp_path}"])
    bench.main()
    assert f"encode, precompute, stacking and what came after are left out: no data at {tmp_path}" in caplog.text


def test_sides_take_turns_and_the_ratio_is_by_round():
    called = []
    sides = {"slow": lambda: (called.append("slow"), time.sleep(0.02)), "fast": lambda: called.append("fast")}
    found = Timings(sides, 3, before=lambda: called.append("before"))
    assert called[1::2] == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert set(called[::2]) == {"before"}
    assert found.seconds("slow") >= 0.02 > found.seconds("fast")
    assert found.ratio("slow", "fast") > 1 > found.ratio("fast", "slow")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_mixes_as_our_layer_does(capsys):
    """Forward: on a CPU it has no backward pass."""
    torch.manual_seed(0)
    batch = TokenBatch.from_lengths(torch.randn(70, mixing_on_card.WIDTH) + 0.8, torch.tensor([30, 5, 35]))
    with torch.no_grad():
        theirs, ours = (mixing_on_card.make(conv, "cpu")(batch) for conv in (mixing_on_card.FlexConv, GatConv))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    if not torch.cuda.is_available():
        assert mixing_on_card.main([]) == 0 and "nothing is measured" in capsys.readouterr().out


def test_the_share_of_the_graph_by_length(mirror):
    short, long = graph_share.measure(mirror, lengths=(16, 40))
    assert (short.tokens, long.tokens) == (16, 40) and 0 <= short.density <= 1
    assert 0 < long.of_whole < long.of_pooler < 1 and long.backbone > 0
