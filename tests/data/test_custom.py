"""`--task=custom`: rows of a user's own files, through the real command line."""

import csv
import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from glot.cli import main
from glot.data.custom import CustomSpec, load_custom
from glot.data.labels import LabelFacts
from glot.data.records import read_records

MOODS = {"happy": "the cat runs", "angry": "not the dog", "neutral": "a big cat sleeps"}


def rows(count: int) -> list[dict]:
    moods = list(MOODS)
    return [{"id": row, "review": f"{MOODS[moods[row % 3]]} {'red ' * (row % 4)}".strip(), "mood": moods[row % 3]} for row in range(count)]


def write(path: Path, records: list[dict]) -> Path:
    """A file of the kind that its name says."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(records), path)
        return path
    if kind in ("csv", "tsv"):
        with path.with_suffix(".tmp").open("w", newline="") as stream:
            table = csv.DictWriter(stream, records[0], delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(records)
        text = path.with_suffix(".tmp").read_text()
    else:
        text = json.dumps(records) if kind == "json" else "".join(json.dumps(row) + "\n" for row in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def flags(tiny_bert, tmp_path) -> list[str]:
    own = [f"--model_name_or_path={tiny_bert}", f"--output_dir={tmp_path / 'runs'}", f"--store_dir={tmp_path / 'hidden'}"]
    return ["--task=custom", *own, "--max_length=16", "--pooling_method=mean", "--epochs=1", "--verbose=0"]


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def complain(capsys, words: list[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


MOOD = ["--text_columns=review", "--label_column=mood"]


def test_every_kind_of_file_gives_the_same_run(flags, tmp_path, capsys):
    prints = {}
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.jsonl.gz"):
        file = write(tmp_path / name, rows(30))
        prints[name] = run(capsys, [*flags, f"--train_file={file}", *MOOD])["fingerprint"]
    assert len(set(prints.values())) == 1, prints  # the content counts, not the path
    halves = [write(tmp_path / f"half-{part}.csv", rows(30)[part * 15 : part * 15 + 15]) for part in (0, 1)]
    for named in (",".join(map(str, halves)), str(tmp_path / "half-*.csv")):
        assert run(capsys, [*flags, f"--train_file={named}", *MOOD])["fingerprint"] == prints["a.csv"]
    odd = write(tmp_path / "[1],*.csv", rows(30))  # a path that exists is no pattern
    assert run(capsys, [*flags, f"--train_file={odd}", *MOOD])["fingerprint"] == prints["a.csv"]


def test_words_are_classes_and_their_names_are_kept(flags, tmp_path, capsys):
    train, evaluation = write(tmp_path / "train.csv", rows(60)), write(tmp_path / "dev.jsonl", rows(21))
    words = [*flags, f"--train_file={train}", f"--eval_file={evaluation}", *MOOD, "--lr=0.05", "--epochs=8", "--task_name=moods"]
    result = run(capsys, words)
    folder = Path(result["run_dir"])
    names = ["angry", "happy", "neutral"]
    assert result["labels"] == {"kind": "class", "classes": names}
    assert json.loads((folder / "config.json").read_text())["resolved"]["labels"]["classes"] == names
    assert list(result["best"]["metrics"]) == ["accuracy", "macro_f1"] and result["floor"]["accuracy"] == pytest.approx(1 / 3)
    assert result["rows"] == {"train": 60, "evaluation": 21} and folder.name.startswith("moods-mean-")
    lines = list(csv.DictReader((folder / "predictions.csv").open()))
    assert [line["label_name"] for line in lines] == [row["mood"] for row in rows(21)]
    assert [line["review"] for line in lines] == [row["review"] for row in rows(21)]
    accuracy = np.mean([line["label_name"] == line["prediction_name"] for line in lines])
    assert accuracy == pytest.approx(result["best"]["metrics"]["accuracy"]) and accuracy > 0.8
    table = list(csv.reader((folder / "confusion.csv").open()))
    assert table[0][1:] == names and sum(int(cell) for line in table[1:] for cell in line[1:]) == 21
    assert "21 of 21 evaluation rows have a text that is a training row's too" in " ".join(result["notes"])


def test_two_classes_have_more_metrics_and_the_first_one_asked_for_is_reported(flags, tmp_path, capsys):
    records = [{"text": row["review"], "label": row["id"] % 3 == 0} for row in rows(40)]
    file = write(tmp_path / "two.jsonl", records)
    result = run(capsys, [*flags, f"--train_file={file}"])
    assert list(result["best"]["metrics"]) == ["accuracy", "macro_f1", "f1", "mcc", "auroc", "average_precision"]
    assert result["labels"]["classes"] == ["false", "true"]
    chosen = run(capsys, [*flags, f"--train_file={file}", "--metrics=mcc,auroc"])
    assert list(chosen["best"]["metrics"]) == ["mcc", "auroc"] and chosen["selection"]["metrics"] == ["mcc"]


@pytest.mark.parametrize("label_range", [None, "-1,9"])
def test_scores_of_pairs_are_scaled_by_their_range(label_range, tmp_path):
    records = [{"a": f"the cat {row}", "b": f"the dog {row}", "label": 0.5 + row % 4} for row in range(12)]
    spec = CustomSpec(str(write(tmp_path / "pairs.csv", records)), text_columns="a,b", label_range=label_range)
    found = load_custom(spec, None)
    assert found.labels == LabelFacts("score", (), *((-1.0, 9.0) if label_range else (0.5, 3.5)))
    assert found.train.labels.tolist() == [row["label"] for row in records] and len(found.train.columns) == 2


def test_pairs_of_words_and_of_scores_train(flags, tmp_path, capsys):
    pairs = [{"premise": row["review"], "hypothesis": MOODS["happy"], "label": row["mood"]} for row in rows(30)]
    file = write(tmp_path / "nli.csv", pairs)
    assert run(capsys, [*flags, f"--train_file={file}", "--text_columns=premise,hypothesis"])["labels"]["kind"] == "class"
    scored = write(tmp_path / "sim.csv", [{**row, "label": place % 5 / 2} for place, row in enumerate(pairs)])
    result = run(capsys, [*flags, f"--train_file={scored}", "--text_columns=premise,hypothesis"])
    assert list(result["best"]["metrics"]) == ["spearman", "pearson"] and result["labels"]["range"] == [0, 2]
    assert result["floor"] == {"spearman": 0.0, "pearson": 0.0}


def test_what_is_kept_out_follows_the_data_seed_and_shares_a_store(flags, tmp_path, capsys):
    words = [*flags, f"--train_file={write(tmp_path / 'a.csv', rows(40))}", *MOOD]
    results = [run(capsys, [*words, f"--data_seed={seed}"]) for seed in (0, 0, 1)]
    kept = [(Path(result["run_dir"]) / "predictions.csv").read_text() for result in results]
    assert kept[0] == kept[1] != kept[2] and results[0]["rows"] == {"train": 36, "evaluation": 4}
    assert len({result["store"]["path"] for result in results}) == 1
    held = run(capsys, [*words, "--selection=heldout"])
    assert held["rows"]["train"] == 32 and held["rows"]["evaluation"] == 4


def test_a_task_can_be_kept_in_a_file(flags, tmp_path, capsys):
    write(tmp_path / "a.csv", rows(30))
    task = tmp_path / "moods.yaml"
    task.write_text("train_file: a.csv\ntext_columns: review\nlabel_column: mood\n")  # found beside the file
    result = run(capsys, [f"--task={task}", *flags[1:]])
    assert result["task_name"] == "moods" and Path(result["run_dir"]).name.startswith("moods-mean-")
    again = run(capsys, [*flags, f"--train_file={tmp_path / 'a.csv'}", *MOOD])
    assert again["fingerprint"] == result["fingerprint"]
    write(tmp_path / "b.csv", rows(20))
    task.write_text("train_file: [a.csv, b.csv]\ntext_columns: [review]\nlabel_column: mood\n")  # a list, each beside the file
    both = run(capsys, [f"--task={task}", *flags[1:]])
    task.write_text('train_file: "[ab].csv"\ntext_columns: review\nlabel_column: mood\n')  # a pattern
    assert run(capsys, [f"--task={task}", *flags[1:]])["fingerprint"] == both["fingerprint"] != result["fingerprint"]
    task.write_text("train_file: a.csv\ntrain_file: b.csv\n")
    assert complain(capsys, [f"--task={task}", *flags[1:]]) == f"error: --task={task}: line 2: train_file is set twice; keep one"
    task.write_text("train_fiel: a.csv\n")
    assert main([f"--task={task}", *flags[1:]]) == 2
    assert f"--task={task}: train_fiel: no such flag (did you mean 'train_file'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("text,label\na,1\n ,0\n", "line 3: column 'text' is empty"),
        ("text,label\na,1\nb,\n", "line 3: column 'label' is empty"),
        ('text,label\n"two\nlines",1\nb,yes\nc,0\n', "line 4: label is 'yes', a word, and most labels are numbers"),
        ("text,label\na,1\nb,1\n", "column 'label': all 2 training rows have label '1'; there must be at least two classes"),
        ("text,label,text\na,1,b\n", "line 1: names column 'text' twice"),
        ('text,label\n"a\nb",1\nc,0,7\n', "line 4: has 3 fields, the first line names 2 columns"),
        ('text,label\na,1\n"b,0\n', "line 3: is no row of a table"),
        ("txet,label\na,1\n", "no column 'text' (--text_columns) (did you mean 'txet'?)"),
        ("text,lable\na,1\n", "no column 'label' (--label_column) (did you mean 'lable'?)"),
        ("", "holds no rows"),
        ("text,label\n", "holds no rows"),
        ("text,label\na,0.5\nb,0.7\n", "look like scores, and one text can only be classified"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_column(text, complaint, flags, tmp_path, capsys):
    (tmp_path / "bad.csv").write_text(text)
    line = complain(capsys, [*flags, f"--train_file={tmp_path / 'bad.csv'}"])
    assert f"{tmp_path / 'bad.csv'}: " in line and complaint in line, line


def test_what_is_wrong_with_json_bytes_and_packed_files(flags, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    for text, complaint in (
        (b'{"text": "a", "label": 1}\n{"text": "b", "label"\n', "line 2: is not JSON"),
        (b'{"text": "a", "label": 1}\n\n{"text": 7, "label": 0}\n', "line 3: column 'text' is '7', not a text"),
        (b'{"text": "a", "label": 1}\n[1, 2]\n', "line 2: holds [1, 2], not an object"),
        (b'{"text": "a", "label": 1}\n{"text": "b", "label": [2]}\n', "line 2: column 'label' is '[2]' (list)"),
        (b'{"text": "a", "label": 1}\n{"text": "caf\xe9", "label": 0}\n', "line 2: holds a byte that is not UTF-8 (0xe9 at column 14)"),
    ):
        bad.write_bytes(text)
        assert complaint in complain(capsys, [*flags, f"--train_file={bad}"])
    packed = tmp_path / "cut.csv.gz"
    packed.write_bytes(gzip.compress(b"text,label\n" + b"a,1\n" * 5000)[:-20])
    assert f"{packed}: cannot be read" in complain(capsys, [*flags, f"--train_file={packed}"])
    (tmp_path / "none.parquet").write_text("none")
    assert "not readable as Parquet" in complain(capsys, [*flags, f"--train_file={tmp_path / 'none.parquet'}"])


def test_long_numbers_stay_apart_and_equal_ones_are_one_class(flags, tmp_path, capsys):
    ids = ["9007199254740992", "9007199254740993", "1.0", "1", "1e0"] * 4
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"the cat {row},{label}\n" for row, label in enumerate(ids)))
    result = run(capsys, [*flags, f"--train_file={tmp_path / 'a.csv'}", "--label_kind=class"])
    assert result["labels"]["classes"] == ["1", "9007199254740992", "9007199254740993"]
    (tmp_path / "b.csv").write_text("text,label\na,1e999\nb,0\n")
    assert "a number that fits" in complain(capsys, [*flags, f"--train_file={tmp_path / 'b.csv'}"])


def test_codes_with_leading_zeros_are_names(flags, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"the cat {row},{'007' if row % 2 else '07'}\n" for row in range(20)))
    assert run(capsys, [*flags, f"--train_file={tmp_path / 'a.csv'}"])["labels"]["classes"] == ["007", "07"]
    (tmp_path / "b.csv").write_text("text,label\na,007\nb,012\nc,112\n")
    assert "or take all for names with --label_kind=class" in complain(capsys, [*flags, f"--train_file={tmp_path / 'b.csv'}"])


def test_rows_that_are_trained_on_and_scored_are_counted(flags, tmp_path, capsys):
    texts = [f"the cat {word}" for word in ("runs", "sleeps", "red", "blue")]
    lines = [f"{texts[row % 4]},{'a' if row % 4 < 2 else 'b'}\n" for row in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(lines))
    for words, said in (
        ([], "warning: 4 of 4 evaluation rows have a text that is a training row's too"),
        (["--folds=2", "--fold=0"], "warning: 20 of 20 fold_0 rows have a text that is a training row's too"),
        ([f"--eval_file={tmp_path / 'a.csv'}"], "warning: 40 of 40 evaluation rows have a text that is a training row's too"),
    ):
        notes = run(capsys, [*flags, f"--train_file={tmp_path / 'a.csv'}", *words])["notes"]
        assert notes.count(said) == 1 and any("kept out" in note for note in notes) != bool(words), notes


def test_a_threshold_needs_a_metric_that_it_moves(flags, tmp_path, capsys):
    path = write(tmp_path / "a.csv", [{"text": f"the cat {row}", "label": row % 2} for row in range(20)])
    words = [*flags, f"--train_file={path}", "--selection=heldout", "--threshold=heldout"]
    assert "auroc is the same at every threshold" in complain(capsys, [*words, "--metrics=auroc"])
    assert "threshold" in run(capsys, [*words, "--metrics=macro_f1,auroc"])


def test_a_field_in_quotes_that_swallows_rows_of_a_tsv_is_said(tmp_path, caplog):
    (tmp_path / "a.tsv").write_text('label\ttext\n1\t"Hello world\n0\tgood\n1\tbad"\n')
    assert len(list(read_records(tmp_path / "a.tsv"))) == 1
    assert "line 2: a field in quotes holds lines that look like rows, up to line 4" in caplog.text
    caplog.clear()
    (tmp_path / "b.tsv").write_text('label\ttext\n1\t"Hello\nworld"\n')
    assert len(list(read_records(tmp_path / "b.tsv"))) == 1 and not caplog.text


def test_links_that_lead_nowhere_and_pipes_do_not_wait(flags, tmp_path, capsys):
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert f"is a link to {tmp_path / 'gone.csv'}, which is not there" in complain(
        capsys, [*flags, f"--train_file={tmp_path / 'link.csv'}"]
    )
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is no regular file" in complain(capsys, [*flags, f"--train_file={tmp_path / 'pipe.csv'}"])
    assert "must be hub:owner/name" in complain(capsys, [*flags, "--train_file=hub:a b"])


def test_a_class_of_one_row_cannot_be_kept_out(flags, tmp_path, capsys):
    train = write(tmp_path / "a.csv", [*rows(12), {"id": 13, "review": "x", "mood": "lone"}])
    assert "class 'lone' has one row only" in complain(capsys, [*flags, f"--train_file={train}", *MOOD])


def test_evaluation_labels_must_be_those_of_training(flags, tmp_path, capsys):
    train = write(tmp_path / "train.csv", rows(12))
    other = write(tmp_path / "dev.csv", [*rows(3), {"id": 9, "review": "x", "mood": "hapy"}])
    line = complain(capsys, [*flags, f"--train_file={train}", f"--eval_file={other}", *MOOD])
    assert f"{other}: line 5: label 'hapy' is no class of the training rows (did you mean 'happy'?)" in line
    pairs = [{"a": "x", "b": f"y {row}", "label": row / 4} for row in range(8)]
    train, other = write(tmp_path / "p.csv", pairs), write(tmp_path / "q.csv", [{"a": "x", "b": "y", "label": 7}])
    line = complain(capsys, [*flags, f"--train_file={train}", f"--eval_file={other}", "--text_columns=a,b"])
    assert f"{other}: line 2: label 7 lies outside the range 0 to 1.75" in line


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--train_file: --task=custom needs it"),
        (["--train_file=HERE/trian.csv"], "no such file (did you mean 'train.csv'?)"),
        (["--train_file=HERE"], "is a folder; name its files"),
        (["--train_file=HERE/train.csv", "--text_columns=a,b,c"], "--text_columns=a,b,c: must name one column, or two"),
        (["--train_file=HERE/train.csv", "--metrics=acuracy"], "--metrics=acuracy: unknown (did you mean 'accuracy'?)"),
        (["--train_file=HERE/train.csv", *MOOD, "--metrics=spearman"], "--metrics=spearman: spearman cannot be had of 3 classes"),
        (["--train_file=HERE/train.csv", "--label_range=5,0"], "--label_range=5,0: must be two rising numbers"),
        (["--train_file=HERE/train.csv", "--eval_split=dev"], "--eval_split=dev: needs a hub: table"),
        (["--train_file=hub:a/b", "--eval_file=HERE/train.csv", "--eval_split=dev"], "and evaluation rows come from"),
        (["--train_file=HERE/train.csv", "--eval_file=hub:a/b", "--train_split=dev"], "--train_split=dev: needs --train_file=hub:"),
        (["--train_file=HERE/train.csv", "--text_columns=review,", "--pooling_method=crossglot"], "--pooling_method=crossglot"),
        (["--train_file=HERE/train.csv", "--folds=3", "--heldout_fraction=0.3"], "--heldout_fraction: has no effect in this run"),
        (["--train_file=HERE/train.csv", *MOOD, "--label_scale=raw"], "no effect"),
        (["--train_file=HERE/train.csv", "--data_dir=HERE"], "--data_dir: has no effect in this run"),
    ],
)
def test_flags_that_cannot_be(words, complaint, flags, tmp_path, capsys):
    write(tmp_path / "train.csv", rows(12))
    capsys.readouterr()
    code = main([*flags, *(word.replace("HERE", str(tmp_path)) for word in words)])
    assert complaint in capsys.readouterr().err and code == (0 if complaint == "no effect" else 2)  # --label_scale is the release's


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    path = tmp_path / "large.csv"
    with path.open("w") as stream:
        stream.write("text,label\n")
        stream.writelines(f'"number {row}, said ""{row % 7}""",{row % 2}\n' for row in range(100_000))
    start = time.perf_counter()
    found = load_custom(CustomSpec(str(path)), None)
    assert len(found.train) == 100_000 and found.train.columns[0][1] == 'number 1, said "1"'
    assert time.perf_counter() - start < 10
    assert found.train.where(99_999) == f"{path}: line 100001"


def test_values_that_look_like_missing_ones_are_texts(tmp_path):
    (tmp_path / "na.csv").write_text("text,label\nNA,nan\nnull,inf\n")
    assert [record.values for record in read_records(tmp_path / "na.csv")] == [
        {"text": "NA", "label": "nan"},
        {"text": "null", "label": "inf"},
    ]
    found = load_custom(CustomSpec(str(tmp_path / "na.csv")), None)
    assert found.labels.names == ("inf", "nan")
