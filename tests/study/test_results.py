"""The committed results of studies, recomputed from the score of every run that lies beside them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from glot.study.statistics import equivalence

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
STUDIES = sorted(path.name.removesuffix("-seeds.csv") for path in RESULTS.glob("*-seeds.csv"))
NAMED = [name for name in STUDIES if (RESULTS / f"{name}-comparisons.csv").is_file()]


def scores_of(name: str) -> dict[tuple[str, str], dict[int, float]]:
    """(arm, grid point) -> seed -> score."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    with (RESULTS / f"{name}-seeds.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            found.setdefault((row["arm"], row["where"]), {})[int(row["seed"])] = float(row["value"])
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_tables_are_the_means_of_their_runs(name):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (RESULTS / f"{name}.md").read_text().splitlines() if "|" in line]
    header = next(place for place, line in enumerate(lines) if line[:3] == ["arm", "where", "metric"])
    table = {(line[0], line[1]): line for line in lines[header + 2 :] if len(line) == len(lines[header])}
    scores = scores_of(name)
    assert scores.keys() <= table.keys()
    for key, runs in scores.items():
        values = np.array(list(runs.values()))
        assert float(table[key][3]) == pytest.approx(values.mean(), abs=6e-5) and int(table[key][6].split()[0]) == len(values)
        if len(values) > 1:
            assert float(table[key][4]) == pytest.approx(values.std(ddof=1), abs=6e-5)


@pytest.mark.parametrize("name", NAMED)
def test_named_comparisons_can_be_recomputed(name):
    scores = scores_of(name)
    with (RESULTS / f"{name}-comparisons.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    for row in rows:
        first, second = row["comparison"].split(" - ")
        ours, theirs = scores[first, row["where"]], scores[second, row["where"]]
        seeds = sorted(ours.keys() & theirs.keys())
        difference = np.array([ours[seed] - theirs[seed] for seed in seeds])
        assert float(row["difference"]) == pytest.approx(difference.mean(), abs=6e-5) and int(row["seeds"]) == len(seeds)
        if row["95 % over seeds"] != "-":
            half = stats.t.ppf(0.975, len(seeds) - 1) * difference.std(ddof=1) / np.sqrt(len(seeds))
            assert float(row["95 % over seeds"].removeprefix("± ")) == pytest.approx(half, abs=6e-5)
        if row["verdict"] == "different":
            assert float(row["p (Holm)"]) < 0.05
            assert row["95 % over seeds"] == "-" or stats.ttest_1samp(difference, 0).pvalue <= float(row["p (Holm)"]) + 1e-4
        elif row["verdict"] == "equal within the margin":
            assert abs(difference.mean()) < float(row["margin"])
            assert row["95 % over seeds"] == "-" or equivalence(difference, np.zeros(len(seeds)), float(row["margin"])) < 0.05


def test_there_are_studies_to_recompute():
    assert len(STUDIES) >= 2 and NAMED
