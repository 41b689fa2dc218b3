"""`glot cost`: what each way to a sentence classifier costs on this machine, poolers on stored states beside a backbone that is trained."""

import hashlib
import itertools
import math
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from glot.errors import ConfigError, GlotError, TrainingError
from glot.machine import cpu_flags
from glot.progress import Clock, counter, say, silence
from glot.report.published import published_costs
from glot.report.tables import csv_text, latex, markdown
from glot.settings.config import RunConfig, versions
from glot.settings.effects import has_gradient
from glot.states.backbone import AUTO, BackboneSource, pick_dtype
from glot.states.tokens import estimate_store, find_source
from glot.study.cost_arms import Arm
from glot.study.cost_quality import Quality, score_arms
from glot.study.stopwatch import PARTS, Trainer, pooling_parts, reading_parts, training_peak
from glot.training.finish import finish_head
from glot.training.folders import RESULT, make_folder
from glot.training.origin import CHECKOUT, find_commit
from glot.training.result_file import write_json
from glot.training.run import load_inputs, make_loaders, own_device, read_texts, resolve
from glot.training.switches import run_switches
from glot.words import counted

ROUNDS, STEPS, EVALUATED = 4, 4, 2
"""Rounds over all arms, steps of each arm in a round, and evaluation batches. The first round warms up and is not counted."""
MS, MIB = 1e3, 2**20


class Store(NamedTuple):
    """What storing costs: seconds to encode all texts, estimated from a sample; bytes on disk; tokens; texts."""

    seconds: float
    size: int
    tokens: int
    texts: int


class Cost(NamedTuple):
    """What one arm costs, in seconds, bytes and numbers; None where it has no such thing.

    Attributes:
        arm: its name.
        parameters: weights that training moves.
        steps: of an epoch.
        stored: seconds per training step on states from the store.
        live: seconds per training step with the backbone's pass.
        fit: seconds of a solver, in place of epochs.
        peak: bytes that a process takes at most while it trains, above an idle one.
        parts: seconds per text at inference, by `PARTS`.
        evaluated: texts of the evaluation rows.
    """

    arm: str
    parameters: int
    steps: int
    stored: float | None
    live: float | None
    fit: float | None
    peak: int
    parts: dict[str, float]
    evaluated: int

    @property
    def epoch(self) -> float:
        """Seconds of an epoch as an ordinary run has it: on the store, or with the backbone where that is trained; or of the solver."""
        step = self.live if self.stored is None else self.stored
        return self.fit if self.fit is not None else self.steps * (step or 0.0)

    @property
    def pooled(self) -> float:
        """Seconds per text behind the backbone."""
        return sum(seconds for name, seconds in self.parts.items() if name not in ("tokeniser", "backbone"))

    def first_score(self, store: Store) -> float:
        """Seconds to the first score without loading: texts are encoded where states are stored, one epoch, evaluation."""
        is_frozen = self.stored is not None or self.fit is not None
        per_text = self.pooled if is_frozen else self.pooled + self.parts["backbone"]
        tokenised = self.parts["tokeniser"] * store.texts  # once, by every run
        return tokenised + store.seconds * is_frozen + self.epoch + self.evaluated * per_text

    def break_even(self, store: Store, other: float | None) -> int | None:
        """Epochs, over all seeds and poolers, after which storing has paid for itself against `other` seconds per epoch; None = never."""
        if self.stored is None or other is None or other <= self.epoch:
            return None
        return math.ceil(store.seconds / (other - self.epoch))


@run_switches()
def run_cost(arms: list[Arm], seeds: list[int] | None, explicit: frozenset[str] = frozenset(), are_defaults: bool = False) -> str:
    """Measure the arms. Table and figure go into a folder under `--output_dir`; the table is returned.

    Args:
        arms: what is compared.
        seeds: of the runs that are scored; None = only time and memory are measured.
        explicit: flags that were given.
        are_defaults: nobody named the arms, so those that the rows cannot have are left out.

    Raises:
        ConfigError, DataError: wrong flags or rows, before anything is measured.
    """
    source = find_source(arms[0].config.backbone)
    if "backbone_dtype" not in explicit and any(arm.config.backbone.is_trained for arm in arms):
        arms = [Arm(arm.name, arm.config.with_values(backbone_dtype=AUTO)) for arm in arms]  # autocast where it is faster, for all of them
    arms = settle_arms(arms, source, are_defaults)
    base = arms[0].config
    what = f"{base.files.task_name or base.data.task}-{Path(source.name).name}"
    every = hashlib.sha256("".join(arm.config.fingerprint(arm.name) for arm in arms).encode()).hexdigest()
    name = base.output.run_name or f"cost-{what}-{every[:8]}"
    folder = Path(base.output.output_dir) / name
    if (folder / RESULT).exists() or (folder / "study.json").exists():
        raise ConfigError(f"--run_name={name}: {folder} holds a run or a study; choose another name")
    frozen = frozen_config(base)
    found: dict[str, Any] = dict(estimate_store(resolve(frozen, source)[0], source, read_texts(frozen, source)[1], own_device(frozen)))
    store = Store(3600 * found["hours"], found["bytes"], found["tokens"], found["sentences"])
    make_folder(folder.parent)
    costs = measure(arms)
    make_folder(folder)
    quality = [] if seeds is None else score_arms(arms, seeds, folder, explicit)
    return write_cost(folder, base, costs, store, quality)


def settle_arms(arms: list[Arm], source: BackboneSource, are_defaults: bool) -> list[Arm]:
    """The arms with one precision for all of them, and without default ones that the rows cannot have.

    Raises:
        ConfigError, DataError: see `read_texts`; the arm is named.
    """
    config = arms[0].config.checked()
    read_texts(frozen_config(config), source)  # a mistake in the rows is no arm's
    kept, problems = [], list[str]()
    for arm in arms:
        try:
            read_texts(arm.config.checked(), source)
        except GlotError as error:
            problems += [f"--arms={arm.name}: {problem}" for problem in error.problems]
        else:
            kept.append(arm)
    if problems and not (are_defaults and kept):
        raise ConfigError(*problems)
    for problem in problems:
        say(f"left out, {problem.removeprefix('--')}")
    if config.backbone.backbone_dtype == AUTO:
        picked, line = pick_dtype(source, own_device(config), any(arm.config.backbone.is_trained for arm in kept))
        say(line)
        kept = [Arm(arm.name, arm.config.with_values(backbone_dtype=picked)) for arm in kept]
    return kept


def frozen_config(base: RunConfig) -> RunConfig:
    """A run of these flags on a frozen backbone; which pooler does not count."""
    return base.with_values(pooling_method="adapool", head="trained", finetune_backbone="0", precompute_hidden_states=True)


def measure(arms: list[Arm]) -> list[Cost]:
    """All arms in one process, in alternating order; on a CPU their peaks of memory in a process each."""
    frozen = frozen_config(arms[0].config)
    with silence():  # what is said of the rows is said once
        trained = {
            arm.name: Trainer(arm.config, load_inputs(arm.config)) for arm in arms if arm.config.backbone.is_trained
        }  # may be refused
        live = load_inputs(frozen.with_values(precompute_hidden_states=False))
    stored = load_inputs(frozen)
    trainers = {arm.name: trained.get(arm.name) or Trainer(arm.config, stored) for arm in arms}
    with_backbone = {
        arm.name: trainers[arm.name] if arm.config.backbone.is_trained else Trainer(arm.config, live)
        for arm in arms
        if has_gradient(arm.config)
    }
    on_store = {name: trainers[name] for name in with_backbone if not trainers[name].inputs.config.backbone.is_trained}
    fits = {name: _seconds_to_fit(trainer) for name, trainer in trainers.items()}
    _alternate([*on_store.values(), *with_backbone.values()])
    reading = reading_parts(live, EVALUATED)
    batches = list(itertools.islice(make_loaders(live).evaluation, EVALUATED))
    peaks = {}
    with counter("cost: memory", "arm", len(arms), enabled=True) as bar:
        for arm in arms:
            try:
                peaks[arm.name] = training_peak(arm.config, STEPS)
            except (BrokenProcessPool, EOFError) as error:
                raise TrainingError(
                    f"--arms={arm.name}: the process that measures its memory was killed, perhaps because memory was used up; "
                    "set a smaller --batch_size or --max_length, or leave the arm out"
                ) from error
            bar.update()
    parts = {name: reading | pooling_parts(trainer, batches) for name, trainer in trainers.items()}
    return [
        _cost_of(name, trainer, (on_store.get(name), with_backbone.get(name)), fits[name], parts[name], peaks[name])
        for name, trainer in trainers.items()
    ]


def _alternate(trainers: list[Trainer]) -> None:
    """Steps of all trainers in turn; those of the first round are forgotten."""
    distinct = list({id(trainer): trainer for trainer in trainers}.values())
    with counter("cost: steps", "round", ROUNDS, enabled=True) as bar:
        for again in range(ROUNDS):
            for trainer in distinct:
                trainer.train(STEPS)
                if again == 0:
                    trainer.batches.seconds.clear()
            bar.update()


def _seconds_to_fit(trainer: Trainer) -> float | None:
    """Seconds of the solver of a fitted head; None of a trained one."""
    config, clock = trainer.inputs.config, Clock("train")
    if config.head.head == "trained":
        return None
    finish_head(config, trainer.model, trainer.loaders, clock)
    return clock.seconds["train"]


def _cost_of(
    name: str, trainer: Trainer, steps: tuple[Trainer | None, Trainer | None], fit: float | None, parts: dict[str, float], peak: int
) -> Cost:
    on_store, with_backbone = steps
    evaluated = len(trainer.inputs.data.reported[0]) * trainer.inputs.task.num_texts
    return Cost(
        name,
        trainer.parameters if fit is None else trainer.model.trainable_params,  # of the head that was fitted
        trainer.steps,
        median(on_store.batches.seconds) if on_store else None,
        median(with_backbone.batches.seconds) if with_backbone else None,
        fit,
        peak,
        parts,
        evaluated,
    )


def write_cost(folder: Path, base: RunConfig, costs: list[Cost], store: Store, quality: list[Quality]) -> str:
    """cost.md, cost.csv, cost.tex, cost.json, cost.png and cost.pdf; returns what cost.md says."""
    from glot.report.cost_plots import plot_cost, plot_score_by_seconds  # matplotlib

    training, inference = training_table(costs, store, quality), inference_table(costs)
    parts = [_title(base, store, costs), markdown(*training), _notes(), markdown(*inference), _ratios(costs)]
    known = published_costs(base.data.task) if quality else None
    parts += [] if known is None else [f"The paper's figures, on its own backbones (arXiv 2603.03389):\n\n{markdown(*known)}"]
    text = "\n\n".join(parts)
    (folder / "cost.md").write_text(text + "\n", encoding="utf-8")
    (folder / "cost.csv").write_text(csv_text(*training) + "\n", encoding="utf-8")
    (folder / "inference.csv").write_text(csv_text(*inference) + "\n", encoding="utf-8")
    (folder / "cost.tex").write_text(f"{latex(*training)}\n{latex(*inference)}", encoding="utf-8")
    record = {
        "machine": machine(own_device(base)),
        "backbone_dtype": base.backbone.backbone_dtype,
        "versions": versions(),
        "commit": find_commit(CHECKOUT),
        "store": store._asdict(),
    }
    write_json(folder / "cost.json", record | {"arms": [cost._asdict() for cost in costs], "quality": [row.to_dict() for row in quality]})
    path = folder / "cost.png"
    if quality:
        starts = {cost.arm: store.seconds * (cost.stored is not None or cost.fit is not None) for cost in costs}
        plot_score_by_seconds([(row.arm, row.metric, row.curve(starts[row.arm])) for row in quality], path)
    else:
        plot_cost([(cost.arm, cost.stored, cost.live) for cost in costs], path)
    return f"{text}\n\nfigure: {path}\ntable:  {folder / 'cost.md'}"


def machine(device: torch.device) -> str:
    """Cores, threads and flags of the CPU, or the accelerator's name."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {' '.join(cpu_flags()) or 'no flags known'}"


def _title(base: RunConfig, store: Store, costs: list[Cost]) -> str:
    task, backbone = base.files.task_name or base.data.task, base.backbone.model_name_or_path
    length = "no cut" if base.backbone.adaptive_length else f"{base.backbone.max_length} tokens at most"
    return (
        f"Cost of {task} on {backbone}: {counted(costs[0].steps, 'step')} of {counted(base.train.batch_size, 'row')} per epoch, {length}, "
        f"backbone in {base.backbone.backbone_dtype}; {machine(own_device(base))}.\n"
        f"Storing the states of {counted(store.texts, 'text')} ({counted(store.tokens, 'token')}) takes {_seconds(store.seconds)} "
        f"and {store.size / MIB:.0f} MiB ({base.store.store_dtype}); both from a sample of the texts."
    )


def training_table(costs: list[Cost], store: Store, quality: list[Quality]) -> tuple[list[str], list[list[str]]]:
    """Arms, and what training them costs."""
    lora = next((cost.epoch for cost in costs if cost.arm == "lora"), None)
    header = ["arm", "weights", "step, stored", "step, with backbone", "epoch", "peak memory", "first score", "pays after", "against lora"]
    header += [f"{quality[0].metric}, {quality[0].spread.n} seed{'s' * (quality[0].spread.n > 1)}"] if quality else []
    scores = {row.arm: row for row in quality}
    rows = []
    for cost in costs:
        live_epoch = None if cost.live is None else cost.steps * cost.live
        row = [cost.arm, f"{cost.parameters:,}", _ms(cost.stored), _ms(cost.live), _seconds(cost.epoch), f"{cost.peak / MIB:.0f} MiB"]
        row += [_seconds(cost.first_score(store)), _epochs(cost.break_even(store, live_epoch)), _epochs(cost.break_even(store, lora))]
        rows.append(row + ([scores[cost.arm].in_words()] if quality else []))
    return header, rows


def inference_table(costs: list[Cost]) -> tuple[list[str], list[list[str]]]:
    """Arms, and the milliseconds per text of each part of inference."""
    rows = [[cost.arm, *(_per_text(cost.parts[name]) for name in PARTS), _per_text(sum(cost.parts.values()))] for cost in costs]
    return ["ms per text", *PARTS, "sum"], rows


def _notes() -> str:
    return (
        "step: one training step, median of 12, the arms in turn.\n"
        "epoch: as an ordinary run trains, on stored states, or with the backbone where that is trained; of a probe the solver's time.\n"
        "peak memory: of a process that trains, above an idle one; on a card what its allocator gives out.\n"
        "first score: encoding where states are stored, one epoch, evaluation; loading is left out.\n"
        "pays after: epochs, over all seeds and poolers, after which storing has cost less than the backbone's pass in every step.\n"
        "against lora: the same, beside training lora for as many epochs."
    )


def _ratios(costs: list[Cost]) -> str:
    """How many times lora and full fine-tuning exceed each pooler, by each definition of cost."""
    by_name = {cost.arm: cost for cost in costs}
    lines = []
    for dear in ("lora", "full"):
        for cost in costs:
            if dear in by_name and cost.stored is not None and cost.live is not None:
                other = by_name[dear]
                counts = f"{_times(other.parameters / cost.parameters)} the weights"
                step = other.live or 0.0
                steps = f"{_times(step / cost.stored)} its step on stored states, {_times(step / cost.live)} that with the backbone's pass"
                lines.append(f"{dear} takes {counts} of {cost.arm}, {steps}.")
    return "\n".join(lines)


def _times(ratio: float) -> str:
    """Two digits: 1.2 times, 31 times, 0.049 times."""
    return f"{float(f'{ratio:.2g}'):,.10g} times"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{MS * value:.1f} ms"


def _per_text(value: float) -> str:
    return "-" if value == 0 else f"{MS * value:.3f}"


def _epochs(value: int | None) -> str:
    return "-" if value is None else f"{value:,} epoch{'s' * (value != 1)}"
