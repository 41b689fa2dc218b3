"""Pairs: reading them from a stream, batches without a text twice, the head and the loss over them."""

import gzip
import json
import math
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from torch.nn import functional as F

from glot.data import PairFile, PairOptions, pair_rows
from glot.data.loader import BatchLoader, DistinctBatches
from glot.data.pair_rows import PairSpec, load_pair_data
from glot.data.pairs import MISSING
from glot.data.tasks import TASKS
from glot.errors import DataError
from glot.nn.heads import InBatchHead
from glot.nn.losses import symmetric_info_nce
from glot.nn.model import SentenceModel
from glot.nn.poolers.fixed import MeanPooler
from glot.training.evaluate import rank_positives
from glot.types import Batch, TokenBatch

CPU = torch.device("cpu")
ROWS = [
    {"query": "a", "pos": ["b", "unused"], "neg": ["c", "d"]},
    {"query": "a", "pos": ["e"], "neg": []},
    {"query": "f", "pos": ["b"]},
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_texts_are_streamed_once_each_and_rows_point_at_them(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    pairs = PairFile(tmp_path / name, PairOptions(negatives=2))
    texts = list(pairs)
    assert texts == list(pairs) == ["a", "b", "c", "d", "e", "f"] and len(pairs) == 6 and pairs.num_rows == 3
    assert [texts[place] for place in pairs.queries] == ["a", "a", "f"] and [texts[place] for place in pairs.positives] == ["b", "e", "b"]
    assert pairs.negatives.tolist() == [[2, 3], [MISSING, MISSING], [MISSING, MISSING]] and pairs.short_rows == 2
    assert pairs.where(4) == f"{tmp_path / name}: line 2"
    assert list(PairFile(tmp_path / name, PairOptions(rows=2))) == ["a", "b", "e"]
    assert PairFile(tmp_path / name, PairOptions(rows=2)).sha256 != PairFile(tmp_path / name, PairOptions()).sha256


def test_memory_does_not_grow_with_the_texts(tmp_path):
    with gzip.open(tmp_path / "long.jsonl.gz", "wt") as stream:
        for row in range(400):
            stream.write(json.dumps({"query": f"{row}", "pos": [f"{row} {'long text ' * 5000}"], "neg": []}) + "\n")
    tracemalloc.start()
    pairs = PairFile(tmp_path / "long.jsonl.gz", PairOptions())
    characters = sum(len(text) for text in pairs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters > 20_000_000 and peak < characters / 10


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object {query, pos, neg}"),
        ('{"query": "a", "pos": "b"}', "pos must be a list of texts, it is str"),
        ('{"query": "a", "pos": []}', "pos is empty"),
        ('{"query": "a", "pos": ["b"], "neg": null}', "neg must be a list of texts, it is NoneType"),
        ('{"query": " ", "pos": ["b"]}', "query holds ' ', not a text"),
        ('{"pos": ["b"]}', "query holds None, not a text"),
        ('{"query": "a", "pos": [3]}', "pos holds 3, not a text"),
        ('{"query": "a", "pos": ["b"], "neg": [""]}', "neg holds '', not a text"),
        ("\udcff", "not JSON"),
        ('{"query": "\\ud800", "pos": ["b"]}', "query holds '\\ud800', not a text"),
    ],
)
def test_a_malformed_row_is_named_or_counted(tmp_path, line, complaint):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(ROWS[0])
    path.write_text(f"{good}\n{line}\n{good}\n\n", errors="surrogateescape")  # a blank line is no row
    with pytest.raises(DataError) as caught:
        PairFile(path, PairOptions(negatives=1))
    assert str(caught.value).startswith(f"{path}: line 2: {complaint}") and "--skip_bad_rows=1" in str(caught.value)
    skipped = PairFile(path, PairOptions(negatives=1, skip_bad=True))
    assert skipped.bad == 1 and skipped.num_rows == 2 and list(skipped) == ["a", "b", "c"]


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress(b"\n".join(json.dumps(row).encode() for row in ROWS * 50))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    (tmp_path / "empty.jsonl").write_text("")
    for name, complaint in (("torn.jsonl.gz", "cannot be read"), ("plain.jsonl.gz", "cannot be read"), ("empty.jsonl", "holds no row")):
        with pytest.raises(DataError, match=complaint):
            PairFile(tmp_path / name, PairOptions())


def test_the_slice_is_apart_from_the_training_rows_and_follows_the_data_seed(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl", [{"query": f"q{row}", "pos": [f"p{row}"], "neg": ["n"] * (row % 2)} for row in range(50)])

    def load(seed: int, rows: str = "full", negatives: int = 0) -> tuple:
        return load_pair_data(TASKS["embedding"], PairSpec(str(tmp_path / "pairs.jsonl"), rows, negatives, False, 0.2, seed))

    data, pairs = load(3)
    train, heldout = set(data.train.sides[0].tolist()), set(data.heldout.sides[0].tolist())
    assert len(heldout) == 10 and not train & heldout and train | heldout == set(pairs.queries.tolist()) and len(data.train.sides) == 2
    assert load(3)[0].heldout.sides[0].tolist() == data.heldout.sides[0].tolist() != load(4)[0].heldout.sides[0].tolist()
    assert load(3)[0].sha256 == data.sha256 != load(4)[0].sha256
    monkeypatch.setattr(pair_rows, "LARGEST_SLICE", 5)
    assert len(load(3)[0].heldout) == 5
    monkeypatch.undo()
    notes = load(0, rows="60", negatives=1)[0].notes
    assert (
        notes[0] == "60 training rows asked for, 50 are there"
        and notes[1] == "25 rows have fewer than 1 negative and bring those they have"
    )
    write_rows(tmp_path / "pairs.jsonl", [{"query": f"q{row}", "pos": [f"p{row}"], "neg": []} for row in range(50)])
    with pytest.raises(DataError, match=r"--hard_negatives=2: no row of .* has a negative; use 0"):
        load(0, negatives=2)


class Tokens:
    """A source whose text t is a single token (t, 1)."""

    hidden_size = 2

    def __len__(self) -> int:
        return 100

    def gather(self, rows: np.ndarray) -> TokenBatch:
        places = torch.as_tensor(rows, dtype=torch.float32)
        return TokenBatch.from_lengths(torch.stack([places, torch.ones(len(rows))], 1), torch.ones(len(rows), dtype=torch.int64))

    read = gather


def test_negatives_that_are_the_row_itself_or_come_twice_are_no_negatives(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"query": "a", "pos": ["b"], "neg": ["b", "c", "a", "c", "d", "e"]}])
    pairs = PairFile(tmp_path / "pairs.jsonl", PairOptions(negatives=2))
    assert list(pairs) == ["a", "b", "c", "d"] and pairs.negatives.tolist() == [[2, 3]]


def test_all_rows_of_a_query_are_on_one_side(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"query": f"q{row // 3}", "pos": [f"p{row}"]} for row in range(60)])
    data, _ = load_pair_data(TASKS["embedding"], PairSpec(str(tmp_path / "pairs.jsonl"), "full", heldout_fraction=0.3))
    train, heldout = set(data.train.sides[0].tolist()), set(data.heldout.sides[0].tolist())
    assert len(heldout) == 6 and len(data.heldout) == 18 and not train & heldout
    assert data.notes[0].startswith("a text stands in up to 3 training rows")


def test_many_rows_with_one_text_cost_no_quadratic_time():
    count = 20_000
    sides = np.arange(count), np.where(np.arange(count) % 2, count, count + np.arange(count))
    start = time.perf_counter()
    batches = list(DistinctBatches(sides, 32, torch.Generator().manual_seed(0)))
    seen = [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) >= count // 2
    assert all(sum(row % 2 for row in batch) <= 1 for batch in batches)
    assert time.perf_counter() - start < 20  # 33 s and more when every waiting row was looked at for every batch; a fraction of one now


def test_a_schedule_counts_the_batches_that_repeated_texts_make():
    queries = np.repeat(np.arange(20), 100)
    sampler = DistinctBatches((queries, np.arange(2000) + 20), 32, torch.Generator().manual_seed(0))
    assert len(sampler) == len(list(sampler)) == 100  # and not 2000 / 32
    assert len(DistinctBatches((np.arange(65), np.arange(65) + 65), 32, torch.Generator())) == 3


def test_no_text_stands_twice_in_a_batch_and_no_row_is_lost():
    draw = np.random.default_rng(0)
    sides = draw.integers(0, 30, 200), draw.integers(30, 60, 200), np.where(draw.random((200, 2)) < 0.5, MISSING, 70)
    batches = list(DistinctBatches((sides[0], sides[1]), 16, torch.Generator().manual_seed(0)))
    for batch in batches:
        texts = [int(side[row]) for row in batch for side in sides[:2]]
        assert 1 < len(batch) <= 16 and len(set(texts)) == len(texts)
    seen = sorted(row for batch in batches for row in batch)
    assert len(seen) == len(set(seen)) >= 199  # a last row that stands alone is left out
    with_negatives = list(DistinctBatches(sides, 16, torch.Generator().manual_seed(0)))
    assert all(sum(int(70 in sides[2][row]) for row in batch) <= 1 for batch in with_negatives)


def test_a_batch_brings_the_negatives_that_there_are():
    sides = np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([[6, MISSING], [MISSING, MISSING], [7, 8]])
    (batch,) = BatchLoader(sides, None, Tokens(), 8, CPU)
    assert [len(side) for side in batch.sides] == [3, 3, 3] and batch.sides[2].tokens[:, 0].tolist() == [6, 7, 8]
    assert batch.labels is None and len(batch) == 3
    (bare,) = BatchLoader((*sides[:2], np.full((3, 2), MISSING)), None, Tokens(), 8, CPU)
    assert len(bare.sides) == 2


def test_the_loss_with_negatives_written_out():
    torch.manual_seed(0)
    query, positive, negative = torch.randn(4, 6), torch.randn(4, 6), torch.randn(3, 6)
    for normalize in (False, True):
        own = [F.normalize(z, dim=1) if normalize else z for z in (query, positive, negative)]
        rows = columns = 0.0
        for i in range(4):
            against = [float(own[0][i] @ other) / 0.05 for other in [*own[1], *own[2]]]
            rows += float(torch.logsumexp(torch.tensor(against), 0)) - against[i]
            back = [float(other @ own[1][i]) / 0.05 for other in own[0]]
            columns += float(torch.logsumexp(torch.tensor(back), 0)) - back[i]
        found = symmetric_info_nce(InBatchHead(6, contrastive_normalize=normalize)(query, positive, negative), temperature=0.05)
        assert float(found) == pytest.approx((rows + columns) / 8, rel=1e-5)


def test_ranks_against_a_loop():
    """Text t is the vector (t, 1): cosine orders texts by angle, and rows 0 and 3 share their positive."""
    queries, positives = np.array([1, 5, 9, 2]), np.array([2, 40, 8, 2])
    model = SentenceModel(MeanPooler(2), InBatchHead(2))
    loader = BatchLoader((queries, positives), None, Tokens(), 3, CPU)
    loss = lambda output, _: symmetric_info_nce(output, temperature=0.5)  # noqa: E731
    metrics, ranks = rank_positives(model, loader, positives, loss)

    def cosine(one: int, other: int) -> float:
        return float(F.cosine_similarity(torch.tensor([one, 1.0]), torch.tensor([other, 1.0]), dim=0))

    candidates = [2, 8, 40]
    expected = [sum(cosine(q, c) >= cosine(q, p) for c in candidates) for q, p in zip(queries, positives, strict=True)]
    assert ranks.tolist() == expected and max(expected) > 1
    assert metrics["mrr_at_10"] == pytest.approx(np.mean([1 / rank for rank in expected]))
    assert metrics["recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in expected]))
    parts = [(queries[:3], positives[:3]), (queries[3:], positives[3:])]
    losses = [float(loss(InBatchHead(2)(*(torch.tensor([[text, 1.0] for text in side]) for side in part)), None)) for part in parts]
    assert metrics["loss"] == pytest.approx((3 * losses[0] + losses[1]) / 4, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_vectors_that_tell_nothing_apart_rank_last(value):
    batch = Batch(tuple(TokenBatch.from_lengths(torch.full((5, 2), value), torch.ones(5, dtype=torch.int64)) for _ in range(2)), None)
    metrics, ranks = rank_positives(SentenceModel(MeanPooler(2), InBatchHead(2)), [batch], np.arange(5), symmetric_info_nce)
    assert ranks.tolist() == [5] * 5 and metrics["recall_at_1"] == 0


def test_ranks_beyond_ten_count_nothing(tmp_path: Path):
    from glot.training.metrics import RANK_METRICS

    ranks = np.array([1, 2, 10, 11])
    assert RANK_METRICS["mrr_at_10"](ranks).mean() == pytest.approx((1 + 0.5 + 0.1) / 4)
    assert RANK_METRICS["recall_at_1"](ranks).mean() == 0.25
