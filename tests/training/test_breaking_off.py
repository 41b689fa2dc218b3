"""A training that is no longer finite stops, and what was good is kept."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from glot.cli import main
from glot.errors import TrainingError
from glot.nn.losses import cross_entropy
from glot.training.checkpoint import load_run
from glot.training.record import EpochKeeper, ModelRecord
from glot.training.train import FitOptions, fit
from glot.types import Batch, TokenBatch

CPU = torch.device("cpu")


def fails(capsys, words: list[str]) -> list[str]:
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err.splitlines()


class Bomb(nn.Module):
    """Scores whose loss is no number from a step on."""

    def __init__(self, from_step: int) -> None:
        super().__init__()
        self.weight, self.steps, self.from_step = nn.Parameter(torch.ones(1)), 0, from_step

    def forward(self, batch: Batch) -> torch.Tensor:
        self.steps += 1
        return self.weight * (torch.inf if self.steps >= self.from_step else 1.0)


@pytest.mark.parametrize(("from_step", "kept"), [(2, None), (5, 1)])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_the_best_epoch_is_kept(from_step, kept):
    states = TokenBatch.from_lengths(torch.zeros(1, 2), torch.tensor([1]))
    model = Bomb(from_step)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = type("Silent", (), {"log": lambda *_: None})()
    after = []

    def evaluate():
        after.append(float(model.weight.detach()))
        return {"accuracy": -float(len(after))}

    keeper = EpochKeeper(list(model.parameters()), ("accuracy",), tracker, 9, verbose=False)
    record, options = ModelRecord(keeper, evaluate), FitOptions(epochs=9, log_every=10, verbose=False)
    with pytest.raises(TrainingError, match=f"step {from_step}: the loss is not finite") as caught:
        fit(model, [Batch((states,), None)] * 3, lambda output, _: output.sum(), optimizer, record, options)
    assert caught.value.kept == kept
    if kept:
        assert float(model.weight.detach()) == after[0]


@pytest.mark.parametrize("good_steps", [1, 4])
def test_a_run_that_breaks_off_keeps_its_last_good_weights_and_no_result(good_steps, tiny_flags, tmp_path, monkeypatch, capsys):
    calls = []

    def explode(output, labels):
        calls.append(1)
        return cross_entropy(output, labels) * (1 if len(calls) <= good_steps else torch.nan)

    monkeypatch.setattr("glot.recipes.training_loss", lambda task, flags: explode)
    (line,) = fails(capsys, [*tiny_flags, "--pooling_method=adapool", "--run_name=run", "--epochs=9"])  # two steps per epoch
    run = tmp_path / "runs/run"
    assert f"step {good_steps + 1}: the loss is not finite; try a smaller --lr; " in line and not (run / "result.json").exists()
    if good_steps == 1:
        assert line.endswith("no epoch was finished") and not (run / "model.safetensors").exists()
    else:
        assert "the weights of epoch " in line and str(run / "model.safetensors") in line
        assert all(bool(torch.isfinite(value).all()) for value in load_file(run / "model.safetensors").values())
        assert load_run(run)[0].pooler.in_dim == 16
