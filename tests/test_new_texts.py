"""New texts through a trained run: `glot predict`, `glot encode`, `glot.load(run).predict`."""

import csv
import gzip
import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest
import torch

import glot
from glot.cli import glot_main, main
from glot.data.outputs import Output
from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError, DataError

MOODS = {"happy": "the cat runs", "angry": "not the dog", "neutral": "a big cat sleeps"}


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def moods(count: int) -> list[dict]:
    names = list(MOODS)
    return [{"id": row, "review": f"{MOODS[names[row % 3]]} {'red ' * (row % 4)}".strip(), "mood": names[row % 3]} for row in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert) -> Path:
    """Three runs: classes of a text, classes of a pair, scores of a pair; their evaluation files beside them."""
    root = tmp_path_factory.mktemp("trained")
    common = [f"--model_name_or_path={tiny_bert}", f"--output_dir={root / 'runs'}", f"--store_dir={root / 'hidden'}", "--verbose=0"]
    common += ["--task=custom", "--max_length=12", "--lr=0.05", "--epochs=4"]
    train, dev = write_csv(root / "train.csv", moods(60)), write_csv(root / "dev.csv", moods(20))
    pairs = [{"a": row["review"], "b": MOODS["happy"], "same": row["mood"] == "happy", "score": row["id"] % 4 / 2} for row in moods(40)]
    both = write_csv(root / "pairs.csv", pairs)
    runs = {
        "text": [f"--train_file={train}", f"--eval_file={dev}", "--text_columns=review", "--label_column=mood", "--pooling_method=glot"],
        "pair": [f"--train_file={both}", f"--eval_file={both}", "--text_columns=a,b", "--label_column=same", "--pooling_method=adapool"],
        "score": [f"--train_file={both}", f"--eval_file={both}", "--text_columns=a,b", "--label_column=score", "--pooling_method=mean"],
    }
    for name, words in runs.items():
        assert main([*common, *words, f"--run_name={name}"]) == 0
    return root


def predictions(folder: Path, name: str) -> list[dict]:
    return list(csv.DictReader((folder / "runs" / name / "predictions.csv").open()))


@pytest.mark.parametrize(("name", "source"), [("text", "dev.csv"), ("pair", "pairs.csv"), ("score", "pairs.csv")])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_those_of_the_runs_own_evaluation(folder, name, source, suffix, tmp_path, capsys):
    target = tmp_path / f"out{suffix}"
    assert glot_main(["predict", str(folder / "runs" / name), f"--input={folder / source}", f"--output={target}"]) == 0
    read = {".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True), ".parquet": pd.read_parquet}[suffix]
    found, given, own = read(target), pd.read_csv(folder / source), predictions(folder, name)
    assert list(found.columns[: len(given.columns)]) == list(given.columns) and len(found) == len(own)  # own columns kept, order kept
    assert found[given.columns[0]].astype(str).tolist() == given[given.columns[0]].astype(str).tolist()
    if name == "score":
        np.testing.assert_allclose(found["prediction"], [float(row["prediction"]) for row in own], atol=2e-3)
        return
    assert [str(value).lower() for value in found["prediction"]] == [row["prediction_name"] for row in own]
    classes = glot.load(folder / "runs" / name).classes
    for place, label in enumerate(classes):
        np.testing.assert_allclose(found[f"score_{label}"], [float(row[f"score_{place}"]) for row in own], atol=5e-3)
    assert not list(tmp_path.glob("*.partial*"))


def test_a_loaded_run_predicts_texts_pairs_and_single_ones(folder):
    run = glot.load(folder / "runs/text")
    texts = [row["review"] for row in moods(20)]
    assert run.classes == ("angry", "happy", "neutral")
    assert run.predict(texts) == [row["prediction_name"] for row in predictions(folder, "text")]
    assert run.predict(texts[0]) == run.predict(texts)[0] and run.predict([]) == []
    shares = run.predict_proba(texts)
    assert shares.shape == (20, 3) and np.allclose(shares.sum(1), 1) and run.predict_proba(texts[0]).shape == (3,)
    assert [run.classes[place] for place in shares.argmax(1)] == run.predict(texts)
    assert run.encode(texts[0]).shape == (run.dim,) and run.similarity(run.encode(texts), run.encode(texts)).shape == (20, 20)
    pair = glot.load(folder / "runs/pair")
    assert pair.predict(("the cat", "the dog")) in pair.classes and len(pair.predict([("a", "b"), ["c", "d"]])) == 2
    with pytest.raises(ConfigError, match=r"takes pairs of texts \(a, b\)"):
        pair.predict(["one", "two", "three"])
    with pytest.raises(ConfigError, match="takes texts"):
        run.predict([("a", "b")])
    score = glot.load(folder / "runs/score")
    assert score.classes == () and -1 <= score.predict(("the cat", "the cat")) <= 1.0001
    with pytest.raises(ConfigError, match="have no probabilities"):
        score.predict_proba([("a", "b")])
    assert glot.predict(folder / "runs/text", texts[:3]) == run.predict(texts[:3])


def test_lines_of_standard_input(folder, capsys, monkeypatch):
    lines = b'the cat runs\n\n{"review": "not the dog", "id": 7}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert glot_main(["predict", str(folder / "runs/text"), "--input=-"]) == 0
    out = capsys.readouterr()
    first, second = (json.loads(line) for line in out.out.splitlines())
    assert (first["text"], second["id"]) == ("the cat runs", 7) and {"prediction", "probability"} <= first.keys()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one text\n")))
    assert glot_main(["predict", str(folder / "runs/pair"), "--input=-"]) == 2
    assert "line 1 is one text; give a JSON object with a, b per line" in capsys.readouterr().err


def test_vectors_of_a_run_and_of_a_plain_pooler(folder, tiny_bert, tmp_path, capsys):
    texts = [row["review"] for row in moods(20)]
    run = glot.load(folder / "runs/text")
    words = ["encode", str(folder / "runs/text"), f"--input={folder / 'dev.csv'}"]
    assert glot_main([*words, f"--output={tmp_path / 'v.npy'}"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), run.encode(texts), atol=1e-6)
    assert glot_main([*words, f"--output={tmp_path / 'v.parquet'}", "--normalize=0"]) == 0
    frame = pd.read_parquet(tmp_path / "v.parquet")
    np.testing.assert_allclose(np.stack(frame["vector"]), run.encode(texts, normalize=False), atol=1e-5)
    assert frame["mood"].tolist() == [row["mood"] for row in moods(20)]
    plain = [
        "encode",
        f"--model_name_or_path={tiny_bert}",
        "--pooling_method=mean",
        "--text_columns=review",
        f"--input={folder / 'dev.csv'}",
    ]
    assert glot_main([*plain, f"--output={tmp_path / 'm.npy'}", "--max_length=12"]) == 0
    expected = glot.encode(texts, pooler="mean", model=str(tiny_bert))
    np.testing.assert_allclose(np.load(tmp_path / "m.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--input=DEV", "--output=out.txt"], "--output=out.txt: is of no kind that is written; give .csv, .jsonl, .parquet"),
        (["--input=nothing.csv"], "--input=nothing.csv: no such file"),
        (["--input=DEV", "--text_columns=revue"], "no column 'revue' (--text_columns) (did you mean 'review'?)"),
        (["--input=DEV", "--text_columns=a,b"], "--text_columns=a,b: "),
        (["--input=DEV", "--output=/nowhere/out.csv"], "--output=/nowhere/out.csv: cannot be written"),
        (["--input=DEV", "--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--input=EMPTY", "--output=out.csv"], "holds no rows"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(folder, words, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("review,mood\n")
    real = [word.replace("DEV", str(folder / "dev.csv")).replace("EMPTY", str(tmp_path / "empty.csv")) for word in words]
    assert glot_main(["predict", str(folder / "runs/text"), *real]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert complaint in line


def test_values_of_every_kind_survive(folder, tmp_path, capsys):
    rows = [
        {"review": "the cat", "any": 1, "list": [1, {"a": None}], "day": None},
        {"review": "not the dog", "any": "half \ud800", "list": [], "day": True},
    ]
    source = tmp_path / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["predict", str(folder / "runs/text"), f"--input={source}"]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert glot_main([*words, f"--output={tmp_path / name}"]) == 0, capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["any"].tolist() == ["1", r'"half \ud800"'] and frame["list"].tolist() == ['[1, {"a": null}]', "[]"]
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert glot_main(["predict", str(folder / "runs/text"), f"--input={packed}", f"--output={tmp_path / 'b.csv'}"]) == 0
    assert {"prediction", "prediction_"} <= set(pd.read_csv(tmp_path / "b.csv").columns)


def test_columns_are_checked_before_the_backbone_is_loaded(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("glot.new_texts.load_predictor", lambda *_, **__: pytest.fail("was loaded"))
    assert glot_main(["predict", str(folder / "runs/text"), f"--input={folder / 'pairs.csv'}", f"--output={tmp_path / 'x.csv'}"]) == 2
    assert "no column 'review'" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert glot_main(["encode", "--pooling_method=mean", "--epochs=3", "--input=x", "--output=y.npy"]) == 2
    assert "--epochs: has no effect without training" in capsys.readouterr().err


def test_standard_input_is_never_taken_for_a_part_of_an_earlier_one(folder, tmp_path, capsys, monkeypatch):
    words = ["predict", str(folder / "runs/text"), "--input=-", f"--output={tmp_path / 'x.jsonl'}", "--batch_size=1"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat runs\n{broken\n")))
    assert glot_main(words) == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"not the dog\na cat\n")))
    assert glot_main(words) == 0
    assert [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == ["not the dog", "a cat"]


def test_a_finished_file_is_not_replaced_unasked(folder, tmp_path, capsys):
    words = ["predict", str(folder / "runs/text"), f"--input={folder / 'dev.csv'}", f"--output={tmp_path / 'out.csv'}"]
    assert glot_main(words) == 0 and glot_main(words) == 2
    assert "is there already; choose another name, or --overwrite=1" in capsys.readouterr().err
    assert glot_main([*words, "--overwrite=1"]) == 0
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        glot.load(tmp_path)


def test_rows_of_two_heads_are_not_joined_in_one_file(folder):
    """What a killed command has written is gone on with by the same model alone; the head is a part of it."""
    run = glot.load(folder / "runs/text")
    before = run.fingerprint()
    assert glot.load(folder / "runs/text").fingerprint() == before
    with torch.no_grad():
        next(iter(run.head.parameters())).view(-1)[0] += 1
    assert run.fingerprint() != before and SentenceEncoder.fingerprint(run) == SentenceEncoder.fingerprint(glot.load(folder / "runs/text"))


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_stopped(folder, tmp_path):
    """Of predict; the soak kills encode too, and compares bytes."""
    source, target = write_csv(tmp_path / "many.csv", moods(40_000)), tmp_path / "out.csv"
    words = ["-m", "glot", "predict", str(folder / "runs/text"), f"--input={source}", f"--output={target}"]
    process = processes.Started(words)
    notes, until = Path(f"{target}.partial.json"), time.monotonic() + 60
    while not notes.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(notes.read_text())["rows"]
    assert 0 < done < 40_000 and not target.exists()
    again = processes.run(words)
    assert again.returncode == 0 and "rows are there, going on" in again.stderr and "40,000" in again.stderr
    run = glot.load(folder / "runs/text")
    texts = [row["review"] for row in moods(60)]
    rows = list(csv.DictReader(target.open()))
    assert [int(row["id"]) for row in rows] == list(range(40_000))
    assert [row["prediction"] for row in rows[:60]] == run.predict(texts)


def test_vectors_of_a_command_that_was_broken_off_are_those_of_one_that_was_not(folder, tmp_path, monkeypatch, capsys):
    source = write_csv(tmp_path / "many.csv", moods(3_000))
    words = ["encode", str(folder / "runs/text"), f"--input={source}"]
    assert glot_main([*words, f"--output={tmp_path / 'calm.npy'}"]) == 0
    whole, calls = SentenceEncoder.encode, []

    def breaks(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode", breaks)
        assert glot_main([*words, f"--output={tmp_path / 'out.npy'}"]) == 130
    capsys.readouterr()
    assert glot_main([*words, f"--output={tmp_path / 'out.npy'}"]) == 0
    assert "rows are there, going on" in capsys.readouterr().err
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "calm.npy").read_bytes()


def test_a_part_that_is_not_what_was_written_is_begun_anew(tmp_path, caplog):
    path, partial, notes = tmp_path / "out.csv", tmp_path / "out.csv.partial", tmp_path / "out.csv.partial.json"

    def begin() -> dict:
        partial.unlink(missing_ok=True)
        with Output(path, "one") as output:
            output.columns = ["a", "b"]
            output.add(b"a,b\n1,2\n", 1)
        return json.loads(notes.read_text())

    known = begin()
    with Output(path, "one") as again:
        assert (again.done, again.columns) == (1, ["a", "b"]) and not caplog.records
    for damage in ({"rows": 2}, {"rows": 10**30}, {"bytes": -1}, {"bytes": 4}, {"columns": ["b", "a"]}, {"seal": None}, {}):
        begin()
        caplog.clear()
        notes.write_text(json.dumps(known | damage))
        if not damage:
            partial.write_bytes(b"a,b\n1,3\n")
        with Output(path, "one") as again:
            assert again.done == 0 and not again.columns
        assert [record.message for record in caplog.records] == [f"{partial}: is not what was written; begun anew"]


def test_two_commands_do_not_write_one_file(tmp_path):
    path = tmp_path / "out.csv"
    with Output(path, "one") as first:
        first.add(b"a\n", 1)
        for asked in ("one", "another"):
            with pytest.raises(DataError, match=f"--output={path}: another command is writing it"), Output(path, asked):
                pass
        first.add(b"b\n", 1)
        first.finish(lambda partial, whole: partial.replace(whole))
    assert path.read_bytes() == b"a\nb\n" and [left.name for left in tmp_path.iterdir()] == ["out.csv"]
