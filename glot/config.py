"""The configuration of a run: small frozen dataclasses whose field names are the flag names.

Numbers and combinations are checked here, names by the table that owns them. Nothing here imports anything heavy.
"""

import dataclasses
import hashlib
import json
import os
import re
import typing
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from glot.errors import CheckpointError
from glot.names import EMBEDDED_BACKBONES, FIXED_POOLERS

ROWS_WORDS = ("subset", "full")


@dataclass(frozen=True)
class BackboneConfig:
    """Which frozen language model, and what it reads."""

    model_name_or_path: str = "minilm"
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
        for name in ("store_dir", "data_dir", "override_precompute", "resume", "seeds", "num_workers", "save_dir"):
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


def read_saved(checkpoint: Path) -> dict[str, typing.Any] | None:
    """What made a checkpoint: {flags, resolved} of a run folder or of the file beside a `.pth`; None for a bare `.pth`.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if not checkpoint.exists():
        raise CheckpointError(f"--checkpoint_path={checkpoint}: not there; give a run folder, a .pth file, or standard for none")
    path = checkpoint / "config.json" if checkpoint.is_dir() else checkpoint.with_name(checkpoint.name + ".json")
    if checkpoint.is_dir() and not path.is_file():
        raise CheckpointError(f"--checkpoint_path={checkpoint}: no config.json in it; give the folder of a finished run")
    return json.loads(path.read_text()) if path.is_file() else None


LARGEST_SEED = 2**32 - 1
"""What every generator in use accepts."""
BOUNDS: dict[str, tuple[float, float]] = {
    "max_length": (1, 1 << 20),
    "scorer_hidden": (1, 1 << 20),
    "gat_hidden_dim": (1, 1 << 20),
    "num_layers": (0, 64),
    "knn_k": (1, 1 << 20),
    "window_size": (1, 1 << 20),
    "num_eval_samples": (1, 1 << 30),
    "distractor_ratio": (0, 1),
    "relational_distance": (0, 1 << 20),
    "epochs": (1, 1 << 20),
    "batch_size": (1, 1 << 20),
    "eval_batch_size": (1, 1 << 20),
    "lr": (0, 1e3),
    "backbone_lr": (0, 1e3),
    "weight_decay": (0, 1e3),
    "seed": (0, LARGEST_SEED),
    "data_seed": (0, LARGEST_SEED),
    "num_workers": (0, 256),
    "log_every": (1, 1 << 30),
    "proj_dim": (1, 1 << 20),
    "temperature": (1e-6, 1e3),
    "hard_negatives": (0, 1 << 10),
    "mteb_max_length": (1, 1 << 20),
}
"""Flag -> smallest and largest value, both allowed."""


def check(config: RunConfig) -> list[str]:
    """Every mistake in numbers, combinations and paths, one line each; an empty list is a good configuration."""
    flat = config.to_dict()
    problems = [
        f"--{name}={flat[name]}: must be between {low:g} and {high:g}"
        for name, (low, high) in BOUNDS.items()
        if flat[name] is not None and not low <= flat[name] <= high
    ]
    if not -1 <= config.graph.tau < 1:
        problems.append(f"--tau={config.graph.tau}: must be at least -1 and below 1 (an edge needs cosine > tau)")
    if not 0 < config.data.heldout_fraction < 1:
        problems.append(f"--heldout_fraction={config.data.heldout_fraction}: must be above 0 and below 1")
    for one in (_check_rows, _check_pooler, _check_backbone, _check_stress, _check_seeds, _check_folders):
        problems += one(config)
    return problems


def _check_rows(config: RunConfig) -> list[str]:
    rows = config.data.num_train_samples
    if rows in ROWS_WORDS or (rows.isdecimal() and int(rows) > 0):
        return []
    return [f"--num_train_samples={rows}: must be subset, full or a number of rows above 0"]


def _check_pooler(config: RunConfig) -> list[str]:
    pooler = config.pooler
    if pooler.pooling_method == "glot" and pooler.num_layers == 0 and pooler.jk_mode != "cat":
        return [f"--jk_mode={pooler.jk_mode}: with --num_layers=0 there is nothing to join; use cat, or at least one layer"]
    if config.data.task == "embedding" and pooler.pooling_method in FIXED_POOLERS:
        return [f"--pooling_method={pooler.pooling_method}: has no weights, so there is nothing to train; use it with --task=mteb as it is"]
    if pooler.pooling_method == "mlp" and pooler.num_layers == 0:
        return ["--num_layers=0: the mlp pooler needs at least one layer"]
    return []


def _check_backbone(config: RunConfig) -> list[str]:
    backbone, problems = config.backbone, []
    if not re.fullmatch(r"-?\d+|mean4", backbone.hidden_layer):
        problems.append(f"--hidden_layer={backbone.hidden_layer}: must be an index (0 = embeddings, -1 = last) or mean4")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", backbone.device):
        problems.append(f"--device={backbone.device}: must be auto, cpu, mps, cuda or cuda:N")
    if config.mteb.return_all_hidden_states:
        problems.append("--return_all_hidden_states=1: must be 0; choose layers with --hidden_layer")
    if backbone.finetune_backbone and config.store.precompute_hidden_states:
        problems.append("--precompute_hidden_states=1: stored states cannot train the backbone; with --finetune_backbone=1 use 0")
    if backbone.finetune_backbone and backbone.backbone_dtype != "float32":
        problems.append(f"--backbone_dtype={backbone.backbone_dtype}: would round small updates away; fine-tune in float32")
    return problems + _check_model_name(backbone.model_name_or_path)


def _check_stress(config: RunConfig) -> list[str]:
    if config.stress.stress_variant == "relational" and config.stress.relational_distance < 1:
        return ["--relational_distance=0: the relational variant needs at least 1, or two neighbouring words would tell the label"]
    return []


def _check_model_name(name: str) -> list[str]:
    if name in EMBEDDED_BACKBONES:
        return []
    path = Path(name).expanduser()
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        return [f"--model_name_or_path={name}: no model folder there (a folder with config.json), and no hub id either"]
    if not looks_local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return [f"--model_name_or_path={name}: must be minilm, smollm2, a local folder or a hub id (owner/name)"]
    return []


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


def _check_seeds(config: RunConfig) -> list[str]:
    if config.train.seeds is None:
        return []
    if os.environ.get("WANDB_SWEEP_ID"):
        return [
            f"--seeds={config.train.seeds}: a wandb agent counts one run for one process; put seed: {{values: [...]}} into the sweep file"
        ]
    try:
        parse_seeds(config.train.seeds)
    except ValueError:
        return [f"--seeds={config.train.seeds}: must be different numbers such as 0,1,2 or 0..9"]
    return []


def _check_folders(config: RunConfig) -> list[str]:
    problems = []
    if config.data.data_dir is not None and not Path(config.data.data_dir).is_dir():
        problems.append(
            f"--data_dir={config.data.data_dir}: no such folder (the flag's, or GLOT_DATA_DIR's); "
            "it should hold e.g. nyu-mll/glue/cola/train.jsonl"
        )
    folders = {"output_dir": config.output.output_dir, "store_dir": config.store.store_dir}
    if config.data.task == "embedding":
        folders["save_dir"] = config.contrastive.save_dir
        if not Path(config.contrastive.train_file).is_file():
            problems.append(
                f"--train_file={config.contrastive.train_file}: no such file; JSON lines {{query, pos, neg}}, .jsonl or .jsonl.gz"
            )
    for flag, folder in folders.items():
        path = Path(folder).absolute()
        while not path.exists():
            path = path.parent
        if not path.is_dir() or not os.access(path, os.W_OK):
            problems.append(f"--{flag}={folder}: cannot be written ({path} is not a writable folder)")
    name = config.output.run_name
    if name is not None and (name in ("", ".", "..") or "/" in name):
        problems.append(f"--run_name={name}: must be a folder name without slashes")
    return problems


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that can change a number."""
    from glot import __version__

    found = {"glot": __version__}
    for library in ("torch", "transformers", "torch-geometric", "numpy", "scikit-learn", "scipy", "datasets"):
        found[library] = metadata.version(library)
    return found
