"""Pages of studies and runs, and `glot compare`: what they say against what the runs' files hold."""

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference

from glot.cli import glot_main, main
from glot.study.statistics import mcnemar

EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes"'


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    """Rows of which some texts are scripts."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["text", "label"])
        for number in range(60):
            table.writerow(
                [f"the {'cat' if number % 2 else 'dog'} {number} {EVIL if number % 3 else ''}", ["<b>one</b>", "two"][number % 2]]
            )
    return path


@pytest.fixture(scope="module")
def study(rows_file, tiny_bert, tmp_path_factory) -> Path:
    """A finished study of two arms and two seeds on them."""
    root = tmp_path_factory.mktemp("study")
    (root / "pages.yaml").write_text(
        f"kind: study\nname: pages\nruns_with: {{task: custom, train_file: {rows_file}, model_name_or_path: {tiny_bert}, max_length: 16,"
        f" epochs: 2, store_dir: {root}/hidden, verbose: 0, lr: 1e-2}}\n"
        "arms:\n  mean: {pooling_method: mean}\n  ada <i>: {pooling_method: adapool, scorer_hidden: 4}\n"
        "seeds: [0, 1]\nbaseline: mean\ncompare: [[ada <i>, mean]]\nmargins: {accuracy: 0.1}\n"
    )
    assert glot_main(["sweep", str(root / "pages.yaml"), "--output_dir", str(root / "runs")]) == 0
    return root / "runs/pages"


def cells_of(page: str) -> list[list[str]]:
    return [
        [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)
    ]


def check_alone(page: str) -> None:
    """No request can leave the page, and nothing of the data is markup."""
    tags = re.findall(r"<[a-zA-Z][^>]*>", page)
    asked = [tag for tag in tags if re.search(r"""\s(src|href|xlink:href)\s*=\s*"(?!#)""", tag) or re.search(r"url\((?!#)", tag)]
    assert not asked and "@import" not in page
    assert not {"img", "b", "i", "iframe", "link"} & {re.match(r"<(\w+)", tag).group(1) for tag in tags}
    assert page.count("<script") == 1 and "Content-Security-Policy" in page


def test_the_page_of_a_study_holds_its_tables_runs_and_hardest_rows(study, tmp_path, capsys):
    assert glot_main(["report", str(study)]) == 0
    assert glot_main(["report", str(study), "--html", str(tmp_path / "page.html")]) == 0
    assert "4 runs" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    check_alone(page)
    cells = cells_of(page)
    with (study / "report.csv").open(newline="") as stream:
        for row in list(csv.reader(stream))[1:]:
            assert any(line == [cell.removeprefix("'") for cell in row] for line in cells), row
    with (study / "seeds.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            assert any(line[:5] == [row["arm"], row["where"], row["seed"], row["metric"], f"{float(row['value']):.4f}"] for line in cells)
    assert page.count("<svg") == 3 and "Of 1 comparisons that were named beforehand" in page
    assert len(page) < 5 << 20
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    hardest = [line for line in cells if len(line) == 4 and re.fullmatch(r"\d of 4", line[1] or "")]
    assert hardest and all(int(line[1][0]) >= 1 for line in hardest)


def test_a_moved_study_and_single_runs_have_pages_too(study, tmp_path, capsys):
    moved = tmp_path / "elsewhere/pages"
    shutil.copytree(study, moved)
    shutil.rmtree(study.with_name("hidden-copy"), ignore_errors=True)
    renamed = study.with_name("pages-away")
    study.rename(renamed)
    try:
        assert glot_main(["report", str(moved), "--html", str(tmp_path / "moved.html")]) == 0
    finally:
        renamed.rename(study)
    run = next(path.parent for path in moved.glob("runs/*/result.json"))
    assert glot_main(["report", str(run), str(moved / "runs"), "--html", str(tmp_path / "runs.html")]) == 0
    page = (tmp_path / "runs.html").read_text()
    check_alone(page)
    assert "Metrics of epoch" in page and "holds 4 finished runs" in page
    capsys.readouterr()
    for words, said in (
        ([str(tmp_path / "nothing")], "nothing: holds neither study.json nor a finished run"),
        ([str(moved), str(run)], "glot report: several folders need --html"),
    ):
        assert glot_main(["report", *words, *(["--html", str(tmp_path / "x.html")] if "several" not in said else [])]) == 2
        assert said in capsys.readouterr().err


def test_runs_are_compared_row_by_row(study, tmp_path, capsys):
    runs = {
        json.loads(path.read_text())["pooler"]: path.parent
        for path in study.glob("runs/*/result.json")
        if json.loads(path.read_text())["seed"] == 0
    }
    capsys.readouterr()
    assert glot_main(["compare", str(runs["mean"]), str(runs["adapool"]), "--html", str(tmp_path / "c.html")]) == 0
    said = capsys.readouterr().out
    tables = []
    for name in ("mean", "adapool"):
        with (runs[name] / "predictions.csv").open(newline="") as stream:
            tables.append([(row["label_name"], row["prediction_name"]) for row in csv.DictReader(stream)])
    pairs = list(zip(*tables, strict=True))
    gained = sum(one[0] != one[1] and other[0] == other[1] for one, other in pairs)
    lost = sum(one[0] == one[1] and other[0] != other[1] for one, other in pairs)
    changed = sum(one[1] != other[1] for one, other in pairs)
    assert f"{changed} of {len(pairs)} rows have another answer: {gained} became right, {lost} became wrong" in said
    assert f"p = {reference([[0, lost], [gained, 0]], exact=True).pvalue:.4f}" in said
    assert re.search(r"\| --pooling_method \|\s+mean \|\s+adapool \|", said) and re.search(r"\| --scorer_hidden\s+\|\s+- \|\s+4 \|", said)
    assert "--output_dir" not in said and "--run_name" not in said
    page = (tmp_path / "c.html").read_text()
    check_alone(page)
    assert sum(len(line) >= 5 and line[0].isdecimal() for line in cells_of(page)) == changed


def test_a_text_of_any_length_is_read_back(tiny_bert, tmp_path, capsys):
    """Python's reader of CSV files stops at 131,072 characters by itself."""
    texts = ["red cat " * 20_000, *(f"{animal} {number}" for number in range(11) for animal in ("cat", "dog"))]
    with (tmp_path / "long.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((text, "cat" in text) for text in texts)])
    words = (
        f"--task=custom --train_file={tmp_path}/long.csv --eval_file={tmp_path}/long.csv --model_name_or_path={tiny_bert} --max_length=8"
    )
    words += f" --epochs=1 --verbose=0 --store_dir={tmp_path}/hidden --output_dir={tmp_path}/runs"
    for pooler in ("mean", "max"):
        assert main([*words.split(), f"--pooling_method={pooler}", f"--run_name={pooler}"]) == 0
    one, other = tmp_path / "runs/mean", tmp_path / "runs/max"
    assert glot_main(["compare", str(one), str(other)]) == 0 and "of 23 rows have another answer" in capsys.readouterr().out
    assert glot_main(["report", str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    assert glot_main(["explain", str(one), "--rows", "0,22"]) == 0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 9), (40, 61)])
def test_mcnemar_is_statsmodels(lost, gained):
    expected = reference([[5, lost], [gained, 5]], exact=True).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)


def test_scores_and_other_rows_are_compared_as_far_as_they_can_be(tiny_flags, study, tmp_path, capsys):
    for name, pooler in (("one", "mean"), ("two", "max")):
        words = [word for word in tiny_flags if "--task" not in word]
        assert main([*words, "--task=stsb", f"--pooling_method={pooler}", "--epochs=1", f"--run_name={name}"]) == 0
    capsys.readouterr()
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    assert glot_main(["compare", str(one), str(two)]) == 0
    assert "The difference of spearman is" in capsys.readouterr().out
    other = next(path.parent for path in study.glob("runs/*/result.json"))
    assert glot_main(["compare", str(one), str(other)]) == 0
    assert "They were scored on other rows" in capsys.readouterr().out
    for words, said in (([one, one], "is the same run twice"), ([one, tmp_path], "no result.json; give the folder of a finished run")):
        assert glot_main(["compare", *map(str, words)]) == 2
        assert said in capsys.readouterr().err


def test_other_data_and_other_settings_are_kept_apart(tiny_bert, tmp_path, capsys):
    base = f"--task=custom --model_name_or_path={tiny_bert} --max_length=16 --epochs=1 --verbose=0 --store_dir={tmp_path}/hidden"
    base += f" --output_dir={tmp_path}/runs --pooling_method=mean"
    for name, classes in (("animals", ("cat", "dog")), ("colours", ("red", "blue"))):
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *((f"the {classes[n % 2]} {n}", classes[n % 2]) for n in range(40))])
        assert main([*base.split(), f"--train_file={tmp_path}/{name}.csv", "--seeds=0,1", f"--run_name={name}"]) == 0
    assert main([*base.split(), f"--train_file={tmp_path}/animals.csv", "--lr=0.5", "--run_name=fast"]) == 0
    assert main([*base.split(), f"--train_file={tmp_path}/animals.csv", "--folds=3", "--run_name=folds"]) == 0
    capsys.readouterr()
    assert glot_main(["report", str(tmp_path / "runs"), "--html", str(tmp_path / "all.html")]) == 0
    page = (tmp_path / "all.html").read_text()
    rows = [line for line in cells_of(page) if len(line) == 10]
    assert len(rows) == 6 and "holds 6 finished runs" in page  # folds are one run, seeds are runs
    groups = {(row[0], row[1]) for row in rows}
    assert len(groups) == 4 and len({row[1] for row in rows}) == 3  # the folds hold no rows out, so they are data of their own
    assert glot_main(["report", str(tmp_path / "runs/animals"), "--html", str(tmp_path / "seeds.html")]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert glot_main(["compare", str(tmp_path / "runs/animals/seed-0"), str(tmp_path / "runs/colours/seed-0")]) == 0
    assert "They were scored on other rows" in capsys.readouterr().out


BOOM = """
from glot.nn.pooler import Pooler

class Boom(Pooler):
    def __init__(self, in_dim):
        super().__init__(in_dim, in_dim)

    def forward(self, batch):
        if len(batch) > 4:
            raise RuntimeError("boom")
        return batch.tokens[batch.ptr[:-1]]
"""
DOLLARS = r"""
kind: study
name: dollars
runs_with: {task: custom, train_file: ROOT/rows.csv, model_name_or_path: BERT, max_length: 16, epochs: 2, store_dir: ROOT/hidden}
arms:
  'mean $\frac{a$': {pooling_method: mean}
  max: {pooling_method: max}
  boom: {pooling_method: 'ROOT/boom.py:Boom'}
seeds: [0, 1]
compare: [['mean $\frac{a$', max], [boom, max]]
"""


def test_dollar_signs_and_arms_that_fail(tiny_bert, tmp_path, capsys):
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((f"the {('cat', 'dog')[n % 2]} {n}", n % 2) for n in range(40))])
    (tmp_path / "boom.py").write_text(BOOM)
    (tmp_path / "s.yaml").write_text(DOLLARS.replace("ROOT", str(tmp_path)).replace("BERT", str(tiny_bert)))
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), "--output_dir", str(tmp_path / "runs")]) == 1
    captured = capsys.readouterr()
    assert "no seed finished in both, so they are not compared" in captured.err and "mean $\\frac{a$ - max" in captured.out
    assert glot_main(["report", str(tmp_path / "runs/dollars"), "--html", str(tmp_path / "d.html")]) == 0
    check_alone((tmp_path / "d.html").read_text())
