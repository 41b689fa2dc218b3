"""What a run costs, measured: training steps, inference by its parts, and the peak memory of a process that trains."""

import gc
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from glot.data.tasks import training_loss
from glot.nn.cross import CrossGraph
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.heads import SingleHead
from glot.nn.layers import LayeredPooler
from glot.nn.losses import cross_entropy
from glot.nn.model import SentenceModel
from glot.nn.poolers.crossglot import CrossGlotPooler
from glot.nn.poolers.glot import GlotPooler
from glot.progress import Clock
from glot.settings.config import RunConfig
from glot.states.backbone import LiveTokens
from glot.states.tokens import find_source
from glot.training.finish import finish_head
from glot.training.optimizer import fit_options, make_optimizer
from glot.training.run import Inputs, load_inputs, make_loaders, make_model, own_device
from glot.training.switches import run_switches
from glot.training.train import FitOptions, fit
from glot.types import Batch, TokenBatch

PARTS = ("tokeniser", "backbone", "graph", "layers", "readout", "head")
"""Parts of inference, in the order in which a text passes them."""
REPEATS = 5
WARM_UP = 64
"""Width and length of the step that a process does before its memory is read: large enough to take the code that larger steps take."""


class NoRecord:
    """A `train.Record` that keeps nothing: weights stay where the steps left them."""

    def begin(self, state: Any) -> None:
        """Nothing."""

    def state(self) -> None:
        """Nothing."""

    def log_step(self, step: int, loss: Tensor) -> None:
        """Nothing."""

    def end_epoch(self, epoch: int, step: int, loss: Tensor, clock: Any) -> None:
        """Nothing."""

    def restore(self) -> None:
        """Nothing."""

    def is_over(self) -> bool:
        """Never."""
        return False


def wait(device: torch.device) -> float:
    """The time, when all that was asked of an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass
class TimedBatches:
    """The next batches of a loader, from epoch to epoch; `seconds` holds, per batch, the time to fetch it and to train on it."""

    loader: Any
    device: torch.device

    def __post_init__(self) -> None:
        self.seconds: list[float] = []
        self._endless = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self._count = 0

    def take(self, count: int) -> "TimedBatches":
        """Itself, for the next `count` batches."""
        self._count = count
        return self

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._count):
            start = wait(self.device)
            yield next(self._endless)
            self.seconds.append(wait(self.device) - start)


class Trainer:
    """A run that is ready to train, a few steps at a time.

    Args:
        config: of the run.
        inputs: what it reads.

    Examples:
        >>> trainer = Trainer(config, load_inputs(config))
        >>> trainer.train(4)
        >>> trainer.batches.seconds
    """

    def __init__(self, config: RunConfig, inputs: Inputs) -> None:
        settled = inputs.config  # the backbone's part of it is resolved
        own = config.with_values(hidden_layer=settled.backbone.hidden_layer, decoder_cls_last_token=settled.pooler.decoder_cls_last_token)
        self.inputs = replace(inputs, config=own)
        self.model = make_model(own, self.inputs)
        self.loaders = make_loaders(self.inputs)
        self.optimizer = make_optimizer(own, self.model, inputs.tokens) if self.parameters else None
        self.steps = len(self.loaders.train)
        self.batches = TimedBatches(self.loaders.train, inputs.device)

    @property
    def parameters(self) -> int:
        """Number of weights that training moves: pooler, head, backbone or adapter."""
        return self.model.trainable_params + sum(weight.numel() for weight in self.inputs.tokens.trained)

    def train(self, count: int) -> None:
        """Some steps, by the training loop of every run."""
        assert self.optimizer is not None
        config, task = self.inputs.config, self.inputs.task
        options = replace(fit_options(config, task, self.optimizer, max(self.steps, count)), epochs=1, verbose=False, log_every=1 << 30)
        loss = training_loss(task, config.to_dict())
        fit(self.model, self.batches.take(count), loss, self.optimizer, NoRecord(), options)


def training_peak(config: RunConfig, steps: int) -> int:
    """Bytes that a process takes at most while it trains, above what it took when its libraries were loaded.

    In a process of its own. On a CUDA card it is what the allocator gave out at most, above what it had given out before.
    """
    device = own_device(config)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        _train_some(config, steps)
        return torch.cuda.max_memory_allocated(device) - held
    with ProcessPoolExecutor(1, _fresh_processes()) as pool:
        return pool.submit(_peak_of, config, steps, torch.get_num_threads()).result()


def _fresh_processes() -> BaseContext:
    """Of processes that have loaded the libraries and done nothing else.

    They are forked from a server that only imports, so that each need not import for seconds. Where the system has none they import, and
    beside an accelerator, which a process cannot take whose parent has looked for it.
    """
    if "forkserver" not in get_all_start_methods() or torch.accelerator.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _peak_of(config: RunConfig, steps: int, threads: int) -> int:
    from glot import recipes

    recipes.quiet_libraries()
    torch.set_num_threads(threads)
    with run_switches():
        return _peak_within(config, steps)


def _peak_within(config: RunConfig, steps: int) -> int:
    _load_libraries(config)
    idle = _memory("VmRSS")
    _forget_peak()
    _train_some(config, steps)
    return max(0, _memory("VmHWM") - idle)


def _train_some(config: RunConfig, steps: int) -> None:
    """Load what a run reads, and train it for some steps or fit its solver."""
    quiet = config.with_values(verbose=False)
    trainer = Trainer(quiet, load_inputs(quiet))
    if trainer.optimizer is None:
        finish_head(trainer.inputs.config, trainer.model, trainer.loaders, Clock("train", "evaluate"))
    else:
        trainer.train(steps)


def _load_libraries(config: RunConfig) -> None:
    """Import what training imports on the way, and run the code of a step, so that both count as part of an idle process."""
    pooler, width = GlotPooler(WARM_UP, WARM_UP, 1, "gat", "cat", GraphRule()), 2 * WARM_UP
    model = SentenceModel(pooler, SingleHead(width, 2))
    tokens = TokenBatch.from_lengths(torch.randn(2 * WARM_UP, WARM_UP), torch.tensor([WARM_UP, WARM_UP]))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    fit(model, [Batch((tokens,), torch.tensor([0, 1]))], cross_entropy, optimizer, NoRecord(), FitOptions(1, verbose=False))
    if config.backbone.is_trained:
        find_source(config.backbone).import_code()


def _memory(field: str) -> int:
    """Bytes of this process by a field of Linux's account; elsewhere its peak so far."""
    account = Path("/proc/self/status")
    if not account.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in account.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """The largest size so far is forgotten, where the system can."""
    account = Path("/proc/self/clear_refs")
    if account.is_file():
        account.write_text("5")


def reading_parts(live: Inputs, count: int) -> dict[str, float]:
    """Seconds per text of tokeniser and backbone, over as many texts as `count` evaluation batches hold; of repetitions the median."""
    assert isinstance(live.tokens, LiveTokens)
    backbone, size = live.tokens.backbone, live.config.train.eval_batch_size
    words, prompts = zip(*_first_texts(live, count * size), strict=True)
    ids, encoded = backbone.tokenise(words, prompts), 0.0
    with torch.inference_mode():
        for start in range(0, len(ids), size):
            encoded += _median_time(partial(backbone.encode, ids[start : start + size]), live.device)
    read = _median_time(lambda: backbone.tokenise(words, prompts), live.device)
    return {"tokeniser": read / len(words), "backbone": encoded / len(words)}


@torch.inference_mode()
def pooling_parts(trainer: Trainer, batches: list[Batch]) -> dict[str, float]:
    """Seconds per text of graph, layers, readout and head, over some batches; of repetitions the median."""
    model, texts = trainer.model.eval(), sum(len(side) for batch in batches for side in batch.sides)
    seconds = dict.fromkeys(PARTS[2:], 0.0)
    for batch in batches:
        for name, value in _model_parts(model, batch, trainer.inputs.device).items():
            seconds[name] += value
    return {name: value / texts for name, value in seconds.items()}


def _first_texts(inputs: Inputs, count: int) -> list[tuple[str, str]]:
    """So many of the run's texts with their prompts, again from the first where they are fewer."""
    drawn = [(text, inputs.texts.prompt(place)) for place, text in enumerate(itertools.islice(inputs.texts, count))]
    return list(itertools.islice(itertools.cycle(drawn), count))


def _model_parts(model: SentenceModel, batch: Batch, device: torch.device) -> dict[str, float]:
    """Seconds of graph, layers, readout and head on a batch."""
    sides = [batch.sides] if model.pooler.sides == 2 else [(side,) for side in batch.sides]
    graph = layers = 0.0
    for side in sides:
        built, passed = _graph_and_layers(model.pooler, side, device)
        graph, layers = graph + built, layers + passed
    pooled = _median_time(lambda: model.vectors(batch), device)
    vectors = model.vectors(batch)
    head = _median_time(lambda: model.head(*vectors), device)
    return {"graph": graph, "layers": layers, "readout": max(0.0, pooled - graph - layers), "head": head}


def _graph_and_layers(pooler: nn.Module, side: tuple[TokenBatch, ...], device: torch.device) -> tuple[float, float]:
    """Seconds to build the token graph, and to pass the layers; (0, 0) of a pooler without.

    A graph is built when the first layer asks for it, so the layers pass twice: over a graph that is new, and over one that is built.
    """
    if isinstance(pooler, LayeredPooler):
        mixed = [pooler.mixed(part) for part in side]
        found = [_graph_and_layers(own, tuple(part[at] for part in mixed), device) for at, own in enumerate(pooler.poolers)]
        return sum(built for built, _ in found), sum(passed for _, passed in found)
    if isinstance(pooler, GlotPooler) and len(pooler.convs):
        return built_and_passed(lambda: TokenGraph(side[0], pooler.rule), pooler.pass_layers, device)
    if isinstance(pooler, CrossGlotPooler):
        return built_and_passed(lambda: CrossGraph(side[0], side[1], pooler.rule), pooler.states, device)
    return 0.0, 0.0


def built_and_passed(make: Callable[[], Any], run: Callable[[Any], object], device: torch.device) -> tuple[float, float]:
    """Median seconds to make a graph, and to run layers over one that is made."""
    built, passed = [], []
    for _ in range(REPEATS):
        start = wait(device)
        graph = make()
        run(graph)
        middle = wait(device)
        run(graph)
        end = wait(device)
        passed.append(end - middle)
        built.append(max(0.0, (middle - start) - (end - middle)))
    return median(built), median(passed)


def _median_time(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(REPEATS):
        start = wait(device)
        work()
        found.append(wait(device) - start)
    return median(found)
