"""The splits of a run as batches, and the scores of a model on them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from glot.checkpoint import write_predictions
from glot.config import RunConfig
from glot.evaluate import predict, score
from glot.loader import BatchLoader, TextIndex
from glot.model import SentenceModel
from glot.tasks import TaskData, TaskSpec, targets
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

    @property
    def train(self) -> BatchLoader:
        """Shuffled by the seed, anew in each epoch."""
        return self._loader(self.data.train, self.config.train.batch_size, self.config.train.seed)

    def score(self, model: SentenceModel, splits: list[Examples], predictions: Path | None = None) -> dict[str, float]:
        """Metrics over splits, each with its suffix; the first split's predictions go to a file where one is named."""
        scores = {}
        for split in splits:
            outputs = predict(model, self._loader(split, self.config.train.eval_batch_size, None))
            suffix = self.task.eval_splits.get(split.split, "") if len(splits) > 1 else ""
            scores |= score(outputs, targets(self.task, split, self.config.data.label_scale), self.task.metrics, suffix)
            if predictions is not None and split is splits[0]:
                write_predictions(predictions, split.labels, outputs)
        return scores

    def _loader(self, split: Examples, batch_size: int, seed: int | None) -> BatchLoader:
        labels = targets(self.task, split, self.config.data.label_scale)
        return BatchLoader(self.index.sides(split), labels, self.tokens, batch_size, self.device, seed, self.config.train.num_workers)
