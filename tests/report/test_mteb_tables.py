"""Tables of MTEB scores beside the paper's figures."""

from typing import NamedTuple

from glot.report.mteb_tables import mteb_table, write_mteb_tables


class Scored(NamedTuple):
    """The outcome of one task."""

    task: str
    category: str
    metric: str
    score: float | None
    error: str | None


def test_tables_put_published_figures_beside_ours(tmp_path):
    scores = [
        Scored("SciFact", "Retrieval", "ndcg_at_10", 0.5, None),
        Scored("STS12", "STS", "cosine_spearman", 0.25, None),
        Scored("STS13", "STS", "cosine_spearman", None, "lost"),
    ]
    _, rows = mteb_table(scores, "bert-base-uncased", "mean")
    assert rows[0] == ["SciFact", "Retrieval", "ndcg_at_10", "50.00", "17.69", ""] and rows[2][3:] == ["", "", "lost"]
    assert rows[3] == ["mean", "Retrieval", "1 task", "50.00", "17.69", ""] and rows[4][1:4] == ["STS", "1 task", "25.00"]
    assert rows[5] == ["mean", "all", "2 tasks", "37.50", "24.28", ""]
    write_mteb_tables(tmp_path, scores, "bert-base-uncased", "mean")
    assert "17.69" in (tmp_path / "table.md").read_text() and (tmp_path / "table.csv").read_text().splitlines()[3].startswith("STS13,STS")
