"""One run: what it reads, its model and folder, and what it leaves behind. The steps between stand in `glot.recipes`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glot.data import PairFile
from glot.data.custom import CUSTOM, CustomSpec, own_files, split_names
from glot.data.loader import BatchLoader, TextIndex
from glot.data.pair_rows import PairData, PairSpec, load_pair_data
from glot.data.tables import mirror_files
from glot.data.tasks import TASKS, TaskData, TaskSpec, load_custom_data, load_task_data
from glot.distributed import Processes, processes
from glot.errors import GlotError, TrainingError
from glot.files import ChangedAt, changed_at
from glot.nn.model import InBfloat16, SentenceModel
from glot.nn.poolers import own_codes
from glot.nn.poolers.pairs import ALL_CLASSES
from glot.progress import Clock, say, warn
from glot.prompts import UsedPrompts
from glot.settings.choices import short_name
from glot.settings.config import RunConfig, versions
from glot.settings.data_sections import DataConfig, StressConfig
from glot.settings.effects import CONDITIONS
from glot.states.backbone import Backbone, BackboneSource, count_weights, need_adapters, pick_device, recall_facts
from glot.states.tokens import find_prompts, find_source, open_tokens, prompt_notes, settle_dtype, used_prompts
from glot.training.checkpoint import allow_as_others, build_model, save_model, write_config
from glot.training.code import code_hash
from glot.training.finish import check_head, check_head_rows
from glot.training.folders import RESULT, FolderLock, open_run_folder, read_mark
from glot.training.layers import layer_facts, standardise
from glot.training.origin import origin
from glot.training.probe import PROBE_WIDTH, probe_pooler
from glot.training.record import EpochKeeper
from glot.training.result import Result, make_result, selection_facts, selection_in_words
from glot.training.result_file import BACKBONE, WEIGHTS, read_result, write_result
from glot.training.resume import Moving, TrainingState, read_state
from glot.training.splits import Loaders, PairLoaders
from glot.training.tracking import make_tracker, resolve_report_to
from glot.training.train import FitOptions, Record
from glot.trust import remember_trusted
from glot.types import FitResult, Texts, TokenSource, Tracker
from glot.words import counted

WARNING = "warning: "
"""How a remark begins that is made whatever `--verbose` says."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads; runs that differ in their seeds share it. `config` is settled."""

    config: RunConfig
    source: BackboneSource
    data: TaskData | PairData
    texts: Texts
    tokens: TokenSource
    device: torch.device
    report_to: str
    notes: list[str]
    clock: Clock
    team: Processes

    @property
    def task(self) -> TaskSpec:
        """The row of the run's task."""
        return self.data.task


def load_inputs(config: RunConfig) -> Inputs:
    """Rows, and the token states of their texts: encoded now, if they are not stored yet."""
    config = config.checked()
    team, clock = processes(), Clock("load", "encode", "train", "evaluate")
    report_to, device = resolve_report_to(config.output.report_to), own_device(config, team)
    if config.backbone.finetune_backbone == "lora":
        need_adapters()
    with clock.phase("load"):
        source = find_source(config.backbone)
        config, notes = resolve(config, source)
        data, texts = read_texts(config, source)
    for note in data.notes:
        say(note, config.output.verbose or note.startswith(WARNING))
    if own_codes(config.pooler, config.graph):
        probe_pooler(config, source.width_claim or PROBE_WIDTH)
    tokens = open_tokens(config, source, texts, device, clock, team)
    return Inputs(config, source, data, texts, tokens, device, report_to, notes, clock, team)


@dataclass(frozen=True)
class Run:
    """A run that is ready to train: settled configuration, fresh model, folder."""

    config: RunConfig
    model: SentenceModel
    folder: Path
    tracker: Tracker
    fingerprint: str
    lock: FolderLock


def open_run(config: RunConfig, inputs: Inputs) -> Run:
    """Initialise the model by the seed, make the folder, write down what is going to happen.

    With `--resume=1` the folder may be that of an earlier process which did not finish this very run.
    """
    fingerprint = run_fingerprint(config, inputs.source, inputs.data)
    model = make_model(config, inputs)
    root, overwrite = Path(config.output.output_dir), config.output.overwrite
    folder, lock = open_run_folder(root, run_name(config, fingerprint), overwrite, fingerprint, config.store.resume)
    source, tokens = inputs.source, inputs.tokens
    facts = {"hidden_size": tokens.hidden_size, "backbone": source.identity, "folder": folder_of(source), "data": inputs.data.sha256}
    facts["prompts"] = find_prompts(config.backbone, source).to_dict()
    facts["labels"] = inputs.task.labels.to_dict()
    codes = own_codes(config.pooler, config.graph)
    if codes:
        facts["sources"] = {name: code.source for name, code in codes.items() if code.module is None}
        for name, code in codes.items():
            remember_trusted(code.sha256, name)
    write_config(folder, config, facts)
    rows = f"{counted(len(inputs.data.train), 'training row')}, scored on "
    rows += ", ".join(f"{len(split):,} {split.split}" for split in inputs.data.watched)
    weights = model.trainable_params + sum(weight.numel() for weight in tokens.trained)
    say(f"{folder}: {config.pooler.pooling_method}, {weights:,} parameters, {rows}", config.output.verbose)
    tracker = make_tracker(inputs.report_to, folder)
    tracker.start(config.to_dict())
    return Run(config, model, folder, tracker, fingerprint, lock)


def make_model(config: RunConfig, inputs: Inputs) -> SentenceModel:
    """A fresh model, initialised by the seed."""
    torch.manual_seed(config.train.seed)
    model = build_model(config, inputs.task, inputs.tokens.hidden_size)
    standardise(model.pooler, inputs.data, inputs.texts, inputs.tokens, config.data_seed)
    return model.to(inputs.device)


def make_state(
    runs: list[Run],
    inputs: Inputs,
    moved: list[Tensor],
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    record: Record,
    batches: BatchLoader,
) -> TrainingState:
    """The state of one training, of a run or of a stack of runs, in the folder of the first."""
    config, known = runs[0].config, [run.fingerprint for run in runs]
    every = config.train.save_every if CONDITIONS["long"][1](config) else 0
    moving = Moving(moved, optimizer, options.schedule, record, batches)
    return TrainingState(runs[0].folder, known, moving, every, inputs.team, inputs.notes, config.output.verbose)


@contextmanager
def trained(*runs: Run) -> Iterator[None]:
    """What a run needs around its training and result: trackers are closed last. Where training breaks off, good weights are saved.

    Raises:
        TrainingError: that of the training, with where those weights are. There is no `result.json` then.
    """
    failed = True
    try:
        yield
        failed = False
    except TrainingError as error:
        for run in runs if error.kept else ():
            save_model(run.folder, run.model)
        where = ", ".join(str(run.folder / WEIGHTS) for run in runs)
        kept = f"the weights of epoch {error.kept} are in {where}" if error.kept else "no epoch was finished"
        raise TrainingError(f"{error}; {kept}", error.kept) from error
    finally:
        for run in runs:
            _close_tracker(run, failed)


def _close_tracker(run: Run, failed: bool) -> None:
    """Close it. Lines of its record that a full disk does not take are lost: the run itself is whole, or has failed for another reason."""
    try:
        run.tracker.close(failed)
    except OSError as error:
        warn(f"{run.folder}: the last lines of metrics.jsonl cannot be written ({error.strerror})")


def close_run(
    run: Run,
    inputs: Inputs,
    fitted: FitResult,
    scores: dict[str, float],
    facts: Result | None = None,
    further: Callable[[Result], None] | None = None,
) -> Result:
    """Write the weights of the selected epoch and, last, `result.json` with its scores and `facts`; `further` adds to both before that."""
    config, data, tokens = run.config, inputs.data, inputs.tokens
    tokens.check()
    save_model(run.folder, run.model)
    tokens.save(run.folder / BACKBONE)
    for path in (run.folder / BACKBONE).glob("*"):
        allow_as_others(path)
    result = make_result(config, inputs.task, fitted, scores, inputs.clock.seconds) | {
        "selection": selection_facts(config, inputs.task),
        "select_by": selection_in_words(config, inputs.task, [split.split for split in data.reported], fitted),
        "labels": inputs.task.labels.to_dict(),
        "floor": make_loaders(inputs).floor,
        "rows": {split.split: len(split) for split in [data.train, *data.reported]},
        "trainable_params": run.model.trainable_params + sum(weight.numel() for weight in tokens.trained),
        "finetuned": config.backbone.finetune_backbone if config.backbone.is_trained else None,
        "store": tokens.store,
        "backbone": {"identity": inputs.source.identity, "weights": count_weights(inputs.source), **tokens.facts},
        "notes": inputs.notes + data.notes,
        "made_by": origin(config, inputs.device),
        "run_dir": str(run.folder),
        "fingerprint": run.fingerprint,
    }
    result |= layer_facts(config, run.model.pooler) | (facts or {})
    if further is not None:
        further(result)
    write_result(run.folder, result)
    run.tracker.summarise(result)
    run.lock.release()
    return result


def read_texts(config: RunConfig, source: BackboneSource) -> tuple[PairData, PairFile] | tuple[TaskData, TextIndex]:
    """The rows of a run and its distinct texts; the last few are remembered, since runs of one study share them."""
    return read_pairs(config, source) if config.data.task == "embedding" else read_labelled(config, source)


def read_pairs(config: RunConfig, source: BackboneSource) -> tuple[PairData, PairFile]:
    """`read_texts` for pairs."""
    flags = config.to_dict() | {"data_seed": config.data_seed, "train_file": config.contrastive.pairs_file}
    spec = PairSpec(**{name: flags[name] for name in PairSpec._fields if name in flags}, used=used_prompts(config, source))
    return _read_pairs(spec, changed_at([Path(spec.train_file)]), config.output.verbose)


def read_labelled(config: RunConfig, source: BackboneSource) -> tuple[TaskData, TextIndex]:
    """`read_texts` for labelled rows."""
    used = used_prompts(config, source)
    if config.data.task == CUSTOM:
        spec = custom_spec(config)
        found = _read_custom(spec, parse_metrics(config), config.data, config.data_seed, used, changed_at(own_files(spec)))
    else:
        files = changed_at(mirror_files(config.data.task, config.data.data_dir))
        found = _read_texts(config.data, config.stress, config.backbone.max_length, config.data_seed, used, files)
    check_head(config, found[0].task)
    check_head_rows(config, found[0])
    return found


def custom_spec(config: RunConfig) -> CustomSpec:
    """What a custom task reads."""
    flags = config.to_dict()
    return CustomSpec(**{name: flags[name] for name in CustomSpec._fields})


def parse_metrics(config: RunConfig) -> tuple[str, ...]:
    """`--metrics`; empty = the task's own."""
    return split_names(config.files.metrics or "")


@lru_cache(maxsize=2)
def _read_texts(
    data: DataConfig, stress: StressConfig, max_length: int, data_seed: int, used: UsedPrompts, files: ChangedAt
) -> tuple[TaskData, TextIndex]:
    rows = replace(load_task_data(data.task, data, stress, max_length, data_seed), used=used)
    return rows, TextIndex(rows.splits, used)


@lru_cache(maxsize=2)
def _read_custom(
    spec: CustomSpec, metrics: tuple[str, ...], data: DataConfig, data_seed: int, used: UsedPrompts, files: ChangedAt
) -> tuple[TaskData, TextIndex]:
    rows = replace(load_custom_data(spec, metrics, data, data_seed), used=used)
    return rows, TextIndex(rows.splits, used)


@lru_cache(maxsize=2)
def _read_pairs(spec: PairSpec, files: ChangedAt, verbose: bool) -> tuple[PairData, PairFile]:
    return load_pair_data(TASKS["embedding"], spec, verbose)


def make_loaders(inputs: Inputs) -> Loaders | PairLoaders:
    """Batches and scores of labelled rows, or of pairs."""
    if isinstance(inputs.data, PairData):
        return PairLoaders(inputs.config, inputs.task, inputs.data, inputs.tokens, inputs.device, inputs.team)
    assert isinstance(inputs.texts, TextIndex)
    return Loaders(inputs.config, inputs.task, inputs.data, inputs.texts, inputs.tokens, inputs.device, inputs.team)


def run_fingerprint(config: RunConfig, source: BackboneSource, data: TaskData | PairData) -> str:
    """What a settled run is known by: configuration, files of the backbone, rows, versions, and the code that its numbers go through."""
    values: dict[str, Any] = {}
    if config.data.task == CUSTOM:
        values = {"train_file": None, "eval_file": None}  # their rows count, not their names
    own = {code.name: f"{code.attribute}@{code.sha256}" for code in own_codes(config.pooler, config.graph).values()}
    for flag in ("pooling_method", "graph_adj") if own else ():  # what the code is counts, not where it stands
        name = config.to_dict()[flag]
        values[flag] = own.get(name, name)
    kind = ALL_CLASSES.get(config.pooler.pooling_method)
    code = code_hash(*([] if kind is None else [kind.__module__]))
    return config.with_values(**values).fingerprint(source.identity, data.sha256, str(sorted(versions().items())), code)


def fingerprint_of(config: RunConfig) -> str:
    """The fingerprint that a run of a configuration would have; its rows are read."""
    source = find_source(config.backbone)
    data, _ = read_texts(config, source)
    return run_fingerprint(resolve(config, source)[0], source, data)


def find_finished(config: RunConfig, fingerprint: str | None = None) -> Result | None:
    """The result of the run of a configuration in the folder that it names, if it is finished; a damaged one is said.

    Args:
        config: with a `--run_name`.
        fingerprint: of the run, where it is known.
    """
    folder = Path(config.output.output_dir) / str(config.output.run_name)
    if not (folder / RESULT).is_file() or read_mark(folder) not in (fingerprint or fingerprint_of(config), ""):
        return None
    try:
        return read_result(folder)
    except GlotError as error:
        warn(f"{error.problems[0].partition(';')[0]}; the run is done anew")
        return None


def find_finished_stack(configs: list[RunConfig], fingerprints: list[str]) -> list[Result | None]:
    """`find_finished` for runs that train side by side.

    Those whose results were being written when their process ended are done again together: they equal those of an undisturbed process
    only as the stack that they were.
    """
    found = [find_finished(config, known) for config, known in zip(configs, fingerprints, strict=True)]
    folders = [Path(config.output.output_dir) / str(config.output.run_name) for config in configs]
    states = [read_state(folder) for folder, result in zip(folders, found, strict=True) if result is None]
    broken = {known for state in states if state is not None for known in state["fingerprints"]}
    for place, (folder, known) in enumerate(zip(folders, fingerprints, strict=True)):
        if known in broken and found[place] is not None:
            (folder / RESULT).unlink()
            found[place] = None
    return found


def resolve(config: RunConfig, source: BackboneSource) -> tuple[RunConfig, list[str]]:
    """Replace what depends on the backbone or the machine by its meaning: layer, precision, and `decoder_cls_last_token` for encoders."""
    config, notes = settle_dtype(config, source, own_device(config))
    last = config.pooler.decoder_cls_last_token
    layer = ",".join(source.resolve_layers(config.backbone.hidden_layer))
    notes += prompt_notes(config, source)
    if not config.backbone.adaptive_length and config.backbone.long_texts == "cut":
        source.check_length(config.backbone.max_length)
    decoder = last and (is_causal(source) if config.pooler.pooling_method == "cls" else source.is_decoder)
    if last and not decoder and config.data.task != "stress":  # there it is on by default, for decoders
        notes.append(f"{source.name} is an encoder: cls takes its first token whatever --decoder_cls_last_token says")
    return config.with_values(hidden_layer=layer, decoder_cls_last_token=decoder), notes


def is_causal(source: BackboneSource) -> bool:
    """Whether a token's state is independent of the tokens behind it: measured on the loaded model, once per machine and version."""
    known = recall_facts(source.identity).get("is_causal")
    if isinstance(known, bool):
        return known
    return Backbone(source, None, "float32", str(source.num_layers), pick_device("cpu")).is_causal


def own_device(config: RunConfig, team: Processes | None = None) -> torch.device:
    """Where this process computes."""
    return pick_device((team or processes()).device(config.backbone.device))


def folder_of(source: BackboneSource) -> str | None:
    """Absolute path of a local model, so that a run is found from any folder; None for other models."""
    return None if source.folder is None else str(source.folder)


def run_name(config: RunConfig, fingerprint: str) -> str:
    """`--run_name`, or one made of what a reader looks for first."""
    seed = f"s{config.train.seed}" if config.train.seeds is None else "seeds"
    task = config.files.task_name or config.data.task
    pooler = short_name(config.pooler.pooling_method)
    return config.output.run_name or f"{task}-{pooler}-{seed}-{fingerprint[:8]}"


def trained_as(model: SentenceModel, config: RunConfig, device: torch.device) -> nn.Module:
    """The model as training calls it: with `--train_dtype=bfloat16` its products are computed in bfloat16."""
    return model if config.train.train_dtype == "float32" else InBfloat16(model, device.type)


def keep_epochs(run: Run, task: TaskSpec, tensors: list[Tensor]) -> EpochKeeper:
    """The keeper of a run's epochs, over the tensors that training moves; `--selection` says how it picks one."""
    select_by = tuple(selection_facts(run.config, task)["metrics"])
    train, output = run.config.train, run.config.output
    return EpochKeeper(tensors, select_by, run.tracker, train.epochs, output.verbose, train.early_stop)
