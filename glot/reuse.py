"""Runs that are found by their fingerprint and done where they are missing: what studies and `--seeds` share."""

from pathlib import Path
from typing import Any

from glot.errors import GlotError
from glot.progress import Clock, warn
from glot.recipes import choose_training, run_mteb, train_stack
from glot.settings.choices import EVALUATIONS
from glot.settings.config import RunConfig
from glot.states.tokens import find_source, write_layers
from glot.training.folders import FolderTakenError, wait_until_free
from glot.training.run import find_finished, find_finished_stack, fingerprint_of, own_device, read_texts, resolve


def run_or_reuse(config: RunConfig, runs_dir: Path, anew: bool = False) -> str:
    """The folder of a finished run with this very fingerprint under `runs_dir`, run now if there is none (studies)."""
    where = {"output_dir": str(runs_dir), "overwrite": True, "verbose": False}
    if config.data.task in EVALUATIONS:  # mteb itself knows which tasks are finished
        return run_mteb(config.with_values(**where, run_name=config.fingerprint()), anew)["run_dir"]
    name = fingerprint_of(config)
    wait_until_free(runs_dir / name)  # the same study may be at work elsewhere
    own = config.with_values(**where, run_name=name, save_dir=str(runs_dir / name))
    if anew or find_finished(own, name) is None:
        try:
            choose_training(config)(own)
        except FolderTakenError:  # the same study, elsewhere, has begun it since
            wait_until_free(runs_dir / name)
            if find_finished(own, name) is None:
                raise
    return str(runs_dir / name)


def stack_or_reuse(configs: list[RunConfig], runs_dir: Path, anew: bool = False) -> list[str]:
    """`run_or_reuse` for configurations that differ in their seed alone: what is missing trains side by side, in the first one's order."""
    source = find_source(configs[0].backbone)
    settled = [resolve(config.with_values(order_seed=configs[0].order_seed), source)[0] for config in configs]
    names = [fingerprint_of(config) for config in settled]
    where = {"output_dir": str(runs_dir), "overwrite": True, "verbose": False}
    rows = [config.with_values(**where, run_name=name) for config, name in zip(settled, names, strict=True)]
    for name in names:
        wait_until_free(runs_dir / name)
    found = find_finished_stack(rows, names)
    missing = [row for row, result in zip(rows, found, strict=True) if anew or result is None]
    if missing:
        try:
            train_stack(missing)
        except FolderTakenError:  # as above
            for name in names:
                wait_until_free(runs_dir / name)
            if not all(find_finished_stack(rows, names)):
                raise
    return [str(runs_dir / name) for name in names]


def encode_once(configs: list[RunConfig]) -> float:
    """Write every store that these runs will read with all cores, the layers of one backbone in one pass; the seconds it took.

    A store that cannot be written is reported here and fails its runs later, not the study.
    """
    clock = Clock("load", "encode")
    groups: dict[RunConfig, dict[str, None]] = {}
    for config in configs:
        if config.store.precompute_hidden_states and config.data.task not in EVALUATIONS:
            parts: dict[str, Any] = {"data": config.data, "stress": config.stress, "store": config.store, "contrastive": config.contrastive}
            parts["files"] = config.files
            alike = RunConfig(config.backbone, **parts).with_values(hidden_layer="-1", data_seed=config.data_seed, selection="best")
            groups.setdefault(alike, {})[config.backbone.hidden_layer] = None
    for config, layers in groups.items():
        try:
            source = find_source(config.backbone)
            config, _ = resolve(config, source)
            wanted = dict.fromkeys(layer for one in layers for layer in source.resolve_layers(one))
            write_layers(config, source, read_texts(config, source)[1], list(wanted), own_device(config), clock)
        except GlotError as error:
            warn(f"cannot encode: {error}")
    return clock.seconds["encode"]
