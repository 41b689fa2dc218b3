"""Named comparisons: against statsmodels and naive loops, and through a study."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from glot.cli import glot_main
from glot.errors import ConfigError
from glot.report.tables import csv_text
from glot.study.backbones import normalised, short_names
from glot.study.comparisons import DIFFERENT, EQUAL, UNCLEAR, ArmRuns, compare_arms, comparison_table, verdicts
from glot.study.files import read_study
from glot.study.paper_table import leaders, paper_table
from glot.study.report import Row, compare
from glot.study.resolution import resolve_cells
from glot.study.statistics import draw_rows, equivalence, holm, resampled, wald


def test_equivalence_and_holm_are_those_of_statsmodels():
    generator = np.random.default_rng(0)
    for shift in (0.0, 0.01, 0.05):
        ours, theirs = generator.normal(0.5 + shift, 0.01, 8), generator.normal(0.5, 0.01, 8)
        assert equivalence(ours, theirs, 0.02) == pytest.approx(ttost_paired(ours, theirs, -0.02, 0.02)[0])
    p_values = generator.uniform(0, 0.2, 6)
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert equivalence([0.5, 0.5], [0.5, 0.5], 0.01) == 0 and equivalence([0.5, 0.5], [0.4, 0.4], 0.01) == 1


def test_resamples_against_a_loop():
    generator = np.random.default_rng(1)
    labels, outputs = generator.integers(0, 2, 50), generator.normal(size=(50, 2))
    counts = draw_rows(50, 20, seed=3)
    assert (counts.sum(1) == 50).all() and counts.std() > 0.5
    scores = {"accuracy": accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef}
    for metric, function in scores.items():
        rows = [np.repeat(np.arange(50), one) for one in counts]
        expected = [function(labels[one], outputs[one].argmax(1)) for one in rows]
        np.testing.assert_allclose(resampled(metric, labels, outputs, counts), expected, atol=1e-9)
    margins = outputs[:, 1] - outputs[:, 0]
    expected = [roc_auc_score(labels[one], margins[one]) for one in rows]
    np.testing.assert_allclose(resampled("auroc", labels, outputs, counts), expected)


def runs_of(folder: Path, right: float, seeds: int, rows: int = 400, own: int = 0, still: bool = False) -> ArmRuns:
    """Runs with a given share of right answers, over the same labels."""
    labels = np.random.default_rng(0).integers(0, 2, rows)
    values, folders = {}, {}
    for seed in range(seeds):
        generator = np.random.default_rng(100 * own + (0 if still else seed + 1))
        found = np.where(generator.uniform(size=rows) < right, labels, 1 - labels)
        place = folder / f"{own}-{0 if still else seed}"
        place.mkdir(parents=True, exist_ok=still)
        with (place / "predictions.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["row", "label", "prediction", "score_0", "score_1"])
            table.writerows([row, label, answer, 1 - answer, answer] for row, (label, answer) in enumerate(zip(labels, found, strict=True)))
        values[seed], folders[seed] = float((labels == found).mean()), place
    return ArmRuns("accuracy", values, folders)


def test_a_difference_must_show_over_seeds_and_rows_and_a_large_p_is_no_equality(tmp_path):
    base = runs_of(tmp_path, 0.70, 6, own=1)
    far = compare_arms(("a", "b"), "-", runs_of(tmp_path, 0.85, 6, own=2), base, 0.02)
    assert far.difference == pytest.approx(0.15, abs=0.03) and far.over_rows[0] > 0.08 and far.p < 0.01 and far.p_equal > 0.5
    near = compare_arms(("a", "b"), "-", runs_of(tmp_path, 0.70, 6, own=3), base, 0.10)
    unclear = compare_arms(("a", "b"), "-", runs_of(tmp_path, 0.71, 6, own=4), base, 0.001)
    no_margin = compare_arms(("a", "b"), "-", runs_of(tmp_path, 0.70, 6, own=5), base, None)
    words = [word for _, word in verdicts([far, near, unclear, no_margin])]
    assert words == [DIFFERENT, EQUAL, UNCLEAR, UNCLEAR]
    same = compare_arms(("a", "a"), "-", base, base, 0.01)
    assert same.difference == 0 and same.p == 1 and verdicts([same])[0][1] == EQUAL


def arm(name: str, point: str, *values: float) -> Row:
    return Row({"task": point}, name, "mcc", dict(enumerate(values)), {}, 0, None, None)


def test_a_table_for_a_paper_is_bold_by_test_and_not_by_size():
    told = [arm("a", "cola", 0.30, 0.31, 0.32), arm("b_1", "cola", 0.31, 0.29, 0.33), arm("c", "cola", 0.10, 0.11, 0.12)]
    single = [arm("a", "rte", 0.9), arm("b_1", "rte", 0.1)]
    level = [arm("a", "sst2", 0.5, 0.6, 0.7), arm("b_1", "sst2", 0.7, 0.6, 0.6), arm("c", "sst2", 0.6, 0.7, 0.5)]
    table = [line.rstrip(" \\").split(" & ") for line in paper_table(told + single + level).splitlines() if " & " in line]
    assert table[0] == ["arm", "cola (mcc)", "rte (mcc)", "sst2 (mcc)"]
    assert table[1][:3] == ["a", r"\textbf{0.310 $\pm$ 0.025}", "0.900"]
    assert table[2][:3] == [r"b\_1", r"\textbf{0.310 $\pm$ 0.050}", "0.100"]
    assert table[3][:3] == ["c", r"0.110 $\pm$ 0.025", ""]
    assert not any("textbf" in cell for line in table for cell in line[2:])  # one seed; no arm is told from another
    assert leaders(told) == {"a", "b_1"} and leaders(level) == leaders(single) == set()
    failed = Row({"task": "cola"}, "d", "-", {}, {}, 5, None, None)
    assert "cola (mcc)" in paper_table([*told, failed]) and "[" not in paper_table([arm("[CLS]", "a", 0.1)]).replace("{[}", "")
    turned = paper_table([arm("a", point, 0.1, 0.2) for point in ("cola", "rte")])
    assert r"cola (mcc) & 0.150 $\pm$ 0.635 \\" in turned  # more points than arms: the points run down


def test_no_cell_of_a_table_is_a_formula():
    cells = ["=1+1", "@x", "+a", "-a", "-", "-0.5", "+1e3"]
    assert csv_text(["a"], [[cell] for cell in cells]).splitlines()[1:] == ["'=1+1", "'@x", "'+a", "'-a", "-", "-0.5", "+1e3"]


def test_arms_that_no_seed_moves_are_neither_starred_nor_told_apart():
    still = [replace(arm(name, "cola", *[value] * 3), resolution=None) for name, value in (("mean probe", 0.574), ("max probe", 0.5739))]
    rows = [*still, arm("low", "cola", 0.1, 0.11, 0.12)]
    tests = compare(rows, "mean probe")
    assert math.isnan(tests[1].p) and tests[2].p < 0.05 and leaders(rows) == {"mean probe", "max probe"}


def test_backbones_of_one_name_are_told_apart():
    assert short_names(["/x/tiny/bert", "/x/other/bert", "minilm", "org/gpt2@1.0"]) == {
        "/x/tiny/bert": "tiny/bert", "/x/other/bert": "other/bert", "minilm": "minilm", "org/gpt2@1.0": "gpt2",
    }  # fmt: skip


def test_scores_of_several_backbones_are_means_over_tasks_on_their_own_scales():
    rows = [
        Row({"model_name_or_path": model, "task": task}, name, "mcc", dict(enumerate(values)), {}, 0, None, None)
        for model, task, name, values in (
            ("small", "a", "mean", [0.0, 0.2]),
            ("large", "a", "mean", [0.5, 0.5]),
            ("small", "b", "mean", [80, 80]),
            ("large", "b", "mean", [90, 70]),
            ("small", "a", "glot", [0.3, 0.3]),  # not at b, so it has no mean over tasks
        )
    ]
    found = normalised(rows)
    assert found.keys() == {("small", "mean"), ("large", "mean")}
    np.testing.assert_allclose(found["small", "mean"], [(-0.25 + 0.5) / 2, (0.25 + 0.5) / 2])  # a goes from 0.1 to 0.5, b stays
    np.testing.assert_allclose(found["large", "mean"], [(1 + 0.5) / 2, (1 + 0.5) / 2])


def test_one_seed_says_nothing_about_others(tmp_path):
    found = compare_arms(("a", "b"), "-", runs_of(tmp_path, 0.95, 1, own=1), runs_of(tmp_path, 0.60, 1, own=2), 0.5)
    assert found.over_rows[0] > 0.2 and np.isnan(found.p) and np.isnan(found.p_equal)
    assert verdicts([found])[0][1] == UNCLEAR
    assert comparison_table([found])[1][0][-3] == "-"


def test_arms_that_no_seed_moves_are_compared_over_rows_alone(tmp_path):
    first, second = runs_of(tmp_path, 0.70, 3, own=1, still=True), runs_of(tmp_path, 0.72, 3, own=2, still=True)
    found = compare_arms(("a", "b"), "-", first, second, None)
    assert np.isnan(found.over_seeds) and found.p > 0.05  # over seeds alone, three equal differences would prove anything
    draws = []
    labels = np.random.default_rng(0).integers(0, 2, 400)
    answers = [
        np.array([int(row["prediction"]) for row in csv.DictReader((one.folders[0] / "predictions.csv").open())]) for one in (first, second)
    ]
    generator = np.random.default_rng(5)
    for _ in range(2000):
        rows = generator.integers(0, 400, 400)
        draws.append((answers[0][rows] == labels[rows]).mean() - (answers[1][rows] == labels[rows]).mean())
    assert found.over_rows == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.01)


def test_a_z_test_over_rows_is_the_bootstraps_where_that_can_tell():
    draws = np.random.default_rng(0).normal(0.02, 0.01, 100_000)
    p, equal = wald(0.02, float(draws.std(ddof=1)), 0.05)
    assert p == pytest.approx(2 * (draws <= 0).mean(), rel=0.05) and equal == pytest.approx((draws >= 0.05).mean(), rel=0.2)
    assert wald(0.0, 0.0, 0.1) == (1.0, 0.0) and wald(0.2, 0.0, 0.1) == (0.0, 1.0) and np.isnan(wald(0.2, 0.1, None)[1])
    assert wald(0.3, 0.01, None)[0] < 1e-100  # a bootstrap of a thousand draws could not say less than 0.002


PLAN = """
kind: study
name: named
runs_with: {model_name_or_path: MODEL, task: cola, max_length: 16, folds: 3, selection: heldout}
arms:
  mean probe: {pooling_method: mean, head: probe}
  max probe: {pooling_method: max, head: probe}
  adapool: {pooling_method: adapool, epochs: 2}
tune: {lr: [1e-2, 1e-4], seeds: [100, 101], fold: 1}
seeds: [0, 1]
baseline: mean probe
compare: [[adapool, mean probe], [max probe, mean probe]]
margins: {mcc: 0.05}
"""


def test_a_study_reports_what_it_named(tiny_bert, mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLOT_DATA_DIR", str(mirror))
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "hidden"))
    (tmp_path / "s.yaml").write_text(PLAN.replace("MODEL", str(tiny_bert)))
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), f"--output_dir={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out/named/report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| adapool - mean probe", "| max probe - mean probe"))]
    assert len(lines) == 2 and all(line.split("|")[-2].strip() in (DIFFERENT, EQUAL, UNCLEAR) for line in lines)
    assert "Comparisons outside this table are exploratory." in text
    table = list(csv.DictReader((tmp_path / "out/named/comparisons.csv").open()))
    runs = {cell["arm"]: cell["runs"] for cell in json.loads((tmp_path / "out/named/study.json").read_text())["cells"]}
    scores = {
        arm: np.mean([json.loads((Path(run["run_dir"]) / "result.json").read_text())["best"]["metrics"]["mcc"] for run in rows])
        for arm, rows in runs.items()
    }
    lines = list(csv.DictReader((tmp_path / "out/named/seeds.csv").open()))
    assert {line["arm"]: np.mean([float(one["value"]) for one in lines if one["arm"] == line["arm"]]) for line in lines} == scores
    assert (tmp_path / "out/named/comparisons.png").stat().st_size > 5000
    trials = [json.loads((path / "result.json").read_text()) for path in (tmp_path / "out/named/runs").iterdir()]
    assert [trial["best"]["epoch"] for trial in trials if trial["seed"] in (100, 101) and "folds" in trial] == []  # one fold each
    tuned = {cell["arm"]: cell["tuned"] for cell in json.loads((tmp_path / "out/named/study.json").read_text())["cells"]}
    scores_of_adapool = [row["score"] for row in tuned["adapool"]["scores"]]  # of what was held out in one fold
    assert None not in scores_of_adapool and tuned["adapool"]["values"]["lr"] == (1e-2, 1e-4)[int(np.argmax(scores_of_adapool))]
    assert tuned["mean probe"] == {"values": {}, "scores": []}  # nothing to tune
    assert len({run["run_dir"] for run in runs["mean probe"]}) == 1 and len({run["run_dir"] for run in runs["adapool"]}) == 2
    assert float(table[0]["difference"].lstrip("'")) == pytest.approx(scores["adapool"] - scores["mean probe"], abs=1e-4)
    assert table[1]["95 % over seeds"] == "-" and table[1]["margin"] == "0.05"


RETRIEVAL = """
kind: study
name: retrieval
runs_with: {task: embedding, train_file: PAIRS, model_name_or_path: MODEL, epochs: 1, batch_size: 4, heldout_fraction: 0.4}
arms:
  adapool: {pooling_method: adapool, scorer_hidden: 4, max_length: 16, lr: 0.1}
  gated: {pooling_method: gated, max_length: 16, lr: 0.1}
seeds: [0, 1, 2]
compare: [[adapool, gated]]
margins: {mrr_at_10: 0.05}
"""


def test_ranks_are_compared_over_rows_too(tiny_bert, tmp_path, monkeypatch):
    lines = [json.dumps({"query": f"{a} {b}", "pos": [f"the {a} {b}"]}) for a in WORDS[5:10] for b in WORDS[10:14]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    text = RETRIEVAL.replace("MODEL", str(tiny_bert)).replace("PAIRS", str(tmp_path / "pairs.jsonl"))
    (tmp_path / "s.yaml").write_text(text)
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "hidden"))
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), f"--output_dir={tmp_path / 'out'}"]) == 0
    (line,) = csv.DictReader((tmp_path / "out/retrieval/comparisons.csv").open())
    runs = {cell["arm"]: cell["runs"] for cell in json.loads((tmp_path / "out/retrieval/study.json").read_text())["cells"]}
    ranks = {
        arm: [np.loadtxt(Path(run["run_dir"]) / "predictions.csv", delimiter=",", skiprows=1)[:, 1] for run in rows]
        for arm, rows in runs.items()
    }
    shares = {arm: np.mean([np.where(one <= 10, 1 / one, 0) for one in found], 0) for arm, found in ranks.items()}  # by row, over seeds
    difference = shares["adapool"] - shares["gated"]
    assert line["metric"] == "mrr_at_10" and float(line["difference"].lstrip("'")) == pytest.approx(difference.mean(), abs=1e-4)
    low, high = np.quantile(draw_rows(len(difference), 1000) @ difference / len(difference), [0.025, 0.975])
    assert line["95 % over rows"].lstrip("'") == f"[{low:+.4f}, {high:+.4f}]"
    arms = "arms:\n  a: {pooling_method: mean}\n  b: {pooling_method: cls}\n"
    (tmp_path / "m.yaml").write_text(f"kind: study\nname: m\nruns_with: {{task: mteb}}\n{arms}compare: [[a, b]]\n")
    with pytest.raises(ConfigError, match="compare: --task=mteb has no scores of rows"):
        resolve_cells(tmp_path / "m.yaml", read_study(tmp_path / "m.yaml"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("compare: [[mean probe, meen]]", "compare: meen is no arm"),
        ("compare: mean probe", "compare: must be a list of pairs of arms, such as [[a, b], [a, c]]"),
        ("margins: {mcx: 0.1}", "margins: mcx: 0.1; must be a metric (accuracy, macro_f1, f1, mcc"),
        ("margins: {mcc: -1}", "margins: mcc: -1; must be a metric"),
        ("margins: [a]", "margins: must map metrics to differences, such as mcc: 0.03"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(line, complaint, tmp_path):
    name = line.partition(":")[0]
    text = "\n".join(line if one.startswith(f"{name}:") else one for one in PLAN.splitlines())
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study(tmp_path / "s.yaml")
    assert any(complaint in problem for problem in caught.value.problems), caught.value.problems
