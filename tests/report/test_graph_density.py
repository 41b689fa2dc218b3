"""Graph statistics against edges counted one by one."""

import json
from pathlib import Path

import pytest
import torch

from glot.cli import glot_main
from glot.nn.graph import GraphRule, TokenGraph
from glot.report.graph_density import Census, Counter
from glot.types import TokenBatch


def test_counts_are_those_of_the_graph():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in ([4, 1, 9], [2, 30]):
        tokens = torch.randn(sum(lengths), 6, generator=generator) + 0.5
        batches.append(TokenBatch.from_lengths(tokens, torch.tensor(lengths)))
    counter = Counter([-1.0, 0.3, 0.9])
    for batch in batches:
        counter.add(batch)
    for row in counter.census():
        edges = isolated = 0
        for batch in batches:
            pairs = [(i, j) for i, j in TokenGraph(batch, GraphRule(tau=row.tau)).edges.T.tolist() if i != j]
            edges += len(pairs)
            isolated += len(batch.tokens) - len({i for i, _ in pairs})
        assert row.degree == edges / 46 and row.isolated == isolated / 46
        assert row.density == edges / (4 * 3 + 9 * 8 + 2 * 1 + 30 * 29)


def test_verdicts():
    assert [Census(0, density, 0, 0).verdict for density in (0.999, 0.5, 0.001)] == ["nearly complete", "", "nearly empty"]


def test_the_graph_command(tiny_flags, tmp_path, capsys):
    flags = [flag for flag in tiny_flags if "verbose" not in flag]
    assert glot_main(["graph", *flags, "--pooling_method=glot", "--tau=-1"]) == 0
    captured = capsys.readouterr()
    assert "| tau" in captured.out and "100.0 %" in captured.out
    assert "warning: at tau = -1 the graph is nearly complete" in captured.err
    folder = next(Path(tmp_path / "runs").glob("graph-cola-*"))
    assert (folder / "graph.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((folder / "graph.json").read_text())
    assert rows[0]["tau"] == -1 and rows[0]["isolated"] == 0 and rows[-1]["density"] <= rows[1]["density"]


@pytest.mark.parametrize("flag", ["--graph_adj=none", "--pooling_method=mean"])
def test_the_graph_command_needs_no_pooler_but_a_threshold(tiny_flags, capsys, flag):
    code = glot_main(["graph", *tiny_flags, flag])
    assert code == (2 if "graph_adj" in flag else 0)
