"""Poolers of pairs beside those of single sentences: their table, and `build_model_pooler`, which builds either.

Exports hold vectors of single sentences, so nothing that they need imports this module.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from glot.nn.cross import SHUFFLED, CrossRule
from glot.nn.pooler import Pooler
from glot.nn.poolers import CLASSES, build_pooler, make_rule, over_layers
from glot.nn.poolers.alignment import AlignmentPooler
from glot.nn.poolers.crossglot import CrossGlotPooler

if TYPE_CHECKING:
    from glot.settings.sections import GraphConfig, PoolerConfig

PAIR_POOLERS: dict[str, Callable[["PoolerConfig", CrossRule, int, bool], Pooler]] = {
    "alignment": lambda config, rule, d, symmetric: AlignmentPooler(d, rule.kind == SHUFFLED, symmetric),
    "crossglot": lambda config, rule, d, symmetric: CrossGlotPooler(d, config.gat_hidden_dim, config.num_layers, rule, symmetric),
}
"""`--pooling_method` -> build(config, rule across the pair, d, whether the sentences may be exchanged): features of a pair."""

ALL_CLASSES: dict[str, type[Pooler]] = {**CLASSES, "alignment": AlignmentPooler, "crossglot": CrossGlotPooler}
"""`--pooling_method` -> class, of all poolers."""


def build_model_pooler(
    config: "PoolerConfig",
    graph: "GraphConfig",
    in_dim: int,
    graph_seed: int = 0,
    sources: dict[str, str] | None = None,
    layers: int = 1,
    symmetric: bool = False,
) -> Pooler:
    """`build_pooler` that knows poolers of pairs too.

    Args:
        config: which pooler, and its sizes.
        graph: which tokens see each other.
        in_dim: see `build_pooler`.
        graph_seed: see `build_pooler`.
        sources: see `build_pooler`.
        layers: see `build_pooler`.
        symmetric: whether the sentences of a pair may be exchanged.

    Raises:
        ConfigError: see `build_pooler`.
    """
    if config.pooling_method not in PAIR_POOLERS:
        return build_pooler(config, graph, in_dim, graph_seed, sources, layers)
    inside = make_rule(config, graph, graph_seed, sources) if graph.cross_inside else None
    rule = CrossRule(graph.cross_adj, graph.tau, graph.knn_k, graph_seed, inside)
    build = PAIR_POOLERS[config.pooling_method]
    return over_layers(lambda width: build(config, rule, width, symmetric), in_dim, layers, config)
