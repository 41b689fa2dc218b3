"""What a run would read and do, before it is done: its plan, and how dense its token graph is."""

from pathlib import Path

import numpy as np
import torch

from glot.nn.layers import LayeredPooler
from glot.nn.pooler import Pooler
from glot.nn.poolers.fixed import MeanPooler
from glot.progress import Clock, say
from glot.report.graph_density import Counter
from glot.report.tables import graph_density_table
from glot.settings.config import RunConfig
from glot.settings.effects import has_gradient
from glot.states.tokens import find_source, open_tokens
from glot.training.folders import create_run_folder
from glot.training.layers import standardise
from glot.training.result_file import write_json
from glot.training.run import own_device, read_texts, resolve, run_fingerprint, run_name
from glot.types import TokenSource
from glot.words import counted

GRAPH_TEXTS = 1000
GRAPH_TAUS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@torch.no_grad()
def run_graph(config: RunConfig) -> tuple[str, str]:
    """How dense the token graph of a task is at each tau: a table (and graph.json, graph.png in a run folder), and a warning or nothing."""
    config = config.checked()
    source = find_source(config.backbone)
    config, notes = resolve(config.with_values(finetune_backbone="0"), source)  # the states of the backbone as it is
    for note in notes:
        say(note)
    data, index = read_texts(config, source)
    tokens = open_tokens(config, source, index, own_device(config), Clock())
    rows = np.sort(np.random.default_rng(0).choice(len(tokens), min(len(tokens), GRAPH_TEXTS), replace=False))
    mixed = _mix_of(config, tokens)
    standardise(mixed, data, index, tokens, config.data_seed)
    counter = Counter(sorted({*GRAPH_TAUS, config.graph.tau}))
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        for batch in mixed.mixed(tokens.gather(part)) if isinstance(mixed, LayeredPooler) else [tokens.gather(part)]:
            counter.add(batch)
    census = counter.census()
    folder = create_run_folder(
        Path(config.output.output_dir), f"graph-{config.data.task}-{Path(source.name).name}", config.output.overwrite
    )
    from glot.report.plots import plot_graph_density  # matplotlib

    write_json(folder / "graph.json", [row._asdict() for row in census])
    plot_graph_density(census, config.graph.tau, folder / "graph.png")
    chosen = next(row for row in census if row.tau == config.graph.tau)
    warning = f"warning: at tau = {chosen.tau:g} the graph is {chosen.verdict}: {100 * chosen.density:.1f} % of pairs are joined"
    table = graph_density_table(census, config.graph.tau, len(rows), f"{source.name}, {config.data.task}")
    return f"{table}\nfigure: {folder / 'graph.png'}", warning if chosen.verdict else ""


def _mix_of(config: RunConfig, tokens: TokenSource) -> Pooler:
    """A pooler that mixes the layers of a run as its own would before training."""
    layers, width = config.backbone.hidden_layer.count(",") + 1, tokens.hidden_size
    return MeanPooler(width) if layers == 1 else LayeredPooler(MeanPooler, width, layers, config.pooler.layer_mix)


def plan(config: RunConfig) -> str:
    """What a run would do (`--dry_run`): data are read and the model's configuration is looked at, its weights are not."""
    config = config.checked()
    source = find_source(config.backbone)
    data, index = read_texts(config, source)
    config, notes = resolve(config, source)
    length = "no cut but the model's limit" if config.backbone.adaptive_length else f"at most {config.backbone.max_length} tokens"
    states = f"stored under {config.store.store_dir}" if config.store.precompute_hidden_states else "computed in every epoch"
    rows = ", ".join(dict.fromkeys(f"{len(split):,} {split.split}" for split in [data.train, *data.watched]))
    kind = "decoder" if source.is_decoder else "encoder"
    layer = config.backbone.hidden_layer
    states_of = f"hidden states {layer} ({config.pooler.layer_mix})" if "," in layer else f"hidden state {layer}"
    trained = config.backbone
    rate = f"backbone trained ({trained.finetune_backbone}, lr {trained.trained_lr:g})" if trained.is_trained else "backbone frozen"
    steps = (
        f"{counted(config.train.epochs, 'epoch')}, lr {config.train.lr:g}" if has_gradient(config) else f"{config.head.head} fitted once"
    )
    lines = {
        "task": f"{config.data.task}, rows: {rows}; selection: {config.data.selection}",
        "backbone": f"{source.name} ({kind}, {source.num_layers} layers), {states_of}, {length}",
        "states": f"of {len(index):,} distinct texts, {states}",
        "pooler": f"{config.pooler.pooling_method}, {steps}; {rate}",
        "seeds": config.train.seeds or str(config.train.seed),
        "output": str(Path(config.output.output_dir) / run_name(config, run_fingerprint(config, source, data))),
        "notes": "; ".join([*notes, *data.notes]) or "none",
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())
