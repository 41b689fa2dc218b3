"""Effects: which flags do something in a run, and which were given for nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from glot.errors import ConfigError
from glot.settings.choices import EVALUATIONS, FIXED_POOLERS, PAIR_POOLERS, PAIR_TASKS, POOLERS
from glot.settings.index import flag_facts

if TYPE_CHECKING:
    from glot.settings.config import RunConfig

LAYERED = ("glot", "crossglot", "mlp")
"""Poolers with `--num_layers` layers."""

CONDITIONS: dict[str, tuple[str, Callable[["RunConfig"], bool]]] = {
    "cls": ("--pooling_method=cls", lambda c: c.pooler.pooling_method == "cls"),
    "own": ("a pooler of your own (--pooling_method=file.py:Name)", lambda c: c.pooler.pooling_method not in POOLERS),
    "adapool": ("--pooling_method=adapool", lambda c: c.pooler.pooling_method == "adapool"),
    "layers": ("--pooling_method=glot, crossglot or mlp", lambda c: c.pooler.pooling_method in LAYERED),
    "width": (
        "--pooling_method=latent, or glot, crossglot or mlp with --num_layers above 0",
        lambda c: c.pooler.pooling_method == "latent" or (c.pooler.pooling_method in LAYERED and c.pooler.num_layers > 0),
    ),
    "windows": ("--long_texts=windows", lambda c: c.backbone.long_texts == "windows"),
    "several": ("several hidden layers (--hidden_layer=all, 0,3,6 or every:5)", lambda c: reads_several(c)),
    "crossglot": ("--pooling_method=crossglot", lambda c: c.pooler.pooling_method == "crossglot"),
    "across": (
        "--pooling_method=crossglot, or alignment with shuffled",
        lambda c: c.pooler.pooling_method == "crossglot" or (c.pooler.pooling_method == "alignment" and c.graph.cross_adj == "shuffled"),
    ),
    "convs": ("--pooling_method=glot with --num_layers above 0", lambda c: c.pooler.pooling_method == "glot" and c.pooler.num_layers > 0),
    "glot": ("--pooling_method=glot", lambda c: c.pooler.pooling_method == "glot"),
    "graph": (
        "--pooling_method=glot with --num_layers above 0, or crossglot with --cross_inside=1",
        lambda c: (c.pooler.pooling_method == "glot" and c.pooler.num_layers > 0) or (_is_crossglot(c) and c.graph.cross_inside),
    ),
    "tau": (
        "a threshold or random graph (--graph_adj), or one across a pair (--cross_adj=threshold, random or shuffled)",
        lambda c: _has_graph(c, "threshold", "random") or _is_crossglot(c, "threshold", "random", "shuffled"),
    ),
    "knn": ("--graph_adj=knn, or --cross_adj=knn", lambda c: _has_graph(c, "knn") or _is_crossglot(c, "knn")),
    "window": ("--graph_adj=window", lambda c: _has_graph(c, "window")),
    "scores": (
        "--task=stsb, or --task=custom with two --text_columns",
        lambda c: c.data.task == "stsb" or (c.data.task == "custom" and reads_pairs(c)),
    ),
    "custom": ("--task=custom", lambda c: c.data.task == "custom"),
    "table": ("--task=custom with a hub: table", lambda c: c.data.task == "custom" and _reads_hub(c)),
    "files": ("--task=embedding or custom", lambda c: c.data.task in ("embedding", "custom")),
    "eval_rows": ("a task that trains on labelled rows", lambda c: c.data.task not in ("embedding", "mteb")),
    "stress": ("--task=stress", lambda c: c.data.task == "stress"),
    "placed": (
        "--task=stress with --stress_variant=faithful or length_matched",
        lambda c: c.data.task == "stress" and c.stress.stress_variant in ("faithful", "length_matched"),
    ),
    "distance": (
        "--task=stress with a variant other than repeat",
        lambda c: c.data.task == "stress" and c.stress.stress_variant != "repeat",
    ),
    "foldable": ("a task whose labelled rows are read from files", lambda c: _trains(c) and c.data.task not in ("stress", "embedding")),
    "folds": ("--folds", lambda c: _trains(c) and c.data.task not in ("stress", "embedding") and c.data.folds > 0),
    "hub": ("a task whose data is a table of the hub or a mirror", lambda c: c.data.task not in ("stress", "embedding", "custom")),
    "split": (
        "a task with named splits",
        lambda c: c.data.task not in ("stress", "embedding", "mteb", "custom") or (c.data.task == "custom" and _reads_hub(c)),
    ),
    "heldout": (
        "--selection=heldout, --task=embedding, or custom without --eval_file and --folds",
        lambda c: _trains(c) and _holds_out(c),
    ),
    "data_seed": (
        "--task=stress or embedding, --task=custom without --eval_file, --selection=heldout, --folds, --head=probe or svm, a random graph "
        "or several hidden layers",
        lambda c: (
            _has_graph(c, "random")
            or _is_crossglot(c, "random")
            or reads_several(c)
            or (_trains(c) and (c.data.task == "stress" or _holds_out(c) or c.data.folds > 0 or c.head.head != "trained"))
        ),
    ),
    "store": (
        "--precompute_hidden_states=1 in a task that trains, or --mteb_store=1",
        lambda c: c.store.precompute_hidden_states if _trains(c) else c.mteb.mteb_store,
    ),
    "stored": ("--precompute_hidden_states=1 in a task that trains", lambda c: _trains(c) and c.store.precompute_hidden_states),
    "live": ("--precompute_hidden_states=1 (live states use this process)", lambda c: _trains(c) and c.store.precompute_hidden_states),
    "finetune": ("--finetune_backbone=full or lora", lambda c: _trains(c) and c.backbone.is_trained),
    "lora": ("--finetune_backbone=lora", lambda c: _trains(c) and c.backbone.finetune_backbone == "lora"),
    "long": (
        "--task=embedding or --finetune_backbone",
        lambda c: _trains(c) and (c.data.task == "embedding" or c.backbone.is_trained),
    ),
    "length": (
        "--task=stress, or --adaptive_length=0 in a task that trains (mteb: --mteb_max_length)",
        lambda c: c.data.task == "stress" or (_trains(c) and not c.backbone.adaptive_length),
    ),
    "embedding": ("--task=embedding", lambda c: c.data.task == "embedding"),
    "released": ("--task=embedding without --seeds", lambda c: c.data.task == "embedding" and c.train.seeds is None),
    "mteb": ("--task=mteb", lambda c: c.data.task == "mteb"),
    "trains": ("a task that trains", lambda c: _trains(c)),
    "gradient": ("a task that trains, with --head=trained or a pooler that has weights", lambda c: _trains(c) and has_gradient(c)),
    "labelled": ("a task that trains on labelled rows", lambda c: _trains(c) and c.data.task != "embedding"),
    "labelled_gradient": (
        "a task that trains on labelled rows, with --head=trained or a pooler that has weights",
        lambda c: _trains(c) and c.data.task != "embedding" and has_gradient(c),
    ),
    "pairs": (
        "a task of pairs (stsb, mrpc, qqp, mnli, qnli, rte, wnli, or custom with two --text_columns) and a pooler of single texts",
        lambda c: reads_pairs(c) and c.pooler.pooling_method not in PAIR_POOLERS,
    ),
    "seeds": ("--seeds", lambda c: _trains(c) and c.train.seeds is not None),
    "scored": ("a task that scores labelled rows, or mteb", lambda c: c.data.task != "embedding"),
}
"""Name -> (in words, predicate): when a flag has an effect."""


def reads_several(config: "RunConfig") -> bool:
    """Whether a run reads the states of several hidden layers."""
    layer = config.backbone.hidden_layer
    return layer == "all" or "," in layer or layer.startswith("every:")


def reads_pairs(config: "RunConfig") -> bool:
    """Whether the rows of a run are labelled pairs of texts."""
    columns = [name for name in config.files.text_columns.split(",") if name.strip()]
    return config.data.task in PAIR_TASKS or (config.data.task == "custom" and len(columns) == 2)


def _draws_graph(config: "RunConfig") -> bool:
    return _has_graph(config, "random") or _is_crossglot(config, "random")


def _is_crossglot(config: "RunConfig", *kinds: str) -> bool:
    return config.pooler.pooling_method == "crossglot" and (not kinds or config.graph.cross_adj in kinds)


def _trains(config: "RunConfig") -> bool:
    return config.data.task not in EVALUATIONS


def has_gradient(config: "RunConfig") -> bool:
    """Whether a run takes gradient steps: a probe on a pooler without weights does not."""
    return config.head.head == "trained" or has_weights(config) or config.backbone.is_trained


def has_weights(config: "RunConfig") -> bool:
    """Whether the pooler has weights: its own, or those of a learnt sum of layers."""
    return config.pooler.pooling_method not in FIXED_POOLERS or (reads_several(config) and config.pooler.layer_mix == "scalar")


def _holds_out(config: "RunConfig") -> bool:
    is_custom = config.data.task == "custom" and config.files.eval_file is None and config.data.eval_split is None
    own_rows = is_custom and not config.data.folds
    return config.data.selection == "heldout" or config.data.task == "embedding" or own_rows


def _reads_hub(config: "RunConfig") -> bool:
    return any(str(file).startswith("hub:") for file in (config.contrastive.train_file, config.files.eval_file))


def _has_graph(config: "RunConfig", *names: str) -> bool:
    return CONDITIONS["graph"][1](config) and config.graph.graph_adj in names


def inert_flags(config: "RunConfig", explicit: frozenset[str]) -> tuple[str, ...]:
    """The flags of the release that were given and do nothing in this run.

    Raises:
        ConfigError: a flag of ours was given that has no effect in this run.
    """
    acting = set(acting_flags(config))
    inert = {name: facts for name, facts in flag_facts().items() if name in explicit and name not in acting}
    problems = [
        f"--{name}: has no effect in this run, it needs {CONDITIONS[str(facts.acts)][0]}; leave it out"
        for name, facts in inert.items()
        if facts.ours
    ]
    if problems:
        raise ConfigError(*problems)
    return tuple(inert)


def acting_flags(config: "RunConfig") -> list[str]:
    """The flags that do something in a run."""
    return [name for name, facts in flag_facts().items() if facts.acts is None or CONDITIONS[facts.acts][1](config)]
