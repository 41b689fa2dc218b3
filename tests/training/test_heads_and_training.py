"""Heads, losses, metrics and the loop."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from glot.data.loader import BatchLoader, TextIndex
from glot.data.tasks import TASKS
from glot.nn.heads import CosineHead, PairHead, SingleHead
from glot.nn.losses import cosine_mse, cross_entropy
from glot.nn.model import SentenceModel
from glot.nn.poolers.fixed import MeanPooler
from glot.settings.config import RunConfig
from glot.training.evaluate import score
from glot.training.metrics import METRICS, finite
from glot.training.optimizer import OPTIMIZERS
from glot.training.record import EpochKeeper, ModelRecord
from glot.training.result import selection_in_words
from glot.training.tracking import JsonlTracker
from glot.training.train import FitOptions, fit
from glot.types import Examples, TokenBatch

CPU = torch.device("cpu")


class Memory:
    """A token source with 2 tokens a text and d = 3."""

    hidden_size = 3

    def __init__(self, count: int = 12):
        self.states = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.states)

    def gather(self, rows):
        return TokenBatch.from_lengths(self.states[torch.as_tensor(rows)].flatten(0, 1), torch.full((len(rows),), 2))

    read = gather


def test_heads():
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    single, pair, cosine = SingleHead(6, 3), PairHead(6, 2), CosineHead(6)
    torch.testing.assert_close(single(a), a @ single.linear.weight.T + single.linear.bias)
    torch.testing.assert_close(pair(a, b), torch.cat([a, b], 1) @ pair.linear.weight.T + pair.linear.bias)
    assert cosine.linear.weight.shape == (6, 6)
    torch.testing.assert_close(cosine(a, b), F.cosine_similarity(cosine.linear(a), cosine.linear(b)))


def test_losses():
    logits, classes = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(cross_entropy(logits, classes), -logits.log_softmax(1)[range(5), classes].mean())
    torch.testing.assert_close(cosine_mse(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0])), torch.tensor(0.125))


def test_metrics_are_the_libraries():
    rng = np.random.default_rng(0)
    labels, outputs = rng.integers(0, 2, 50), rng.normal(size=(50, 2))
    found = score(outputs, labels, ("accuracy", "f1", "mcc"), "_mm")
    predicted = outputs.argmax(1)
    assert found == {
        "accuracy_mm": sklearn_metrics.accuracy_score(labels, predicted),
        "f1_mm": sklearn_metrics.f1_score(labels, predicted),
        "mcc_mm": sklearn_metrics.matthews_corrcoef(labels, predicted),
    }
    targets, cosines = rng.normal(size=50), rng.normal(size=50).astype(np.float32)
    assert METRICS["spearman"](targets, cosines) == pytest.approx(stats.spearmanr(targets, cosines)[0])
    assert METRICS["pearson"](targets, cosines) == pytest.approx(stats.pearsonr(targets, cosines)[0])
    assert math.isnan(METRICS["spearman"](targets, np.zeros(50))) and finite(float("nan")) is None


def test_texts_are_kept_once_and_found_again():
    one = Examples("t", "train", (["a", "b", "a"], ["b", "c", "d"]), None)
    two = Examples("t", "eval", (["d", "e", "a"],), None)
    index = TextIndex([one, two])
    assert sorted(index.texts) == ["a", "b", "c", "d", "e"]
    for split in (one, two):
        for column, side in zip(split.columns, index.sides(split), strict=True):
            assert [index.texts[place] for place in side] == column
    assert index.where(index.texts.index("d")) == "t train: row 2" and index.where(index.texts.index("e")) == "t eval: row 1"


def test_batches_are_shuffled_by_the_seed_anew_in_each_epoch():
    source, labels = Memory(), np.arange(12)

    def epochs(seed):
        loader = BatchLoader((np.arange(12),), labels, source, 5, CPU, seed)
        return [[batch.labels.tolist() for batch in loader] for _ in range(2)]

    first = epochs(0)
    assert first == epochs(0) != epochs(1) and first[0] != first[1]
    assert [len(batch) for batch in first[0]] == [5, 5, 2] and sorted(itertools.chain(*first[0])) == list(range(12))
    assert epochs(None)[0] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    batch = next(iter(BatchLoader((np.arange(12), np.arange(12)[::-1].copy()), None, source, 5, CPU)))
    assert torch.equal(batch.sides[1].tokens[:2], source.states[11]) and batch.labels is None


def reference(epochs: int, lr: float, seed: int) -> list[float]:
    """The same training written without this package's loop."""
    source, labels = Memory(), torch.arange(12) % 2
    torch.manual_seed(0)
    linear, losses = torch.nn.Linear(3, 2), []
    optimizer = torch.optim.Adam(linear.parameters(), lr=lr)
    batches = BatchLoader((np.arange(12),), labels.numpy(), source, 5, CPU, seed)
    for _ in range(epochs):
        total = 0.0
        for batch in batches:
            z = batch.sides[0].tokens.view(-1, 2, 3).mean(1)
            loss = F.cross_entropy(linear(z), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / 12)
    return losses


def test_fit_is_plain_adam_keeps_the_best_epoch_and_logs(tmp_path):
    torch.manual_seed(0)
    model = SentenceModel(MeanPooler(3), SingleHead(3, 2))
    batches = BatchLoader((np.arange(12),), (np.arange(12) % 2), Memory(), 5, CPU, 7)
    scores, seen = iter([0.1, float("nan"), 0.3, 0.3, 0.2]), []

    def evaluate():
        seen.append(model.head.linear.weight.detach().clone())
        return {"accuracy": next(scores)}

    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    keeper = EpochKeeper(list(model.parameters()), ("accuracy",), tracker, 5, verbose=False)
    fit(model, batches, cross_entropy, optimizer, ModelRecord(keeper, evaluate), FitOptions(5, 2, False))
    tracker.close()
    result = keeper.result
    assert [epoch.train_loss for epoch in result.history] == pytest.approx(reference(5, 0.05, 7), rel=1e-5)
    assert (result.best.epoch, result.last.epoch) == (3, 5)
    assert torch.equal(model.head.linear.weight, seen[2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/step" in line] == [2, 4, 6, 8, 10, 12, 14]
    assert [line["metrics/acc"] for line in lines if "metrics/acc" in line] == [0.1, None, 0.3, 0.3, 0.2]


def test_a_model_that_never_scores_keeps_its_last_epoch_and_says_so():
    model = SentenceModel(MeanPooler(3), SingleHead(3, 2))
    batches = BatchLoader((np.arange(12),), (np.arange(12) % 2), Memory(), 5, CPU, 7)

    class Silent:
        def log(self, values, step):
            assert step > 0

    optimizer = torch.optim.Adam(model.parameters())
    keeper = EpochKeeper(list(model.parameters()), ("spearman",), Silent(), 2, verbose=False)
    record = ModelRecord(keeper, lambda: {"spearman": math.nan})
    fit(model, batches, cross_entropy, optimizer, record, FitOptions(2, 10, False))
    assert keeper.result.best.epoch == 2
    said = selection_in_words(RunConfig().with_values(task="stsb", selection="heldout"), TASKS["stsb"], ["validation"], keeper.result)
    assert said == "last epoch: none has a number for spearman on the rows that select"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_take_torchs_steps_and_its_states(kind):
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    pairs = [(OPTIMIZERS[kind.__name__.lower()], ours), (kind, theirs)]
    optimizers = [make([{"params": [weight]}], lr=0.1, weight_decay=0.3, fused=True) for make, weight in pairs]
    for _ in range(5):
        gradient = torch.randn(7, generator=generator)
        for optimizer, weight in zip(optimizers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            (weight * gradient).sum().backward()
            optimizer.step()
        assert torch.equal(ours, theirs) and ours.requires_grad
        optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    assert isinstance(optimizers[0], kind)
