"""What the commands do, a straight line each. Start reading here.

run_task    text -> hidden states on disk -> pooler and head trained on them -> scores in a run folder
run_seeds   the same for several seeds on one store, with mean and spread
run_stress  run_task on the stress test, with what shortcuts score and a heat map
run_demo    five poolers on the stress test, a table and a figure
run_graph   how dense the token graph is
run_estimate  tokens, bytes and hours of a store, before there is one
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from glot.backbone import BackboneSource, LiveTokens, find_backbone, pick_device
from glot.census import Counter
from glot.checkpoint import (
    BACKBONE,
    PREDICTIONS,
    RESULT,
    build_model,
    create_run_folder,
    save_model,
    write_config,
    write_json,
)
from glot.config import DataConfig, RunConfig, StressConfig, parse_seeds, versions
from glot.datasets.shortcuts import score_shortcuts
from glot.errors import GlotError
from glot.heatmap import draw_heat_map
from glot.loader import TextIndex
from glot.model import SentenceModel
from glot.progress import Clock, say
from glot.report.plots import plot_census, plot_demo
from glot.report.tables import census_table, demo_table
from glot.result import Result, make_result, selection_in_words, store_entry, summarise
from glot.splits import Loaders
from glot.tasks import TASKS, TaskData, TaskSpec, load_task_data
from glot.tokens import estimate_store, open_tokens, signal_kept, write_layers
from glot.tracking import make_tracker, resolve_report_to
from glot.train import FitOptions, fit
from glot.types import TokenSource


def run_task(config: RunConfig) -> Result:
    """Encode once, train a pooler, score it; writes the run folder and returns the result object of its `result.json`."""
    clock = Clock("load", "encode", "train", "evaluate")
    report_to, device = resolve_report_to(config.output.report_to), pick_device(config.backbone.device)
    with clock.phase("load"):
        task = TASKS[config.data.task]
        data, index = read_texts(config)
        source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
        config, notes = settle(config, source)
        fingerprint = run_fingerprint(config, source, data)
    tokens = open_tokens(config, source, index, device, clock)

    torch.manual_seed(config.train.seed)
    model = build_model(config, tokens.hidden_size).to(device)
    run_dir = create_run_folder(Path(config.output.output_dir), run_name(config, fingerprint), config.output.overwrite)
    write_config(run_dir, config, {"hidden_size": tokens.hidden_size, "backbone": source.identity, "data": data.sha256})
    announce(config, run_dir, data, model)

    batches = Loaders(config, task, data, index, tokens, device)
    tracker = make_tracker(report_to, run_dir)
    tracker.start(config.to_dict())
    optimizer = make_optimizer(config, model, tokens)
    fitted = fit(model, batches.train, task.loss, optimizer, lambda: batches.score(model, data.watched), fit_options(config, task), tracker)
    tracker.close()

    with clock.phase("evaluate"):
        scores = batches.score(model, data.reported, predictions=run_dir / PREDICTIONS)
    save_model(run_dir, model)
    if isinstance(tokens, LiveTokens) and tokens.trainable:
        tokens.backbone.save(run_dir / BACKBONE)
    result = make_result(config, task, fitted, scores, clock.seconds) | {
        "select_by": selection_in_words(config, task, [split.split for split in data.reported]),
        "trainable_params": sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]),
        "store": store_entry(tokens),
        "notes": notes + data.notes,
        "run_dir": str(run_dir),
        "fingerprint": fingerprint,
    }
    write_json(run_dir / RESULT, result)
    return result


def choose_recipe(config: RunConfig) -> Callable[[RunConfig], Result]:
    """What `main.py` does for a configuration."""
    if config.output.estimate:
        return run_estimate
    if config.train.seeds is not None:
        return run_seeds
    return run_stress if config.data.task == "stress" else run_task


def run_seeds(config: RunConfig) -> Result:
    """`run_task` for each of `--seeds`, in folders `seed-<n>` under one; mean, sd and n of every metric."""
    folder = create_run_folder(Path(config.output.output_dir), run_name(config, config.fingerprint()), config.output.overwrite)
    shared = config.with_values(seeds=None, data_seed=config.data_seed, output_dir=str(folder))  # one data seed: one store
    runs = []
    for seed in parse_seeds(config.train.seeds or ""):
        runs.append(run_task(shared.with_values(seed=seed, run_name=f"seed-{seed}")))
        shared = shared.with_values(override_precompute=False)  # built anew once is enough
    result = {"runs": runs, "summary": summarise(runs), "run_dir": str(folder)}
    write_json(folder / RESULT, result)
    return result


def run_stress(config: RunConfig) -> Result:
    """`run_task` on the stress test, with what shortcuts score on its data and a heat map of one sentence."""
    data, _ = read_texts(config)
    shortcuts = score_shortcuts(data.train, data.reported[0])
    lines = [f"{name}: {100 * accuracy:.1f} % accuracy without understanding" for name, accuracy in shortcuts.items()]
    whole = signal_kept(config.backbone, data.reported[0].columns[0])
    lines.append(f"{100 * whole:.1f} % of the evaluation texts keep their signal when cut to the backbone's tokens")
    for line in lines:
        say(line, config.output.verbose)
    result = run_task(config)
    result["notes"] += lines
    run_dir = Path(result["run_dir"])
    draw_heat_map(run_dir, data.reported[0].columns[0][0])
    write_json(run_dir / RESULT, result)
    return result


def run_or_reuse(config: RunConfig, runs_dir: Path) -> str:
    """The folder of a finished run with this very fingerprint under `runs_dir`, run now if there is none (studies)."""
    data, _ = read_texts(config)
    source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
    name = run_fingerprint(settle(config, source)[0], source, data)
    if not (runs_dir / name / RESULT).is_file():
        run_task(config.with_values(output_dir=str(runs_dir), run_name=name, overwrite=True, verbose=False))
    return str(runs_dir / name)


def encode_once(configs: list[RunConfig]) -> float:
    """Write every store that these runs will read with all cores, the layers of one backbone in one pass; the seconds it took.

    A store that cannot be written is reported here and fails its runs later, not the study.
    """
    clock = Clock("load", "encode")
    groups: dict[RunConfig, dict[str, None]] = {}
    for config in configs:
        if config.store.precompute_hidden_states:
            alike = RunConfig(config.backbone, data=config.data, stress=config.stress, store=config.store).with_values(
                hidden_layer="-1", data_seed=config.data_seed, selection="best"
            )
            groups.setdefault(alike, {})[config.backbone.hidden_layer] = None
    for config, layers in groups.items():
        try:
            source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
            settle(config, source)
            write_layers(config, source, read_texts(config)[1], list(layers), pick_device(config.backbone.device), clock)
        except GlotError as error:
            say(f"cannot encode: {error}")
    return clock.seconds["encode"]


DEMO_POOLERS = ("cls", "mean", "max", "adapool", "glot")
DEMO = {
    "task": "stress",
    "distractor_ratio": 0.9,
    "lr": 1e-3,
    "epochs": 6,
    "tau": 0.6,
    "num_layers": 2,
    "gat_hidden_dim": 128,
    "scorer_hidden": 128,
    "data_seed": 0,
    "seed": 0,
}
"""What `glot demo` runs: the stress test at its hardest published ratio, on the embedded backbone."""


def run_demo(config: RunConfig) -> str:
    """Train five poolers on one store of the stress test; returns a table and saves it beside a figure.

    What is trained and how is `DEMO`; a configuration chooses backbone, folders and device.
    """
    config = config.with_values(**DEMO)
    folder = create_run_folder(Path(config.output.output_dir), "demo", config.output.overwrite)
    runs = [run_task(config.with_values(pooling_method=name, output_dir=str(folder), run_name=name)) for name in DEMO_POOLERS]
    data, _ = read_texts(config)
    shortcuts = score_shortcuts(data.train, data.reported[0])
    table = demo_table(runs, shortcuts)
    (folder / "table.md").write_text(table, encoding="utf-8")
    plot_demo(runs, shortcuts, folder / "figure.png")
    return f"{table}\nfigure: {folder / 'figure.png'}\ntable:  {folder / 'table.md'}"


def run_estimate(config: RunConfig) -> Result:
    """Size and time of the store that a run would write, from a sample (`--estimate`)."""
    source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
    config, _ = settle(config, source)
    return estimate_store(config, source, read_texts(config)[1], pick_device(config.backbone.device))


GRAPH_TEXTS = 1000
GRAPH_TAUS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def run_graph(config: RunConfig) -> tuple[str, str]:
    """How dense the token graph of a task is at each tau: a table (and graph.json, graph.png in a run folder), and a warning or nothing."""
    source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
    config, _ = settle(config, source)
    _, index = read_texts(config)
    tokens = open_tokens(config, source, index, pick_device(config.backbone.device), Clock())
    rows = np.sort(np.random.default_rng(0).choice(len(tokens), min(len(tokens), GRAPH_TEXTS), replace=False))
    counter = Counter(sorted({*GRAPH_TAUS, config.graph.tau}))
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        counter.add(tokens.gather(part))
    census = counter.census()
    folder = create_run_folder(
        Path(config.output.output_dir), f"graph-{config.data.task}-{Path(source.name).name}", config.output.overwrite
    )
    write_json(folder / "graph.json", [row._asdict() for row in census])
    plot_census(census, config.graph.tau, folder / "graph.png")
    chosen = next(row for row in census if row.tau == config.graph.tau)
    warning = f"warning: at tau = {chosen.tau:g} the graph is {chosen.verdict}: {100 * chosen.density:.1f} % of pairs are joined"
    table = census_table(census, config.graph.tau, len(rows), f"{source.name}, {config.data.task}")
    return f"{table}\nfigure: {folder / 'graph.png'}", warning if chosen.verdict else ""


def plan(config: RunConfig) -> str:
    """What a run would do (`--dry_run`): data are read and the model's configuration is looked at, its weights are not."""
    data, index = read_texts(config)
    source = find_backbone(config.backbone.model_name_or_path, config.backbone.trust_remote_code)
    config, notes = settle(config, source)
    length = "no cut but the model's limit" if config.backbone.adaptive_length else f"at most {config.backbone.max_length} tokens"
    states = f"stored under {config.store.store_dir}" if config.store.precompute_hidden_states else "computed in every epoch"
    rows = ", ".join(f"{len(split):,} {split.split}" for split in [data.train, *data.watched])
    kind = "decoder" if source.is_decoder else "encoder"
    lines = {
        "task": f"{config.data.task}, rows: {rows}; selection: {config.data.selection}",
        "backbone": f"{source.name} ({kind}, {source.num_layers} layers), hidden state {config.backbone.hidden_layer}, {length}",
        "states": f"of {len(index.texts):,} distinct texts, {states}",
        "pooler": f"{config.pooler.pooling_method}, {config.train.epochs} epochs, lr {config.train.lr:g}",
        "seeds": config.train.seeds or str(config.train.seed),
        "output": str(Path(config.output.output_dir) / run_name(config, run_fingerprint(config, source, data))),
        "notes": "; ".join([*notes, *data.notes]) or "none",
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def read_texts(config: RunConfig) -> tuple[TaskData, TextIndex]:
    """The rows of a run and its distinct texts; the last few are remembered, since runs of one study share them."""
    return _read_texts(config.data, config.stress, config.backbone.max_length, config.data_seed)


@lru_cache(maxsize=2)
def _read_texts(data: DataConfig, stress: StressConfig, max_length: int, data_seed: int) -> tuple[TaskData, TextIndex]:
    rows = load_task_data(TASKS[data.task], data, stress, max_length, data_seed)
    return rows, TextIndex(rows.splits)


def run_fingerprint(config: RunConfig, source: BackboneSource, data: TaskData) -> str:
    """What a settled run is known by: its configuration, the backbone's files, the rows, and the versions that can change a number."""
    return config.fingerprint(source.identity, data.sha256, str(sorted(versions().items())))


def settle(config: RunConfig, source: BackboneSource) -> tuple[RunConfig, list[str]]:
    """Replace what depends on the backbone by its meaning: the layer's index, and `decoder_cls_last_token` for encoders."""
    notes = []
    last = config.pooler.decoder_cls_last_token
    if last and not source.is_decoder and config.data.task != "stress":  # there it is on by default, for decoders
        notes.append(f"{source.name} is an encoder: cls takes its first token whatever --decoder_cls_last_token says")
    layer = source.resolve_layer(config.backbone.hidden_layer)
    if not config.backbone.adaptive_length:
        source.check_length(config.backbone.max_length)
    return config.with_values(hidden_layer=layer, decoder_cls_last_token=last and source.is_decoder), notes


def run_name(config: RunConfig, fingerprint: str) -> str:
    """`--run_name`, or one made of what a reader looks for first."""
    seed = f"s{config.train.seed}" if config.train.seeds is None else "seeds"
    return config.output.run_name or f"{config.data.task}-{config.pooler.pooling_method}-{seed}-{fingerprint[:8]}"


def announce(config: RunConfig, run_dir: Path, data: TaskData, model: SentenceModel) -> None:
    """One line before training starts."""
    rows = f"{len(data.train):,} training rows, scored on {', '.join(f'{len(split):,} {split.split}' for split in data.watched)}"
    say(f"{run_dir}: {config.pooler.pooling_method}, {model.trainable_params:,} parameters, {rows}", config.output.verbose)


def make_optimizer(config: RunConfig, model: SentenceModel, tokens: TokenSource) -> torch.optim.Optimizer:
    """Adam over pooler and head, and over the backbone at its own rate when it is fine-tuned."""
    groups = [{"params": list(model.parameters()), "lr": config.train.lr}]
    if isinstance(tokens, LiveTokens) and tokens.trainable:
        groups.append({"params": list(tokens.backbone.model.parameters()), "lr": config.backbone.backbone_lr})
    return torch.optim.Adam(groups, weight_decay=config.train.weight_decay)


def fit_options(config: RunConfig, task: TaskSpec) -> FitOptions:
    """How `fit` picks its epoch under each `--selection`."""
    select_by = {"best": task.select_by, "last": (), "heldout": task.metrics[:1]}[config.data.selection]
    return FitOptions(config.train.epochs, select_by, config.output.log_every, config.output.verbose)
