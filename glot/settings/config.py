"""The configuration of a run: small frozen dataclasses whose field names are the flag names. Nothing here imports anything heavy."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from glot.errors import CheckpointError


@dataclass(frozen=True)
class BackboneConfig:
    """Which frozen language model, and what it reads."""

    model_name_or_path: str = "minilm"
    revision: str | None = None
    prompts: str = "auto"
    exclude_prompt: bool = False
    max_length: int = 128
    adaptive_length: bool = False
    backbone_dtype: str = "float32"
    hidden_layer: str = "-1"
    trust_remote_code: bool = False
    finetune_backbone: bool = False
    backbone_lr: float = 2e-5
    device: str = "auto"


@dataclass(frozen=True)
class PoolerConfig:
    """Which pooler, and its sizes."""

    pooling_method: str = "max"
    decoder_cls_last_token: bool = False
    scorer_hidden: int = 256
    gnn_type: str = "gat"
    gat_hidden_dim: int = 128
    num_layers: int = 2
    jk_mode: str = "cat"


@dataclass(frozen=True)
class GraphConfig:
    """Which tokens see each other."""

    graph_adj: str = "threshold"
    tau: float = 0.3
    knn_k: int = 8
    window_size: int = 2


@dataclass(frozen=True)
class DataConfig:
    """Which task and rows."""

    task: str = "stsb"
    data_dir: str | None = None
    num_train_samples: str = "subset"
    eval_split: str | None = None
    label_scale: str = "0_1"
    selection: str = "best"
    heldout_fraction: float = 0.1
    data_seed: int | None = None


@dataclass(frozen=True)
class StressConfig:
    """The generated data of the stress test."""

    stress_variant: str = "faithful"
    num_eval_samples: int = 500
    distractor_ratio: float = 0.8
    signal_position: str = "random"
    relational_distance: int = 10


@dataclass(frozen=True)
class StoreConfig:
    """Hidden states on disk."""

    precompute_hidden_states: bool = True
    override_precompute: bool = False
    store_dir: str = "data/hidden"
    store_dtype: str = "float16"
    resume: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 2
    batch_size: int = 32
    eval_batch_size: int = 64
    lr: float = 2e-4
    weight_decay: float = 0.0
    seed: int = 42
    seeds: str | None = None
    order_seed: int | None = None
    stack_seeds: bool = False
    num_workers: int = 0


@dataclass(frozen=True)
class OutputConfig:
    """Where results go, and how much is said."""

    output_dir: str = "runs"
    run_name: str | None = None
    overwrite: bool = False
    report_to: str = "auto"
    log_every: int = 10
    verbose: bool = True
    estimate: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ContrastiveConfig:
    """Contrastive training on pairs (`--task=embedding`)."""

    train_file: str = "./data/msmarco-triplets.jsonl"
    skip_bad_rows: bool = False
    temperature: float = 0.07
    contrastive_normalize: bool = False
    hard_negatives: int = 0
    save_dir: str = "./saved_models/"
    proj_dim: int = 256


@dataclass(frozen=True)
class MtebConfig:
    """Evaluation on MTEB (`--task=mteb`)."""

    checkpoint_path: str = "standard"
    mteb_task: str = "SciFact"
    mteb_max_length: int = 512
    return_all_hidden_states: bool = False

    @property
    def checkpoint(self) -> Path | None:
        """Where the pooler's weights are; None for a pooler without training."""
        return None if self.checkpoint_path in ("standard", "") else Path(self.checkpoint_path).expanduser()


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pooler: PoolerConfig = field(default_factory=PoolerConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stress: StressConfig = field(default_factory=StressConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    mteb: MtebConfig = field(default_factory=MtebConfig)

    @property
    def data_seed(self) -> int:
        """The seed of generated data, held-out rows and random graphs: `--data_seed`, else `--seed`."""
        return self.train.seed if self.data.data_seed is None else self.data.data_seed

    @property
    def order_seed(self) -> int:
        """The seed of the batch order: `--order_seed`, else `--seed`."""
        return self.train.seed if self.train.order_seed is None else self.train.order_seed

    def to_dict(self) -> dict[str, typing.Any]:
        """Flat: flag name -> value."""
        flat: dict[str, typing.Any] = {}
        for section in dataclasses.fields(self):
            flat.update(dataclasses.asdict(getattr(self, section.name)))
        return flat

    @classmethod
    def from_dict(cls, flat: dict[str, typing.Any]) -> "RunConfig":
        """The inverse of `to_dict`; flags that are missing keep their defaults.

        Raises:
            KeyError: a key that is no flag.
        """
        by_section: dict[str, dict[str, typing.Any]] = {}
        for name, value in flat.items():
            by_section.setdefault(sections()[name], {})[name] = value
        parts = {row.name: typing.get_type_hints(cls)[row.name] for row in dataclasses.fields(cls)}
        return cls(**{name: kind(**by_section.get(name, {})) for name, kind in parts.items()})

    def with_values(self, **values: typing.Any) -> "RunConfig":
        """A copy with some flags changed."""
        return RunConfig.from_dict({**self.to_dict(), **values})

    def determining(self) -> dict[str, typing.Any]:
        """Flag name -> value of all that can change a result."""
        relevant = {name: value for name, value in self.to_dict().items() if sections()[name] not in ("output",)}
        # a revision is part of the backbone's identity as a commit, prompts where they are used part of the data's hash
        for name in (
            "revision",
            "prompts",
            "exclude_prompt",
            "store_dir",
            "data_dir",
            "override_precompute",
            "resume",
            "seeds",
            "stack_seeds",
            "num_workers",
            "save_dir",
        ):
            relevant.pop(name)
        return relevant

    def fingerprint(self, *also: str) -> str:
        """16 hex digits over all that can change a result, and over whatever `also` adds (data hash, versions)."""
        text = json.dumps([self.determining(), self.data_seed, also], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def sections() -> dict[str, str]:
    """Flag name -> the section of RunConfig that holds it."""
    hints = typing.get_type_hints(RunConfig)
    return {row.name: section for section, kind in hints.items() for row in dataclasses.fields(kind)}


@cache
def kinds() -> dict[str, type]:
    """Flag name -> str, int, float or bool; optional flags count as their type."""
    found = {}
    for kind in typing.get_type_hints(RunConfig).values():
        for name, hint in typing.get_type_hints(kind).items():
            found[name] = next(part for part in (*typing.get_args(hint), hint) if part is not type(None))
    return found


def read_config(path: Path) -> dict[str, typing.Any]:
    """What made a run or a checkpoint: {flags, resolved}.

    Raises:
        CheckpointError: missing, damaged, of another tool, or with flags that this version does not know.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no {path.name}; give the folder of a finished run")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(saved["flags"].keys() - sections().keys())
        complete = isinstance(saved["resolved"]["hidden_size"], int)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no configuration of a run of this toolkit") from error
    if unknown or not complete:
        raise CheckpointError(f"{path}: was written by another version (unknown: {', '.join(unknown) or 'the form of resolved'})")
    return saved


def read_saved(checkpoint: Path) -> dict[str, typing.Any] | None:
    """What made a checkpoint: of a run folder or of the file beside a `.pth`; None for a bare `.pth`.

    Raises:
        CheckpointError: there is no such checkpoint, or see `read_config`.
    """
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: not there; give a run folder or a .pth file")
    if checkpoint.is_dir():
        return read_config(checkpoint / "config.json")
    path = checkpoint.with_name(checkpoint.name + ".json")
    return read_config(path) if path.is_file() else None


LARGEST_SEED = 2**32 - 1
"""What every generator in use accepts."""
MOST_SEEDS = 10_000


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` or `0..9` (both ends in) or a mixture -> numbers in that order.

    Raises:
        ValueError: anything else, or a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        if int(last or first) - int(first) > MOST_SEEDS:
            raise ValueError(text)
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise ValueError(text)
    return seeds


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that can change a number."""
    from glot import __version__

    found = {"glot": __version__}
    for library in ("torch", "transformers", "torch-geometric", "numpy", "scikit-learn", "scipy", "datasets"):
        found[library] = metadata.version(library)
    return found
