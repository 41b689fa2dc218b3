"""A trained pooler and its backbone as modules of sentence-transformers.

This file and those that it imports are joined into one file in every export (see `bundle`), so that an export loads without this package.
"""

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import InputModule, Module
from torch import Tensor

from glot.nn.pooler import Pooler
from glot.nn.poolers import build_pooler
from glot.states.backbone.model import Backbone
from glot.states.backbone.source import BackboneSource, find_backbone, open_folder
from glot.states.backbone.weights import DTYPES
from glot.types import TokenBatch

BUNDLE = "glot_model.py"
"""The joined source file in the root of an export."""
BACKBONE_FILE = "backbone.json"
WEIGHTS_FILE = "model.safetensors"
PLACE = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
"""Options of `load` that determine where a model is read from."""


class BackboneModule(InputModule):
    """Texts -> `token_embeddings (B, L, d)` of one hidden layer, or (B, L, m d) of m, computed by the same code as in training.

    No chat template is applied, and states do not depend on padding. A text without tokens is read as one end token.

    Args:
        backbone: loaded.
        by_name: save the backbone's name and identity instead of its weights.

    Examples:
        >>> SentenceTransformer(modules=[BackboneModule(backbone), pooling])
    """

    def __init__(self, backbone: Backbone, by_name: bool = False) -> None:
        super().__init__()
        self.backbone, self.by_name = backbone, by_name
        self.model = backbone.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer object of transformers."""
        return self.backbone.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Number of tokens that a text is cut to. It can be set, up to the backbone's limit; with windows beyond it."""
        return self.backbone.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        length = min(value or self.backbone.longest, self.backbone.longest)
        self.backbone.check_length(length, flag="max_seq_length")
        self.backbone.max_length = length

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Token ids and mask (B, L), padded to the right, and `prompt_length` where there is a prompt.

        Raises:
            TypeError: an input is not a string.
        """
        other = next((text for text in inputs if not isinstance(text, str)), None)
        if other is not None:
            raise TypeError(f"this model reads texts, got {type(other).__name__}; pass a list of strings")
        tokeniser = self.backbone.tokeniser
        ids, _skips = tokeniser.tokenise(inputs, self.max_seq_length, prompt or "")
        padded, mask = self.backbone.reader.pad(ids)
        features = {"input_ids": padded.cpu(), "attention_mask": mask.long().cpu()}
        return features | ({"prompt_length": tokeniser.prompt_length(prompt)} if prompt else {})

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `token_embeddings`, zero on padding. Padding may be on either side."""
        input_ids = features["input_ids"]
        mask = features.get("attention_mask", torch.ones_like(input_ids)).bool().clone()
        mask[:, 0] |= ~mask.any(1)  # a text without tokens: its first position
        ids = [row[kept].tolist() for row, kept in zip(input_ids.cpu(), mask.cpu(), strict=True)]
        states = self.backbone.encode(ids).tokens
        embeddings = states.new_zeros((*mask.shape, states.shape[1]))
        embeddings[mask.to(states.device)] = states
        return {**features, "token_embeddings": embeddings}

    def get_embedding_dimension(self) -> int:
        """The width of the states: d, or m d."""
        return self.backbone.hidden_size

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write `backbone.json`, and the backbone's weights and tokenizer unless it is saved by name."""
        source, local = self.backbone.source, self.backbone.source.folder
        facts = {
            "name": str(local) if local is not None and self.by_name else source.name,
            "identity": source.identity,
            "by_name": self.by_name,
            "max_seq_length": self.max_seq_length,
            "layer": self.backbone.layer,
            "windows": self.backbone.windows,
            "dtype": self.backbone.reader.precision,
        }
        if not self.by_name:
            del facts["name"], facts["identity"]  # not needed beside the weights, and the name may be a local path
            self.backbone.save(Path(output_path))
        (Path(output_path) / BACKBONE_FILE).write_text(json.dumps(facts, indent=1) + "\n")
        _save_source(self, Path(output_path))

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "BackboneModule":
        """The inverse of `save`. A backbone by name is looked up on this machine or the hub.

        Raises:
            ValueError: it is not the one that the pooler was trained on; another precision or library.
        """
        place = {name: options[name] for name in PLACE if name in options}
        root = Path(str(cls.load_dir_path(model_name_or_path, **place)))
        facts = json.loads((root / BACKBONE_FILE).read_text())
        trust, given = bool(options.get("trust_remote_code")), dict(options.get("model_kwargs") or {})
        source = _find_named(model_name_or_path, facts, trust) if facts["by_name"] else open_folder(str(root), root, trust)
        asked = given.pop("dtype", given.pop("torch_dtype", None))
        dtype = facts["dtype"] if asked in (None, "auto") else str(asked).removeprefix("torch.")
        if dtype not in DTYPES or options.get("backend", "torch") != "torch":
            raise ValueError(f"this model is read by torch in {', '.join(DTYPES)}; not by {options.get('backend', 'torch')} in {dtype}")
        where = facts["layer"], torch.device("cpu"), given
        backbone = Backbone(source, facts["max_seq_length"], dtype, *where, facts.get("windows", ""))
        module = cls(backbone, facts["by_name"])
        module.max_seq_length = facts["max_seq_length"]
        return module


def _find_named(model: str, facts: dict[str, Any], trust: bool) -> BackboneSource:
    """The backbone that an export names.

    Raises:
        ValueError: the name refers to another backbone here.
    """
    name, identity = facts["name"], facts["identity"]
    repository, _, commit = identity.partition("@")
    pinned = commit if repository == name.partition("@")[0] else None
    source = find_backbone(repository if pinned else name, trust, pinned)
    if source.identity != identity:
        raise ValueError(
            f"{model} was trained on backbone {name} ({identity}); what is found under that name is another one ({source.identity})"
        )
    return source


class GlotPooling(Module):
    """Token states -> `sentence_embedding (B, D)`. States may be padded on either side, or flattened for FlashAttention.

    Where the pooler weighs tokens, `readout_weights` are added: (B, L) with zeros on padding, or (N,) for flattened input.

    Args:
        pooler: the pooler's flags.
        graph: the graph's flags.
        in_dim: d, or m d.
        graph_seed: seed of random graphs.
        include_prompt: False leaves the prompt's tokens out.
        sources: of the user's own code, by name.
        layers: m, hidden layers whose states stand side by side.

    Examples:
        >>> GlotPooling(dataclasses.asdict(config.pooler), dataclasses.asdict(config.graph), in_dim=384)
    """

    config_keys = ["pooler", "graph", "in_dim", "graph_seed", "include_prompt", "sources", "layers"]  # noqa: RUF012 - the library's own declaration

    def __init__(
        self,
        pooler: dict[str, Any],
        graph: dict[str, Any],
        in_dim: int,
        graph_seed: int = 0,
        include_prompt: bool = True,
        sources: dict[str, str] | None = None,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.pooler, self.graph, self.in_dim, self.graph_seed = pooler, graph, in_dim, graph_seed
        self.include_prompt, self.sources = include_prompt, sources
        flags = cast(Any, SimpleNamespace(**pooler)), cast(Any, SimpleNamespace(**graph))
        self.net = build_pooler(*flags, in_dim, graph_seed, sources, layers)
        self._weights = self.net.state_dict()
        object.__setattr__(self, "_saved", None)  # kept outside nn.Module's registry, so that `.to(dtype)` does not cast it

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding`, and `readout_weights` where the pooler weighs tokens."""
        states = features["token_embeddings"]
        kept = self._kept(features, states)
        flat, lengths = (states[0], features["cu_seq_lens_q"].diff()) if "cu_seq_lens_q" in features else (states.flatten(0, 1), None)
        counts = kept.sum(1) if lengths is None else torch.stack([part.sum() for part in kept.split(lengths.tolist())])
        places = kept.flatten().nonzero().squeeze(1)
        batch = TokenBatch.from_lengths(flat[places].float(), counts.cpu())  # pooling is in float32 even for a half-precision model
        features["sentence_embedding"], weights = self._float32(self.net).readout(batch)
        if weights is not None:
            features["readout_weights"] = weights.new_zeros(kept.numel()).index_put((places,), weights).view(kept.shape)
        return features

    def _float32(self, net: Pooler) -> Pooler:
        """The pooler with its float32 weights, because sentence-transformers casts every module to the backbone's precision."""
        weight = _first(net)
        if weight is None or weight.dtype == torch.float32:
            return net
        saved = None if self._saved is None else _first(self._saved)
        if saved is None or saved.device != weight.device:
            whole = copy.deepcopy(net).to(dtype=torch.float32)
            whole.load_state_dict(self._weights)
            object.__setattr__(self, "_saved", whole)
        return self._saved

    def _kept(self, features: dict[str, Any], states: Tensor) -> Tensor:
        """Which tokens are pooled: (B, L) bool, or (N,) for flattened input; at least one per text."""
        prompt = 0 if self.include_prompt else int(torch.as_tensor(features.get("prompt_length") or 0).flatten()[0])
        if "cu_seq_lens_q" in features:
            bounds = features["cu_seq_lens_q"]
            starts = torch.repeat_interleave(bounds[:-1], bounds.diff())
            ends = torch.repeat_interleave(bounds[1:], bounds.diff())
            places = torch.arange(states.shape[1], device=states.device)
            return (places - starts >= prompt) | (places == ends - 1)
        mask = features.get("attention_mask")
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
        if mask.shape != states.shape[:2]:
            raise ValueError(f"attention_mask {tuple(mask.shape)} does not belong to token states {tuple(states.shape)}")
        rank = mask.cumsum(1)  # index of a real token among the real ones, from 1, with padding on either side
        kept = mask & ((rank > prompt) | (rank == rank[:, -1:]))
        kept[:, 0] |= ~mask.any(1)  # a text without tokens: its first position
        return kept

    def get_embedding_dimension(self) -> int:
        """D, the pooled width."""
        return self.net.out_dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write configuration and float32 weights, and where this class was loaded from an export, its joined source."""
        self.save_config(output_path)
        if self._weights:
            weight = _first(self.net)
            kept = (
                self.state_dict()
                if weight is None or weight.dtype == torch.float32
                else {f"net.{name}": own for name, own in self._weights.items()}
            )
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, Path(output_path) / WEIGHTS_FILE)
        _save_source(self, Path(output_path).parent)

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "GlotPooling":
        """The inverse of `save`."""
        where = {name: options[name] for name in PLACE if name in options}
        module = cls(**cls.load_config(model_name_or_path, **where))
        if module.state_dict():
            cls.load_torch_weights(model_name_or_path, model=module, **where)
            module._weights = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
        return module


def _first(net: torch.nn.Module) -> Tensor | None:
    """A weight or a buffer of floating-point numbers, which tells device and precision; None without any."""
    return next((tensor for tensor in net.state_dict().values() if tensor.is_floating_point()), None)


def _save_source(module: Module, root: Path) -> None:
    """When a loaded export is saved again, copy the joined source beside `modules.json`; sentence-transformers would put it elsewhere."""
    source = Path(str(sys.modules[type(module).__module__].__file__))
    if source.name == BUNDLE:
        shutil.copy(source, root / BUNDLE)
