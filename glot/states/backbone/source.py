"""Find a backbone by name without loading its weights: an embedded package, a local folder or a hub repository."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from glot.errors import ConfigError, library_door, nearest, reason
from glot.hub import cache_where_unreachable, explain, fetch_file, is_cached
from glot.locate import ADAPTER_FILE, CONFIG_FILE, adapter_line, local_folder, split_revision
from glot.states.backbone.embedded import EMBEDDED, embedded_folder
from glot.states.backbone.hashes import hash_folder

AGAIN = "check its files, or fetch the model again"
LAYERS_IN_MEAN = 4
"""Number of hidden states that `mean4` averages."""


def quiet_library() -> None:
    """Switch off progress bars and warnings of transformers in this process."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@dataclass(frozen=True)
class BackboneSource:
    """A backbone that was found but not loaded. Its configuration's values are claims; `Backbone` measures the loaded model.

    Attributes:
        name: as the user wrote it.
        path: local folder, or hub id.
        identity: hub id and commit, or a hash over the folder's files. Equal identity means equal states.
        config: the configuration object of transformers.
        trust_remote_code: run code that comes with the model.
        revision: commit of a hub repository; None for a local folder.
        merge: adds a trained adapter to the loaded model; None = there is none.

    Examples:
        >>> source = find_backbone("minilm")
        >>> source.resolve_layer("-1")
    """

    name: str
    path: str
    identity: str
    config: Any
    trust_remote_code: bool = False
    revision: str | None = None
    merge: Callable[[Any], Any] | None = None

    @property
    def folder(self) -> Path | None:
        """Absolute path of a local model; None for hub and embedded models, which any machine finds by name."""
        return Path(self.path).resolve() if self.revision is None and self.name not in EMBEDDED else None

    @property
    def files(self) -> Path:
        """Folder of its files on this machine, once they are loaded."""
        return Path(self.path) if self.revision is None else fetch_file(self.path, CONFIG_FILE, self.revision).parent

    @property
    def options(self) -> dict[str, Any]:
        """Options of every `from_pretrained` of this backbone."""
        return {"trust_remote_code": self.trust_remote_code} | ({} if self.revision is None else {"revision": self.revision})

    @property
    def is_decoder(self) -> bool:
        """Whether tokens see only earlier tokens, guessed from type and architecture. `Backbone.is_causal` is measured."""
        kind = self.config.model_type
        only_generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        own_code = set(getattr(self.config, "auto_map", None) or {})
        own_decoder = "AutoModelForCausalLM" in own_code and "AutoModelForMaskedLM" not in own_code
        return only_generates or own_decoder or bool(getattr(self.config, "is_decoder", False))

    @property
    def _text_config(self) -> Any:
        """The part that describes the model that is read: of an encoder without its decoder that of the encoder (T5Gemma)."""
        encoder = getattr(self.config, "encoder", None) if lone_encoder(self.config) is not None else None
        return (encoder if isinstance(encoder, PreTrainedConfig) else self.config).get_text_config()

    @property
    def position_claim(self) -> int | None:
        """Number of positions that the configuration claims; None where it gives no usable value (absent, None, -1)."""
        claim = getattr(self._text_config, "max_position_embeddings", None)
        return claim if isinstance(claim, int) and claim > 0 else None

    @property
    def vocabulary_claim(self) -> int | None:
        """Vocabulary size that the configuration claims; None where it gives none."""
        claim = getattr(self._text_config, "vocab_size", None)
        return claim if isinstance(claim, int) and claim > 0 else None

    @property
    def width_claim(self) -> int | None:
        """The width d that the configuration claims; None where it does not say."""
        claim = getattr(self._text_config, "hidden_size", None)
        return claim if isinstance(claim, int) and claim > 0 else None

    def check_length(self, max_length: int) -> None:
        """Refuse a length that the configuration already rules out, before anything is loaded.

        Raises:
            ConfigError: the model has fewer positions.
        """
        if self.position_claim is not None and max_length > self.position_claim:
            raise ConfigError(f"--max_length={max_length}: {self.name} reads at most {self.position_claim} tokens")

    @cached_property
    def num_layers(self) -> int:
        """Number of hidden layers; hidden state 0 is the embeddings.

        Raises:
            ConfigError: neither the configuration nor the model's structure gives it.
        """
        claim = getattr(self._text_config, "num_hidden_layers", None)
        return claim if isinstance(claim, int) and claim > 0 else self._count_blocks()

    def _count_blocks(self) -> int:
        """Length of the model's longest list of blocks, read from a copy on the meta device."""

        def describe(error: Exception) -> str:
            return (
                f"--model_name_or_path={self.name}: its configuration names no number of layers, and it cannot be built ({reason(error)})"
            )

        with library_door(ConfigError, describe), torch.device("meta"):
            model = transformers.AutoModel.from_config(self.config, trust_remote_code=self.trust_remote_code)
        lengths = [len(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
        if not any(lengths):
            raise ConfigError(f"--model_name_or_path={self.name}: neither its configuration nor its structure tells how many layers it has")
        return max(lengths)

    def import_code(self) -> None:
        """Import the model's code, by building it without memory; what is timed or weighed afterwards is the model alone."""
        self._count_blocks()

    def resolve_layer(self, hidden_layer: str) -> str:
        """`-1` or `6` -> `6`, so that equal states have one name; `mean4` stays.

        Raises:
            ConfigError: the model has no such layer.
        """
        lowest = 0
        if hidden_layer == "mean4":
            lowest, index = LAYERS_IN_MEAN - 1, self.num_layers
        else:
            index = int(hidden_layer) + (self.num_layers + 1) * (int(hidden_layer) < 0)
        if not lowest <= index <= self.num_layers:
            raise ConfigError(
                f"--hidden_layer={hidden_layer}: {self.name} has hidden states 0 (embeddings) to {self.num_layers}, or -1 for the last"
            )
        return hidden_layer if hidden_layer == "mean4" else str(index)

    def resolve_layers(self, hidden_layer: str) -> tuple[str, ...]:
        """`-1` -> (`6`,); `all`, `0,3,-1` and `every:3` -> (`0`, `3`, `6`): indices in rising order. `every` ends with the last layer.

        Raises:
            ConfigError: the model has no such layer, or one is named twice.
        """
        if hidden_layer == "all" or hidden_layer.startswith("every:"):
            step = 1 if hidden_layer == "all" else int(hidden_layer.removeprefix("every:"))
            return tuple(map(str, sorted({*range(0, self.num_layers + 1, step), self.num_layers})))
        if "," not in hidden_layer:
            return (self.resolve_layer(hidden_layer),)
        try:
            found = [int(self.resolve_layer(layer)) for layer in hidden_layer.split(",")]
        except ConfigError as error:
            raise ConfigError(error.problems[0].replace("--hidden_layer=", f"--hidden_layer={hidden_layer}: ", 1)) from error
        twice = next((layer for layer in found if found.count(layer) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"--hidden_layer={hidden_layer}: names layer {twice} of {self.name} twice (-1 is {self.num_layers}); name it once"
            )
        return tuple(map(str, sorted(found)))


def find_backbone(
    name: str, trust_remote_code: bool = False, revision: str | None = None, folder: str | Path | None = None
) -> BackboneSource:
    """Find a backbone by name (minilm, smollm2, a local folder, a hub id, `id@revision`) without loading its weights.

    Args:
        name: as in `--model_name_or_path`.
        trust_remote_code: as the flag.
        revision: branch, tag or commit of a hub repository.
        folder: where a run found its local model. It is tried first, because a relative name depends on the working directory.

    Raises:
        ConfigError: not there, not readable, or of a kind that has no plain hidden states.
    """
    local = _model_folder(name, folder)
    if local is not None:
        if revision is not None:
            raise ConfigError(f"--revision={revision}: {name} is no repository of the hub; leave the flag out")
        return replace(open_folder(name, local, trust_remote_code), identity=hash_folder(local))
    repository, wanted = split_revision(name, revision)
    commit = _find_commit(name, repository, wanted)
    config = _read_config(name, repository, {"trust_remote_code": trust_remote_code, "revision": commit})
    return BackboneSource(name, repository, f"{repository}@{commit}", config, trust_remote_code, commit)


def identity_of(name: str, revision: str | None = None, folder: str | Path | None = None) -> str:
    """The identity of a backbone, by its files alone: nothing of it is run. Arguments as in `find_backbone`.

    Raises:
        ConfigError: not there.
    """
    local = _model_folder(name, folder)
    if local is not None:
        return hash_folder(local)
    repository, wanted = split_revision(name, revision)
    return f"{repository}@{_find_commit(name, repository, wanted)}"


def open_folder(name: str, folder: Path, trust_remote_code: bool = False) -> BackboneSource:
    """The backbone in a folder, with an empty identity, because its files are not hashed.

    Raises:
        ConfigError: see `find_backbone`.
    """
    return BackboneSource(
        name, str(folder), "", _read_config(name, str(folder), {"trust_remote_code": trust_remote_code}), trust_remote_code
    )


def _model_folder(name: str, folder: str | Path | None) -> Path | None:
    """The folder that a name refers to; None for a hub id."""
    if name in EMBEDDED:
        return embedded_folder(name)
    return local_folder(name, folder)


def _find_commit(name: str, repository: str, revision: str | None) -> str:
    """The commit of a hub repository, read from the path of its cached configuration.

    Raises:
        ConfigError: the hub gives no configuration; the message says why and what to do.
    """
    asks = not is_cached(repository, CONFIG_FILE, revision)
    try:
        with library_door(ConfigError, lambda error: _hub_line(name, error, revision)):
            found = fetch_file(repository, CONFIG_FILE, revision).parent
    except ConfigError as refused:
        if type(refused.__cause__).__name__ != "RemoteEntryNotFoundError":
            raise
        with library_door(ConfigError, lambda _: f"--model_name_or_path={name}: the repository holds no {CONFIG_FILE}; name a model"):
            adapter = fetch_file(repository, ADAPTER_FILE, revision)
        raise ConfigError(adapter_line(name, adapter)) from refused
    if asks:
        with contextlib.suppress(ConfigError), library_door(ConfigError, reason):  # that there is no adapter is no mistake
            fetch_file(repository, ADAPTER_FILE, found.name)
    if is_cached(repository, ADAPTER_FILE, found.name):  # transformers would load its base in place of this repository
        raise ConfigError(adapter_line(name, found / ADAPTER_FILE))
    return found.name


def _hub_line(name: str, error: BaseException, revision: str | None = None) -> str:
    meant = nearest(name.partition("@")[0], EMBEDDED)
    found = explain(error, revision)
    return f"--model_name_or_path={name}: {f'{found}{meant}' if found else f'its configuration cannot be read ({reason(error)}); {AGAIN}'}"


def _read_config(name: str, path: str, options: dict[str, Any]) -> Any:
    """The configuration object of transformers.

    Raises:
        ConfigError: not readable, of an unknown type, or an encoder-decoder that was not saved as an encoder alone.
    """

    def describe(error: Exception) -> str:
        if "trust_remote_code" in str(error) and not options["trust_remote_code"]:
            return f"--model_name_or_path={name}: comes with code of its own; --trust_remote_code=1 runs the model's own code"
        return _hub_line(name, error, options.get("revision"))

    with library_door(ConfigError, describe), cache_where_unreachable(is_local="revision" not in options):
        config = transformers.AutoConfig.from_pretrained(path, **options)
    if getattr(config, "is_encoder_decoder", False) and lone_encoder(config) is None:
        raise ConfigError(
            f"--model_name_or_path={name}: encoder-decoder models ({config.model_type}) have no single row of token states; "
            "save its encoder alone (e.g. T5EncoderModel) and name that folder, or use an encoder or a decoder"
        )
    return config


def lone_encoder(config: Any) -> Any:
    """The transformers class of an encoder saved without its decoder (`architectures`: T5EncoderModel); None for other models."""
    named = next(iter(getattr(config, "architectures", None) or ()), "")
    return getattr(transformers, named, None) if named.endswith("EncoderModel") else None
