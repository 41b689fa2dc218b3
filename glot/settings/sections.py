"""The sections of a run's configuration: one field per flag, and beside it everything that is known of the flag.

Parser, help, checks, effects, fingerprint and what a checkpoint brings are read from here. A new flag is a new field and nothing else.
Nothing here imports anything heavy.
"""

from dataclasses import dataclass
from pathlib import Path

from glot.given import split_paths
from glot.locate import expand_user
from glot.settings.backbone_sections import BackboneConfig
from glot.settings.choices import (
    CROSS_GRAPHS,
    DTYPES,
    GNN_TYPES,
    GRAPHS,
    JK_MODES,
    LAYER_MIXES,
    POOLERS,
    TRACKERS,
)
from glot.settings.data_sections import DataConfig, FilesConfig, StressConfig
from glot.settings.facts import DATA, MANY, OUTPUT, POOLER, STORE, TRAINING, VAST, WEIGHTS, flag
from glot.settings.training_sections import HeadConfig, TrainConfig

DEFAULT_PAIRS = "./data/msmarco-triplets.jsonl"
"""`--train_file` of `--task=embedding` where it is unset."""


@dataclass(frozen=True)
class PoolerConfig:
    """Which pooler, and its sizes."""

    pooling_method: str = flag(
        "max",
        POOLER,
        "how token states become one vector; or your own class: file.py:Name, package.module:Name",
        choices=POOLERS,
        brought=WEIGHTS,
        own=True,
    )
    decoder_cls_last_token: bool = flag(
        False, POOLER, "1 = cls takes the last real token of a decoder (stress: unset = 1 for decoders)", acts="cls", rare=True
    )
    scorer_hidden: int = flag(
        256, POOLER, "width of AdaPool's scorer; GLOT's follows from D", bounds=(1, MANY), acts="adapool", brought=WEIGHTS
    )
    layer_mix: str = flag(
        "concat",
        POOLER,
        "several hidden layers: concat = side by side, one pooler; scalar = their learnt weighted sum; stack = a pooler for each",
        choices=LAYER_MIXES,
        acts="several",
        ours=True,
        later=True,
        brought=WEIGHTS,
    )
    gnn_type: str = flag("gat", POOLER, "convolution of GLOT", choices=GNN_TYPES, acts="convs", brought=WEIGHTS)
    gat_hidden_dim: int = flag(
        128,
        POOLER,
        "h, width of the convolutions (glot, crossglot) or layers (mlp); rows of the dictionary (latent)",
        bounds=(1, MANY),
        acts="width",
        brought=WEIGHTS,
    )
    num_layers: int = flag(
        2,
        POOLER,
        "K, number of convolutions (glot, crossglot; glot: 0 = scored pooling of raw tokens) or layers (mlp)",
        bounds=(0, 64),
        acts="layers",
        brought=WEIGHTS,
    )
    jk_mode: str = flag(
        "cat",
        POOLER,
        "how the layers are joined; cat keeps the raw token, none takes the last layer alone",
        choices=JK_MODES,
        acts="glot",
        brought=WEIGHTS,
    )
    input_proj: bool = flag(
        False,
        POOLER,
        "1 = GLOT projects the tokens to width h before its layers",
        acts="convs",
        ours=True,
        later=True,
        brought=WEIGHTS,
        rare=True,
    )
    pooler_options: str | None = flag(
        None,
        POOLER,
        'arguments of your own class as JSON or YAML: {"heads": 4}',
        acts="own",
        ours=True,
        later=True,
        brought=WEIGHTS,
        rare=True,
    )


@dataclass(frozen=True)
class GraphConfig:
    """Which tokens see each other."""

    graph_adj: str = flag(
        "threshold",
        POOLER,
        "which tokens are joined; none = self-loops only; or your own rule: file.py:name",
        choices=GRAPHS,
        acts="graph",
        brought=WEIGHTS,
        own=True,
    )
    tau: float = flag(0.3, POOLER, "cosine above which two tokens are joined, in [-1, 1)", acts="tau", brought=WEIGHTS)
    knn_k: int = flag(8, POOLER, "neighbours of a token", bounds=(1, MANY), acts="knn", ours=True, brought=WEIGHTS, rare=True)
    window_size: int = flag(
        2,
        POOLER,
        "distance in the text up to which tokens are joined",
        bounds=(1, MANY),
        acts="window",
        ours=True,
        brought=WEIGHTS,
        rare=True,
    )
    cross_adj: str = flag(
        "threshold",
        POOLER,
        "which tokens of the other sentence are joined (crossglot); shuffled = of another row's, a control (alignment too)",
        choices=CROSS_GRAPHS,
        acts="across",
        ours=True,
        later=True,
        brought=WEIGHTS,
    )
    cross_inside: bool = flag(
        False,
        POOLER,
        "1 = crossglot also joins tokens of one sentence, by --graph_adj",
        acts="crossglot",
        ours=True,
        later=True,
        brought=WEIGHTS,
        rare=True,
    )


@dataclass(frozen=True)
class StoreConfig:
    """Hidden states on disk."""

    precompute_hidden_states: bool = flag(
        True, STORE, "1 = encode once and keep the states on disk; 0 = encode in every epoch", acts="trains"
    )
    override_precompute: bool = flag(False, STORE, "1 = build the store anew", acts="stored", identity=False, rare=True)
    store_dir: str = flag(
        "data/hidden", STORE, "where stores live (or GLOT_STORE_DIR)", acts="store", ours=True, identity=False, environment="GLOT_STORE_DIR"
    )
    store_dtype: str = flag("float16", STORE, "precision on disk", choices=DTYPES, acts="store", ours=True, rare=True)
    resume: bool = flag(
        True,
        STORE,
        "1 = go on with a half-written store and with an unfinished run of the same flags; 0 = begin both anew",
        acts="trains",
        ours=True,
        identity=False,
    )


@dataclass(frozen=True)
class OutputConfig:
    """Where results go, and how much is said."""

    output_dir: str = flag("runs", OUTPUT, "one folder per run is made under it", ours=True, identity=False)
    run_name: str | None = flag(None, OUTPUT, "folder name; unset = task, pooler, seed and fingerprint", ours=True, identity=False)
    overwrite: bool = flag(False, OUTPUT, "1 = replace a run folder of the same name", ours=True, identity=False)
    report_to: str = flag(
        "auto",
        OUTPUT,
        "one or several with commas; auto = wandb when WANDB_MODE or WANDB_SWEEP_ID is set, else none",
        choices=TRACKERS,
        many=True,
        ours=True,
        identity=False,
    )
    log_every: int = flag(
        10, OUTPUT, "steps between two logged losses", bounds=(1, VAST), acts="trains", ours=True, identity=False, rare=True
    )
    verbose: bool = flag(True, OUTPUT, "0 = no bars and no line per epoch", identity=False)
    estimate: bool = flag(
        False,
        OUTPUT,
        "1 = print tokens, bytes and time of the store from a sample, and stop",
        acts="trains",
        ours=True,
        identity=False,
        switch=True,
    )
    dry_run: bool = flag(
        False,
        OUTPUT,
        "1 = read the data, look at the model's configuration, print the plan, and stop",
        acts="trains",
        ours=True,
        identity=False,
        switch=True,
    )


@dataclass(frozen=True)
class ContrastiveConfig:
    """Contrastive training on pairs (`--task=embedding`)."""

    train_file: str | None = flag(
        None,
        DATA,
        "embedding: rows {query, pos, neg}, .jsonl or .jsonl.gz; unset = ./data/msmarco-triplets.jsonl. custom: csv, tsv, jsonl, json or "
        "parquet, also .gz; a pattern, a comma list, or hub:owner/name[:config][@revision]",
        acts="files",
    )
    skip_bad_rows: bool = flag(
        False, DATA, "1 = count malformed rows of --train_file instead of stopping", acts="embedding", ours=True, rare=True
    )
    temperature: float = flag(0.07, TRAINING, "of the contrastive loss", bounds=(1e-06, 1000.0), acts="embedding", rare=True)
    contrastive_normalize: bool = flag(
        False, TRAINING, "1 = vectors of length one before the dot product", acts="embedding", ours=True, rare=True
    )
    hard_negatives: int = flag(
        0, TRAINING, "negatives of each row that join the batch", bounds=(0, 1024), acts="embedding", ours=True, rare=True
    )
    save_dir: str = flag(
        "./saved_models/",
        OUTPUT,
        "where embedding checkpoints go (with --seeds each stays in its run folder)",
        acts="released",
        identity=False,
        rare=True,
    )
    proj_dim: int = flag(256, OUTPUT, "part of the embedding checkpoint's name", bounds=(1, MANY), acts="embedding", rare=True)

    @property
    def pairs_file(self) -> str:
        """The file of pairs: `--train_file`, or its default."""
        return str(expand_user(self.train_file)) if self.train_file else DEFAULT_PAIRS


@dataclass(frozen=True)
class MtebConfig:
    """Evaluation on MTEB (`--task=mteb`)."""

    checkpoint_path: str = flag("standard", OUTPUT, "a run folder or a .pth file, or several with commas; standard = none", acts="mteb")
    mteb_poolers: str | None = flag(
        None, OUTPUT, "poolers without training that are scored too, from the same pass: mean,cls", acts="mteb", ours=True, later=True
    )
    mteb_store: bool = flag(
        False,
        OUTPUT,
        "1 = keep token states by text under --store_dir: what was read before runs no backbone",
        acts="mteb",
        ours=True,
        later=True,
        rare=True,
    )
    mteb_task: str = flag("SciFact", OUTPUT, "task name, comma list or benchmark", acts="mteb")
    mteb_max_length: int = flag(512, OUTPUT, "tokens a text is cut to in mteb", bounds=(1, MANY), acts="mteb", ours=True, rare=True)
    return_all_hidden_states: bool = flag(False, OUTPUT, "must be 0; known to the release's sweep file alone", acts="mteb", rare=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Where the weights of each trained pooler are."""
        if self.checkpoint_path in ("standard", ""):
            return []
        return split_paths(self.checkpoint_path)

    @property
    def checkpoint(self) -> Path | None:
        """The first of `checkpoints`; None for a pooler without training."""
        return next(iter(self.checkpoints), None)


SECTIONS: dict[str, type] = {
    "backbone": BackboneConfig,
    "pooler": PoolerConfig,
    "graph": GraphConfig,
    "data": DataConfig,
    "stress": StressConfig,
    "files": FilesConfig,
    "store": StoreConfig,
    "train": TrainConfig,
    "head": HeadConfig,
    "output": OutputConfig,
    "contrastive": ContrastiveConfig,
    "mteb": MtebConfig,
}
"""Field of `RunConfig` -> its class."""
