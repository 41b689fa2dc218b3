"""The table of poolers, and `build_pooler`, which builds one from a configuration."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from glot.errors import ConfigError, library_door, lookup, reason
from glot.nn.graph import RULES, GraphRule
from glot.nn.layers import LayeredPooler
from glot.nn.own import OwnCode, OwnPooler, find_code, is_own, run_code
from glot.nn.pooler import Pooler
from glot.nn.poolers.attention import GatedPooler, LatentPooler, PmaPooler
from glot.nn.poolers.fixed import ClsPooler, MaxPooler, MeanPooler, StdPooler, WeightedMeanPooler
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.scored import AdaPooler, MlpPooler

if TYPE_CHECKING:
    from glot.settings.sections import GraphConfig, PoolerConfig

Build = Callable[["PoolerConfig", GraphRule, int], Pooler]

POOLERS: dict[str, Build] = {
    "cls": lambda config, rule, d: ClsPooler(d, last=config.decoder_cls_last_token),
    "adapool": lambda config, rule, d: AdaPooler(d, config.scorer_hidden),
    "max": lambda config, rule, d: MaxPooler(d),
    "mean": lambda config, rule, d: MeanPooler(d),
    "mlp": lambda config, rule, d: MlpPooler(d, config.gat_hidden_dim, config.num_layers),
    "weightedmean": lambda config, rule, d: WeightedMeanPooler(d),
    "std": lambda config, rule, d: StdPooler(d),
    "gated": lambda config, rule, d: GatedPooler(d),
    "pma": lambda config, rule, d: PmaPooler(d),
    "latent": lambda config, rule, d: LatentPooler(d, config.gat_hidden_dim),
    "glot": lambda config, rule, d: _glot(config, rule, d),
}
"""`--pooling_method` -> build(config, graph rule, d)."""

RESERVED = frozenset({*POOLERS, *RULES, "alignment", "crossglot"})
"""Names of poolers and graph rules that an installed package cannot take."""

CLASSES: dict[str, type[Pooler]] = {
    "cls": ClsPooler,
    "adapool": AdaPooler,
    "max": MaxPooler,
    "mean": MeanPooler,
    "mlp": MlpPooler,
    "weightedmean": WeightedMeanPooler,
    "std": StdPooler,
    "gated": GatedPooler,
    "pma": PmaPooler,
    "latent": LatentPooler,
    "glot": GlotPooler,
}
"""`--pooling_method` -> class."""


def _glot(config: "PoolerConfig", rule: GraphRule, in_dim: int) -> Pooler:
    projected = getattr(config, "input_proj", False)  # which modules that older versions saved do not say
    return GlotPooler(in_dim, config.gat_hidden_dim, config.num_layers, config.gnn_type, config.jk_mode, rule, projected)


def build_pooler(
    config: "PoolerConfig",
    graph: "GraphConfig",
    in_dim: int,
    graph_seed: int = 0,
    sources: dict[str, str] | None = None,
    layers: int = 1,
) -> Pooler:
    """Build the pooler that a configuration names, for tokens of width `in_dim`.

    `config.decoder_cls_last_token` is not validated here; callers must set it to False for encoders.

    Args:
        config: which pooler, and its sizes.
        graph: which tokens see each other.
        in_dim: d; of several layers, the widths of all together.
        graph_seed: of random graphs.
        sources: name -> source of a user's own pooler or rule, where it does not come from its file (a run folder, an export).
        layers: hidden layers whose states stand side by side in a token's state.

    Raises:
        ConfigError: unknown pooler, conv or jump, or own code that fails.
    """
    codes = own_codes(config, graph, sources or {})
    rule = make_rule(config, graph, graph_seed, sources)

    def build(width: int) -> Pooler:
        """A fresh pooler for tokens of a width."""
        if config.pooling_method in codes:
            return OwnPooler(codes[config.pooling_method], width, parse_options(config.pooler_options))
        return lookup(POOLERS, config.pooling_method, "pooling_method")(config, rule, width)

    return over_layers(build, in_dim, layers, config)


def over_layers(build: Callable[[int], Pooler], in_dim: int, layers: int, config: "PoolerConfig") -> Pooler:
    """A pooler for tokens of width `in_dim`: `build` itself, or with several hidden layers a `LayeredPooler` around it."""
    return build(in_dim) if layers == 1 else LayeredPooler(build, in_dim, layers, config.layer_mix)


def make_rule(config: "PoolerConfig", graph: "GraphConfig", graph_seed: int = 0, sources: dict[str, str] | None = None) -> GraphRule:
    """The rule of a configuration's token graph; see `build_pooler`.

    Raises:
        ConfigError: own code that fails.
    """
    codes = own_codes(config, graph, sources or {})
    rule = GraphRule(graph.graph_adj, graph.tau, graph.knn_k, graph.window_size, graph_seed)
    if graph.graph_adj not in codes:
        return rule
    return replace(rule, function=run_code(codes[graph.graph_adj], f"--graph_adj={graph.graph_adj}"))


def acting_names(config: "PoolerConfig", graph: "GraphConfig") -> dict[str, str]:
    """The pooler and, where it takes one, the graph rule that a configuration names, by flag."""
    named = {"pooling_method": config.pooling_method}
    if (config.pooling_method == "glot" and config.num_layers > 0) or (config.pooling_method == "crossglot" and graph.cross_inside):
        named["graph_adj"] = graph.graph_adj
    return named


def own_codes(config: "PoolerConfig", graph: "GraphConfig", sources: Mapping[str, str] | None = None) -> dict[str, OwnCode]:
    """The user's own definitions that a configuration names, by the names in it; from `sources` where they hold them.

    Raises:
        ConfigError: see `find_code`.
    """
    named, held = acting_names(config, graph), sources or {}
    own = {flag: name for flag, name in named.items() if name in held or (name not in RESERVED and is_own(name))}
    return {name: OwnCode(name, held[name]) if name in held else find_code(name, flag) for flag, name in own.items()}


def parse_options(text: str | None) -> dict[str, Any]:
    """`--pooler_options` as keyword arguments.

    Raises:
        ConfigError: not a mapping of names to values.
    """
    problem = f"--pooler_options={text}"
    with library_door(ConfigError, lambda error: f'{problem}: is no YAML ({reason(error)}); give e.g. {{"heads": 4}}'):
        found = yaml.safe_load(text or "{}")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f'{problem}: must map names to values, e.g. {{"heads": 4}}')
    return found
