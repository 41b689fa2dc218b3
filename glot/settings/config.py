"""The configuration of a run: frozen sections whose field names are the flag names. Nothing here imports anything heavy."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from glot.errors import CheckpointError, ConfigError, nearest
from glot.settings.backbone_sections import BackboneConfig
from glot.settings.checks import check
from glot.settings.data_sections import DataConfig, FilesConfig, StressConfig
from glot.settings.index import flag_facts, kinds, sections
from glot.settings.sections import (
    DEFAULT_PAIRS,
    ContrastiveConfig,
    GraphConfig,
    MtebConfig,
    OutputConfig,
    PoolerConfig,
    StoreConfig,
)
from glot.settings.training_sections import HeadConfig, TrainConfig

FORMER_DEFAULTS = {"train_file": DEFAULT_PAIRS, "num_eval_samples": 500}
"""Flags that had another default than None: older runs are found under it."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pooler: PoolerConfig = field(default_factory=PoolerConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stress: StressConfig = field(default_factory=StressConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
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
            ConfigError: a key that is no flag; the message suggests the nearest one.
        """
        unknown = [name for name in flat if name not in sections()]
        if unknown:
            raise ConfigError(*(f"{name}: no such flag{nearest(name, sections())}" for name in unknown))
        by_section: dict[str, dict[str, typing.Any]] = {}
        for name, value in flat.items():
            by_section.setdefault(sections()[name], {})[name] = _former(name, value)
        parts = {row.name: typing.get_type_hints(cls)[row.name] for row in dataclasses.fields(cls)}
        return cls(**{name: kind(**by_section.get(name, {})) for name, kind in parts.items()})

    def with_values(self, **values: typing.Any) -> "RunConfig":
        """A copy with some flags changed."""
        return RunConfig.from_dict({**self.to_dict(), **values})

    def checked(self) -> "RunConfig":
        """The configuration itself, if nothing is wrong with it.

        Raises:
            ConfigError: every mistake in values, combinations and paths, one line each.
        """
        problems = check(self)
        if problems:
            raise ConfigError(*problems)
        return self

    def determining(self) -> dict[str, typing.Any]:
        """Flag name -> value of all that can change a result."""
        facts, unset = flag_facts(), RunConfig().to_dict()
        found = {name: value for name, value in self.to_dict().items() if facts[name].identity}
        counting = {name: value for name, value in found.items() if not (facts[name].later and value == unset[name])}
        return counting | {name: value for name, value in FORMER_DEFAULTS.items() if counting[name] is None}

    def fingerprint(self, *also: str) -> str:
        """16 hex digits over all that can change a result, and over whatever `also` adds (data hash, versions)."""
        text = json.dumps([self.determining(), self.data_seed, also], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _former(name: str, value: typing.Any) -> typing.Any:
    """A value as it is written now: what is a choice today may have been a switch when a run was saved."""
    return flag_facts()[name].aliases.get(str(int(value)), str(int(value))) if isinstance(value, bool) and kinds()[name] is str else value


def read_config(path: Path) -> dict[str, typing.Any]:
    """What made a run or a checkpoint: {flags, resolved}.

    Raises:
        CheckpointError: missing, damaged, of another tool, or with flags that this version does not know.
    """
    if not path.is_file():
        inside = sorted(found.parent for found in path.parent.glob(f"*/{path.name}"))
        hint = f"one of the runs in it, such as {inside[0]}" if inside else "the folder of a finished run"
        raise CheckpointError(f"{path.parent}: no {path.name}; give {hint}")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(saved["flags"].keys() - sections().keys())
        complete = isinstance(saved["resolved"]["hidden_size"], int)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no configuration of a run of this toolkit") from error
    if unknown or not complete:
        raise CheckpointError(f"{path}: was written by another version (unknown: {', '.join(unknown) or 'the form of resolved'})")
    return saved


def refuse_folds(folder: Path, saved: dict[str, typing.Any]) -> None:
    """Refuse the folder of all folds, `saved` being its configuration: each fold has a model of its own.

    Raises:
        CheckpointError: it is one.
    """
    if saved["flags"].get("folds") and saved["flags"].get("fold") is None:
        raise CheckpointError(f"{folder}: was cross-validated and has a model for each fold; give one, such as {folder}/fold-0")


def read_saved(checkpoint: Path) -> dict[str, typing.Any] | None:
    """What made a checkpoint: of a run folder or of the file beside a `.pth`; None for a bare `.pth`.

    Raises:
        CheckpointError: there is no such checkpoint, it is one of several folds, or see `read_config`.
    """
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: not there; give a run folder or a .pth file")
    if checkpoint.is_dir():
        saved = read_config(checkpoint / "config.json")
        refuse_folds(checkpoint, saved)
        return saved
    if (checkpoint.parent / "config.json").is_file() and checkpoint.suffix != ".pth":
        raise CheckpointError(f"{checkpoint}: is a file of a run; give its folder, {checkpoint.parent}")
    path = checkpoint.with_name(checkpoint.name + ".json")
    return read_config(path) if path.is_file() else None


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that can change a number."""
    from glot import __version__

    found = {"glot": __version__}
    for library in ("torch", "transformers", "torch-geometric", "numpy", "scikit-learn", "scipy", "datasets"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # torch-geometric is an extra
            continue
    return found
