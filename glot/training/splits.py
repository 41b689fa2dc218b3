"""The splits of a run as batches, and the scores of a model on them: labelled rows, and pairs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glot.data.loader import BatchLoader, Readers, TextIndex
from glot.data.pair_rows import PairData, PairRows
from glot.data.tasks import TaskData, TaskSpec, targets, training_loss
from glot.distributed import ALONE, Processes
from glot.nn.heads import FittedHead
from glot.nn.model import SentenceModel
from glot.nn.stack import StackedModel
from glot.settings.config import RunConfig
from glot.training.evaluate import predict, rank_positives, score
from glot.training.metrics import chance_ranks, floors
from glot.training.predictions import write_predictions, write_ranks
from glot.types import Examples, TokenSource


@dataclass(frozen=True)
class Loaders:
    """The batches of a run's splits."""

    config: RunConfig
    task: TaskSpec
    data: TaskData
    index: TextIndex
    tokens: TokenSource
    device: torch.device
    team: Processes = ALONE

    @property
    def train(self) -> BatchLoader:
        """Shuffled by the order seed, anew in each epoch."""
        return self._loader(self.data.train, self.config.train.batch_size, self.config.order_seed, self.team)

    @property
    def evaluation(self) -> BatchLoader:
        """The first reported split, in its order."""
        return self._loader(self.data.reported[0], self.config.train.eval_batch_size)

    @property
    def floor(self) -> dict[str, float]:
        """What an answer that does not look at the text scores, under the names of the scores."""
        known: dict[str, float] = {}
        for split in self.data.reported:
            found, suffix = floors(split.labels, bool(self.task.labels.names)), self._suffix(split, len(self.data.reported) > 1)
            known |= {f"{name}{suffix}": found[name] for name in self.task.metrics}
        return known

    def watch(self, model: SentenceModel) -> dict[str, float]:
        """Metrics on what every epoch is scored on."""
        return self._score(model, self.data.watched, None)

    def report(self, model: SentenceModel, predictions: Path | None = None) -> dict[str, float]:
        """Metrics on what is reported in the end; the first split's predictions go to a file where one is named."""
        return self._score(model, self.data.reported, predictions)

    @torch.no_grad()
    def features(self, model: SentenceModel, head: FittedHead) -> tuple[np.ndarray, np.ndarray]:
        """Features of `head` (S, F) and labels (S,) of the training rows, as the model pools them now."""
        model.eval()
        loader = self._loader(self.data.train, self.config.train.eval_batch_size)
        rows = [head.features(*model.vectors(batch)).float().cpu() for batch in loader]
        return torch.cat(rows).numpy(), targets(self.task, self.data.train, self.config.data.label_scale)

    def heldout_outputs(self, model: SentenceModel) -> tuple[np.ndarray, np.ndarray]:
        """Outputs and labels of the rows that were held out of training."""
        (split,) = self.data.watched
        outputs = predict(model, self._loader(split, self.config.train.eval_batch_size))
        return outputs, targets(self.task, split, self.config.data.label_scale)

    def watch_stack(self, stack: StackedModel) -> list[dict[str, float]]:
        """`watch` for each of several stacked models."""
        return self._score_stack(stack, self.data.watched, [])

    def report_stack(self, stack: StackedModel, predictions: list[Path]) -> list[dict[str, float]]:
        """`report` for each of several stacked models, with a file for each."""
        return self._score_stack(stack, self.data.reported, predictions)

    def _score(self, model: SentenceModel, splits: list[Examples], predictions: Path | None) -> dict[str, float]:
        """Metrics over splits, each with its suffix."""
        scores: dict[str, float] = {}
        for split in splits:
            outputs = predict(model, self._loader(split, self.config.train.eval_batch_size))
            scores |= self._score_split(split, outputs, len(splits) > 1)
            if predictions is not None and split is splits[0]:
                write_predictions(predictions, split, outputs, self.task.labels)
        return scores

    def _score_stack(self, stack: StackedModel, splits: list[Examples], predictions: list[Path]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in range(len(stack))]
        for split in splits:
            outputs = predict(stack, self._loader(split, self.config.train.eval_batch_size), rows=1)
            for own, output in zip(found, outputs, strict=True):
                own |= self._score_split(split, output, len(splits) > 1)
            for path, output in zip(predictions, outputs, strict=False):
                if split is splits[0]:
                    write_predictions(path, split, output, self.task.labels)
        return found

    def _score_split(self, split: Examples, outputs: np.ndarray, with_suffix: bool) -> dict[str, float]:
        return score(outputs, targets(self.task, split, self.config.data.label_scale), self.task.metrics, self._suffix(split, with_suffix))

    def _suffix(self, split: Examples, is_one_of_many: bool) -> str:
        """What follows a metric's name on this split."""
        return self.task.eval_splits.get(split.split, "") if is_one_of_many else ""

    def _loader(self, split: Examples, batch_size: int, seed: int | None = None, team: Processes = ALONE) -> BatchLoader:
        labels = targets(self.task, split, self.config.data.label_scale)
        sides, workers = self.index.sides(split), self.config.train.num_workers
        return BatchLoader(sides, labels, self.tokens, batch_size, self.device, seed, Readers(workers, team))


@dataclass(frozen=True)
class PairLoaders:
    """The batches of contrastive training: no text twice in a batch. The counterpart of `Loaders`."""

    config: RunConfig
    task: TaskSpec
    data: PairData
    tokens: TokenSource
    device: torch.device
    team: Processes = ALONE

    @property
    def train(self) -> BatchLoader:
        """Shuffled by the order seed, anew in each epoch."""
        return self._loader(self.data.train, self.config.order_seed, self.team)

    @property
    def evaluation(self) -> BatchLoader:
        """The held-out slice, in its order."""
        return self._loader(self.data.heldout)

    @property
    def floor(self) -> dict[str, float]:
        """What a random order scores."""
        return chance_ranks(len(np.unique(self.data.heldout.sides[1])))

    def watch(self, model: SentenceModel) -> dict[str, float]:
        """Retrieval metrics of the held-out slice."""
        return self.report(model)

    def report(self, model: SentenceModel, predictions: Path | None = None) -> dict[str, float]:
        """The same; the slice's ranks go to a file where one is named."""
        split, loss = self.data.heldout, training_loss(self.task, self.config.to_dict())
        scores, ranks = rank_positives(model, self._loader(split), split.sides[1], loss)
        if predictions is not None:
            write_ranks(predictions, ranks)
        return scores

    def _loader(self, split: PairRows, seed: int | None = None, team: Processes = ALONE) -> BatchLoader:
        train = self.config.train
        return BatchLoader(split.sides, None, self.tokens, train.batch_size, self.device, seed, Readers(train.num_workers, team))
