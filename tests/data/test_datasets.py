"""Rows: from the mirror, generated, held out; and what shortcuts score on them."""

import dataclasses
import gzip
import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import single_rows, write_rows
from pyarrow import parquet

from glot.data import StressOptions, draw_rows, generate_stress, hold_out, load_hub_examples
from glot.data.loader import TextIndex
from glot.data.shortcuts import score_shortcuts
from glot.data.stress import faithful_sample, needles_kept
from glot.data.tasks import TASKS, load_task_data, targets, training_rows
from glot.errors import DataError
from glot.recipes import run_task
from glot.settings.config import DataConfig, StressConfig
from glot.settings.flags import parse
from glot.types import Examples

STREAMS = json.loads((Path(__file__).parents[1] / "golden" / "stress_streams.json").read_text())


def stream_hash(train: Examples, evaluation: Examples) -> str:
    lines = [f"{int(label)}\t{text}" for split in (train, evaluation) for text, label in zip(split.columns[0], split.labels, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("row", STREAMS, ids=lambda row: f"{row['seed']}-{row['distractor_ratio']}-{row['signal_position']}")
def test_streams_of_the_release(row):
    options = StressOptions(row["seq_len"], row["distractor_ratio"], row["signal_position"], row["relational_distance"])
    train, evaluation = generate_stress("faithful", options, row["num_train"], row["num_eval"], row["seed"])
    assert stream_hash(train, evaluation) == row["sha256"]
    assert train.labels.sum() + evaluation.labels.sum() == row["positives"]


def test_a_negative_has_its_modifier_before_the_noun():
    draw = random.Random(3)
    for _ in range(50):
        text, label = faithful_sample(draw, StressOptions(60, 0.2, "start", 4))
        words = text.split()
        context = 4 if text.startswith("in the box") else 3
        assert len(words) == 12 + context + (1 if label else 6)
        assert (words[context] in ("not", "never", "without", "excluding")) == (not label)


def test_length_alone_solves_the_faithful_test():
    for ratio in (0.2, 0.9):
        scores = score_shortcuts(*generate_stress("faithful", StressOptions(distractor_ratio=ratio), 600, 300, 0))
        assert scores["length alone"] == 1.0
        assert 0.4 < scores["majority class"] < 0.6


def variant(name: str, ratio: float, num_train: int = 4000, num_eval: int = 2000, **options) -> tuple[Examples, Examples]:
    return generate_stress(name, StressOptions(distractor_ratio=ratio, **options), num_train, num_eval, 0)


HASHES = {
    "length_matched": "1e1de50312527762edb9aa38e7de4e1ac57c0c04dde3438e356984d9d9ce7b53",
    "relational": "1beac26cd9126c1b0d69ea98176d8e71c0317cf1a01fbf8c958016afefc8eedd",
    "repeat": "0bf834462c729c4d6e4ea01e13e734913e3d61f718067cad3814d0bb3090b609",
}


@pytest.mark.parametrize("name", HASHES)
def test_streams_of_the_other_variants_are_pinned(name):
    assert stream_hash(*variant(name, 0.5, 60, 20)) == HASHES[name]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_what_each_variant_leaks(ratio):
    """Chance is within 5 points of 50 % on 2,000 evaluation rows."""
    matched, relational, repeat = (score_shortcuts(*variant(name, ratio)) for name in HASHES)
    for scores in (matched, relational, repeat):
        assert abs(scores["length alone"] - 0.5) <= 0.05
    assert matched["bag of words"] > 0.95
    for scores in (relational, repeat):
        assert abs(scores["bag of words"] - 0.5) <= 0.05
        assert scores["bigrams"] <= 0.65


@pytest.mark.parametrize("name", HASHES)
def test_classes_have_one_length(name):
    train, _ = variant(name, 0.9, 200, 1)
    contexts = 4 if name == "length_matched" else 1  # its contexts have three or four words, drawn whatever the class
    lengths = {
        label: {len(text.split()) for text, own in zip(train.columns[0], train.labels, strict=True) if own == label} for label in (0, 1)
    }
    assert lengths[0] == lengths[1] and len(lengths[0]) <= contexts


def test_the_relation_is_what_the_label_says():
    train, _ = variant("relational", 0.2, 100, 1, relational_distance=3)
    first = {"keys", "reports", "files"}
    for text, label in zip(train.columns[0], train.labels, strict=True):
        words = text.split()
        place = next(index for index, word in enumerate(words) if word in ("not", "never", "without", "excluding"))
        assert (words[place + 4] in first) == bool(label)
    train, _ = variant("repeat", 0.2, 100, 1)
    nouns = {"keys", "reports", "files", "tickets", "documents", "alerts", "boxes", "letters", "bottles", "tables", "engines", "flowers"}
    for text, label in zip(train.columns[0], train.labels, strict=True):
        found = [word for word in text.split() if word in nouns]
        assert len(found) == 2 and (found[0] == found[1]) == bool(label)


def test_a_signal_is_kept_as_far_as_its_last_noun():
    texts = ["not the keys of", "a b keys tickets", "still reports"]
    assert needles_kept(texts, [12, 16, 13]) == 1.0
    assert needles_kept([*texts, "it not"], [12, 16, 13, 6]) == pytest.approx(3 / 4)  # it ends before its noun
    assert needles_kept(texts, [11, 16, 13]) == pytest.approx(2 / 3) and needles_kept(texts, [0, 8, 12]) == 0.0


def test_shortcuts_are_at_chance_on_noise():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=9)) for _ in range(600)]
    labels = np.array([draw.randint(0, 1) for _ in texts], dtype=float)
    split = Examples("noise", "x", (texts,), labels)
    scores = score_shortcuts(split.take(np.arange(300), "train"), split.take(np.arange(300, 600), "eval"))
    assert all(0.38 < score < 0.62 for score in scores.values())


def test_rows_of_the_mirror(mirror):
    examples = load_hub_examples("cola", "train", mirror, 10)
    assert len(examples) == 10 and examples.columns[0][1] == "not the blue dog runs" and examples.labels[1] == 1
    assert len(load_hub_examples("cola", "train", mirror, 1000)) == 41
    assert len(load_hub_examples("mnli", "validation_mismatched", mirror, None).columns) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sentence": "a"}], r"no column label; it has sentence"),
        ([{"sentence": "a", "label": 0}, {"sentence": None, "label": 0}], r"row 1: sentence is None, not a text"),
        ([{"sentence": "a", "label": 1}, {"sentence": "b", "label": None}], r"row 1 has no label"),
        (
            [{"sentence": "a", "label": 1}, {"sentence": "b \ud800", "label": 0}],
            r"row 1: sentence holds half a surrogate pair \('b .ud800'\)",
        ),
    ],
)
def test_broken_rows_are_named(tmp_path, rows, message):
    write_rows(tmp_path / "nyu-mll/glue/cola/train.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_hub_examples("cola", "train", tmp_path, None)


def test_missing_splits_unlabelled_splits_and_broken_files(mirror, tmp_path):
    with pytest.raises(DataError, match=r"splits there: test, train, validation \(did you mean 'validation'\?\) \(--eval_split\)"):
        load_hub_examples("cola", "validatoin", mirror, None)
    with pytest.raises(DataError, match="the folder holds none"):
        load_hub_examples("rte", "train", mirror, None)
    with pytest.raises(DataError, match=r"cola test: row 0 has no label \(-1; 5 rows like it\)"):
        load_hub_examples("cola", "test", mirror, None)
    path = tmp_path / "nyu-mll/glue/cola/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"sentence": "a", "label": 1}\n{"sentence": \n')
    with pytest.raises(DataError, match=r"train.jsonl: line 2: is not JSON \(Expecting value at column 13\); one object per line"):
        load_hub_examples("cola", "train", tmp_path, None)


def test_files_that_are_no_rows(tmp_path):
    folder = tmp_path / "nyu-mll/glue/cola"
    folder.mkdir(parents=True)
    whole = gzip.compress(b'{"sentence": "a", "label": 1}\n' * 50)
    for name, data, message in (
        ("empty.jsonl", b"", "cola empty: holds no rows"),
        ("torn.jsonl.gz", whole[:-9], "torn.jsonl.gz: cannot be read"),
        ("bytes.jsonl", b'{"sentence": "\xff\xfe", "label": 1}\n', "bytes.jsonl: line 1: holds a byte that is not UTF-8"),
        ("table.parquet", b"PAR1 and no more", "table.parquet: not readable as Parquet"),
        ("huge.jsonl", b'{"sentence": "a", "label": 1%s}' % (b"0" * 400), "row 0: label is '10000.*, not a number"),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            load_hub_examples("cola", name.split(".")[0], tmp_path, None)
    write_rows(folder / "dev-1.jsonl", single_rows(4))
    assert len(load_hub_examples("cola", "dev-1", tmp_path, None)) == 4


def test_a_download_of_the_hubs_repository_is_a_mirror(mirror, tmp_path):
    whole = load_hub_examples("cola", "train", mirror, None)
    folder = tmp_path / "nyu-mll/glue/cola"
    folder.mkdir(parents=True)
    for part, rows in enumerate((slice(0, 30), slice(30, None))):
        table = {"sentence": whole.columns[0][rows], "label": whole.labels[rows].astype(int)}
        parquet.write_table(pa.table(table), folder / f"train-{part:05d}-of-00002.parquet")
    for few in (None, 33):
        found, wanted = (load_hub_examples("cola", "train", place, few) for place in (tmp_path, mirror))
        assert found.columns == wanted.columns and (found.labels == wanted.labels).all()
    with pytest.raises(DataError, match="splits there: train "):
        load_hub_examples("cola", "trian", tmp_path, None)
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"cola holds train-00001-of-00002.parquet, not the 2 parts of train; fetch those"):
        load_hub_examples("cola", "train", tmp_path, None)
    (folder / "train-00000-of-00001.parquet").touch()  # of another version of the data set
    with pytest.raises(DataError, match=r"holds train-00000-of-00001.parquet, train-00001-of-00002.parquet, not the 2 parts"):
        load_hub_examples("cola", "train", tmp_path, None)


def test_rows_are_those_of_the_files_as_they_are(tiny_flags, tmp_path, monkeypatch):
    """In one process: the files change, or the working folder under a relative name."""
    words = [word for word in tiny_flags if "data_dir" not in word] + ["--data_dir=m"]
    found = []
    for place, name in (("a", "one"), ("b", "two"), ("b", "three")):
        for split in ("train", "validation"):
            rows = [{"sentence": f"{name} {row}", "label": row % 2} for row in range(8)]
            write_rows(tmp_path / place / "m/nyu-mll/glue/cola" / f"{split}.jsonl", rows)
        monkeypatch.chdir(tmp_path / place)
        result = run_task(parse(words).config)
        found.append((Path(result["run_dir"]) / "predictions.csv").read_text().splitlines()[1].rsplit(",", 1)[1])
    assert found == ["one 0", "two 0", "three 0"]


def test_labels_must_be_classes_of_the_task(tmp_path):
    rows = [*single_rows(4), {"sentence": "x", "label": 5, "idx": 4}]
    for split in ("train", "validation"):
        write_rows(tmp_path / f"nyu-mll/glue/cola/{split}.jsonl", rows)
    with pytest.raises(DataError, match="cola train: row 4 has label 5; the task has classes 0 to 1"):
        load_task_data("cola", DataConfig("cola", str(tmp_path)), StressConfig(), 16, 0)
    write_rows(tmp_path / "nyu-mll/glue/cola/train.jsonl", [{"sentence": "x", "label": "yes"}])
    with pytest.raises(DataError, match="row 0: label is 'yes', not a number"):
        load_hub_examples("cola", "train", tmp_path, None)


def test_rows_of_errors_and_of_the_store_do_not_depend_on_what_is_held_out(mirror):
    indices = []
    for selection, seed in (("best", 0), ("heldout", 0), ("heldout", 1)):
        data = load_task_data("cola", DataConfig("cola", str(mirror), selection=selection, heldout_fraction=0.3), StressConfig(), 16, seed)
        indices.append(TextIndex(data.splits))
    assert indices[0].texts == indices[1].texts == indices[2].texts
    assert indices[1].where(3) == indices[0].where(3) == "cola train: row 3"
    with pytest.raises(DataError, match=r"heldout_fraction=0.3: class 'unacceptable' has one of 2 training rows"):
        load_task_data("cola", DataConfig("cola", str(mirror), "2", selection="heldout", heldout_fraction=0.3), StressConfig(), 16, 0)


def test_the_hash_of_a_run_follows_labels_and_order(mirror):
    data = load_task_data("cola", DataConfig("cola", str(mirror)), StressConfig(), 16, 0)
    flipped = dataclasses.replace(data.train, labels=1 - data.train.labels)
    turned = data.train.take(np.arange(len(data.train))[::-1], "train")
    hashes = {dataclasses.replace(data, train=train, drawn_from=train).sha256 for train in (data.train, flipped, turned)}
    assert len(hashes) == 3


def test_held_out_rows_are_stratified_disjoint_and_follow_the_seed():
    labels = np.array([0.0] * 80 + [1.0] * 20)
    train = Examples("x", "train", ([str(row) for row in range(100)],), labels)
    kept, held = hold_out(train, 0.1, 0, ("no", "yes"))
    assert (len(kept), len(held), held.labels.sum()) == (90, 10, 2)
    assert not set(kept.columns[0]) & set(held.columns[0])
    assert held.columns == hold_out(train, 0.1, 0, ("no", "yes"))[1].columns
    assert held.columns != hold_out(train, 0.1, 1, ("no", "yes"))[1].columns


@pytest.mark.parametrize("counts", [(98, 2), (95, 5), (40, 40, 20, 3, 3)])
def test_a_rare_class_is_on_both_sides_of_a_draw(counts):
    classes = np.repeat(np.arange(len(counts)), counts)
    for seed in range(30):
        kept, held = draw_rows(len(classes), 0.1, seed, stratify=classes)
        assert sorted([*kept, *held]) == list(range(len(classes))) and len(held) == math.ceil(0.1 * len(classes))
        assert set(classes[held]) == set(classes[kept]) == set(classes)
        kept, held = draw_rows(len(classes), 0.9, seed, stratify=classes)  # few are kept
        assert set(classes[held]) == set(classes[kept]) == set(classes)


def test_a_share_that_leaves_no_row_to_train_on_is_refused():
    for count, fraction, classes in ((1, 0.1, None), (5, 0.999, None), (20, 0.95, [0, 1] * 10)):
        by = None if classes is None else np.array(classes)
        with pytest.raises(
            DataError, match=f"heldout_fraction={fraction:g}: takes .* of {count} training row{'s' * (count > 1)} and leaves ."
        ):
            draw_rows(count, fraction, 0, stratify=by)


def test_row_words():
    assert [training_rows(TASKS["qqp"], word) for word in ("subset", "full", "17")] == [20_000, None, 17]
    assert [training_rows(TASKS["cola"], word) for word in ("subset", "full")] == [None, None]


def test_too_few_rows_are_noted_and_a_single_class_is_refused(mirror, tmp_path):
    data = load_task_data("cola", DataConfig("cola", str(mirror), "50"), StressConfig(), 16, 0)
    assert data.notes == ["50 training rows asked for, 41 are there"]
    subset = load_task_data("mnli", DataConfig("mnli", str(mirror)), StressConfig(), 16, 0)
    assert subset.notes == ["20000 training rows asked for, 24 are there"]
    write_rows(tmp_path / "nyu-mll/glue/cola/train.jsonl", single_rows(10)[::2])
    write_rows(tmp_path / "nyu-mll/glue/cola/validation.jsonl", single_rows(4))
    with pytest.raises(DataError, match="the first 3 rows of cola all have label 0; take more"):
        load_task_data("cola", DataConfig("cola", str(tmp_path), "3"), StressConfig(), 16, 0)


def test_label_scales():
    split = Examples("stsb", "x", (["a"] * 3,), np.array([0.0, 2.5, 5.0]))
    for scale, expected in (("0_1", [0, 0.5, 1]), ("-1_1", [-1, 0, 1]), ("raw", [0, 2.5, 5])):
        assert targets(TASKS["stsb"], split, scale).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("stress", "embedding", "custom")])
def test_real_data_of_every_task(task, real_data):
    splits = {"qqp": ["train_holdout"]}.get(task, list(TASKS[task].eval_splits))
    for split in splits:
        examples = load_hub_examples(task, split, real_data, None)
        values = set(examples.labels.tolist())
        assert values == set(range(TASKS[task].num_labels)) if TASKS[task].num_labels > 1 else max(values) == 5
    sizes = {"cola": 8551, "sst2": 67349, "stsb": 5749, "mrpc": 3668, "rte": 2490, "wnli": 635, "imdb": 25000}
    if task in sizes:
        assert len(load_hub_examples(task, "train", real_data, None)) == sizes[task]
