"""The table of poolers, and `build_pooler`, which builds one from a configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from glot.errors import lookup
from glot.nn.graph import GraphRule
from glot.nn.pooler import Pooler
from glot.nn.poolers.attention import LatentPooler, PmaPooler
from glot.nn.poolers.fixed import ClsPooler, MaxPooler, MeanPooler, WeightedMeanPooler
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.scored import AdaPooler, MlpPooler

if TYPE_CHECKING:
    from glot.settings.sections import GraphConfig, PoolerConfig

POOLERS: dict[str, Callable[["PoolerConfig", GraphRule, int], Pooler]] = {
    "cls": lambda config, rule, d: ClsPooler(d, last=config.decoder_cls_last_token),
    "adapool": lambda config, rule, d: AdaPooler(d, config.scorer_hidden),
    "max": lambda config, rule, d: MaxPooler(d),
    "mean": lambda config, rule, d: MeanPooler(d),
    "mlp": lambda config, rule, d: MlpPooler(d, config.gat_hidden_dim, config.num_layers),
    "weightedmean": lambda config, rule, d: WeightedMeanPooler(d),
    "pma": lambda config, rule, d: PmaPooler(d),
    "latent": lambda config, rule, d: LatentPooler(d, config.gat_hidden_dim),
    "glot": lambda config, rule, d: GlotPooler(d, config.gat_hidden_dim, config.num_layers, config.gnn_type, config.jk_mode, rule),
}
"""`--pooling_method` -> build(config, graph rule, d)."""


def build_pooler(config: "PoolerConfig", graph: "GraphConfig", in_dim: int, graph_seed: int = 0) -> Pooler:
    """Build the pooler that a configuration names, for tokens of width `in_dim`.

    `config.decoder_cls_last_token` is not validated here; callers must set it to False for encoders.

    Raises:
        ConfigError: unknown pooler, conv or jump.
    """
    rule = GraphRule(graph.graph_adj, graph.tau, graph.knn_k, graph.window_size, graph_seed)
    return lookup(POOLERS, config.pooling_method, "pooling_method")(config, rule, in_dim)
