"""Resolve a model's name to a local folder or a hub repository, without heavy imports, so that a wrong name fails at once."""

import re
from pathlib import Path

from glot.cache import read_facts
from glot.errors import ConfigError, reason

CONFIG_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin", "*.gguf")
POINTER = b"version https://git-lfs"
"""First bytes of a git-lfs pointer file."""
HUB_NAME = r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?"


def expand_user(text: str) -> Path:
    """A path with `~` replaced by the home folder; unchanged where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def local_folder(name: str, folder: str | Path | None = None) -> Path | None:
    """The folder that a name refers to, or None for a hub id.

    Args:
        name: as in `--model_name_or_path`.
        folder: where a run found its local model. It is tried first, because a relative name depends on the working directory.

    Raises:
        ConfigError: a folder that is not there or holds no model, or a name that is neither a path nor a hub id.
    """
    if folder is not None and Path(folder).is_dir():
        return _check_folder(name, Path(folder))
    local = expand_user(name)
    try:
        is_folder, is_file = local.is_dir(), local.is_file()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model_name_or_path={name}: cannot be looked up ({reason(error)}); check the path") from error
    if is_folder:
        return _check_folder(name, local)
    if is_file:
        raise ConfigError(f"--model_name_or_path={name}: is a file; name the folder that holds it")
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.partition("@")[0].count("/") > 1:
        raise ConfigError(f"--model_name_or_path={name}: no model folder there; check the path, or name a model of the hub as owner/name")
    if not re.fullmatch(HUB_NAME, name):
        raise ConfigError(
            f"--model_name_or_path={name}: must be minilm, smollm2, a local folder or a hub id (owner/name, owner/name@revision)"
        )
    return None


def split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """`owner/name@revision` -> repository and revision; `revision` is the value of `--revision`.

    Raises:
        ConfigError: name and flag ask for different revisions.
    """
    repository, _, named = name.partition("@")
    if named and revision not in (None, named):
        raise ConfigError(f"--revision={revision}: the name asks for another one ({named}); leave one of them out")
    return repository, revision or named or None


def _check_folder(name: str, folder: Path) -> Path:
    """The folder, if it holds a model of transformers.

    Raises:
        ConfigError: an adapter, or no configuration. The message says what the folder holds.
    """
    has_weights = any(True for pattern in WEIGHT_FILES for _ in folder.glob(pattern))
    if (folder / ADAPTER_FILE).is_file():
        if has_weights:  # transformers would add the adapter to them, or take its base in their place
            raise ConfigError(
                f"--model_name_or_path={name}: holds weights and an adapter beside them; "
                f"where it is merged into the weights, remove {ADAPTER_FILE} and the adapter's own weights"
            )
        raise ConfigError(adapter_line(name, folder / ADAPTER_FILE))
    for path in folder.iterdir():
        _check_file(name, path)
    if not (folder / CONFIG_FILE).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"it holds {', '.join(inside)}, name one of those" if inside else "name a folder that save_pretrained wrote"
        raise ConfigError(f"--model_name_or_path={name}: no model folder there, it holds no {CONFIG_FILE}; {hint}")
    return folder


def _check_file(name: str, path: Path) -> None:
    """Refuse files without their content.

    Raises:
        ConfigError: a link without its target, a git-lfs pointer, or a file that may not be read.
    """
    where = f"--model_name_or_path={name}: {path.name}"
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{where} is a link to {path.readlink()}, which is not there; fetch the model again")
    if not path.is_file():
        return
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}); check its permissions") from error
    if start == POINTER:
        raise ConfigError(f"{where} is a pointer of git-lfs, not the file; fetch it with `git lfs pull`")


def adapter_line(name: str, file: Path) -> str:
    """The error message for a folder or repository that holds an adapter; `file` is its configuration."""
    facts = read_facts(file)
    return (
        f"--model_name_or_path={name}: is an adapter ({facts.get('peft_type', 'of peft')}) for {facts.get('base_model_name_or_path')}, "
        "not a model; merge it into its base (peft: merge_and_unload, then save_pretrained) and name that folder"
    )
