"""A trained pooler as a module of sentence-transformers, and a backbone that is named instead of stored. The only door to that library.

This file and those that it imports are also written into every export, joined into one (see `export`), so that a model loads without
this package.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from sentence_transformers.base.modules import Module, Transformer
from torch import Tensor

from glot.backbone.source import LAYERS_IN_MEAN, BackboneSource, find_backbone
from glot.poolers import build_pooler
from glot.types import TokenBatch

BUNDLE = "glot_model.py"
"""The joined source in the root of an export."""
BACKBONE_FILE = "backbone.json"


class GlotPooling(Module):
    """Token states -> `sentence_embedding (B, D)`; padded on either side, or flattened as FlashAttention wants them.

    Where the pooler weighs tokens, `readout_weights` are added: (B, L) with zeros on padding, or (N,) for flattened input.

    Args:
        pooler: the pooler's flags.
        graph: the graph's flags.
        in_dim: d.
        graph_seed: of random graphs.
        layer: hidden state that is pooled, `mean4`, or None = the backbone's output.
        include_prompt: False leaves the prompt's tokens out.
    """

    config_keys = ["pooler", "graph", "in_dim", "graph_seed", "layer", "include_prompt"]  # noqa: RUF012 - the library's own declaration

    def __init__(
        self,
        pooler: dict[str, Any],
        graph: dict[str, Any],
        in_dim: int,
        graph_seed: int = 0,
        layer: str | None = None,
        include_prompt: bool = True,
    ) -> None:
        super().__init__()
        self.pooler, self.graph, self.in_dim, self.graph_seed = pooler, graph, in_dim, graph_seed
        self.layer, self.include_prompt = layer, include_prompt
        self.net = build_pooler(SimpleNamespace(**pooler), SimpleNamespace(**graph), in_dim, graph_seed)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, and `readout_weights` where there are any; changes nothing else."""
        states = self._states(features)
        kept = self._kept(features, states)
        flat, lengths = (states[0], features["cu_seq_lens_q"].diff()) if "cu_seq_lens_q" in features else (states.flatten(0, 1), None)
        counts = kept.sum(1) if lengths is None else torch.stack([part.sum() for part in kept.split(lengths.tolist())])
        places = kept.flatten().nonzero().squeeze(1)
        weight = next(self.net.parameters(), states)
        batch = TokenBatch.from_lengths(flat[places].to(weight.dtype), counts.cpu())
        if hasattr(self.net, "readout"):
            features["sentence_embedding"], weights = self.net.readout(batch)
            features["readout_weights"] = weights.new_zeros(kept.numel()).index_put((places,), weights).view(kept.shape)
        else:
            features["sentence_embedding"] = self.net(batch)
        return features

    def _states(self, features: dict[str, Any]) -> Tensor:
        """(B, L, d), or (1, N, d) for flattened input."""
        if self.layer is None:
            return features["token_embeddings"]
        layers = features["all_layer_embeddings"]
        return torch.stack(tuple(layers[-LAYERS_IN_MEAN:])).mean(0) if self.layer == "mean4" else layers[int(self.layer)]

    def _kept(self, features: dict[str, Any], states: Tensor) -> Tensor:
        """Which tokens are pooled: (B, L), or (N,) for flattened input; at least one of each text."""
        prompt = 0 if self.include_prompt else int(torch.as_tensor(features.get("prompt_length") or 0).flatten()[0])
        if "cu_seq_lens_q" in features:
            bounds = features["cu_seq_lens_q"]
            starts = torch.repeat_interleave(bounds[:-1], bounds.diff())
            ends = torch.repeat_interleave(bounds[1:], bounds.diff())
            places = torch.arange(states.shape[1], device=states.device)
            return (places - starts >= prompt) | (places == ends - 1)
        mask = features.get("attention_mask")
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None or mask.shape[1] != states.shape[1] else mask
        mask = mask.bool()
        rank = mask.cumsum(1)  # of a real token among the real ones, from 1, whichever side the padding is on
        kept = mask & ((rank > prompt) | (rank == rank[:, -1:]))
        kept[:, 0] |= ~mask.any(1)  # a text without any token: whatever stands first
        return kept

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.net.out_dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Configuration and weights; and the joined source beside `modules.json` where this class comes from one."""
        self.save_config(output_path)
        if self.state_dict():
            self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        source = Path(str(sys.modules[type(self).__module__].__file__))
        if source.name == BUNDLE:
            shutil.copy(source, Path(output_path).parent / BUNDLE)

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "GlotPooling":
        """The inverse of `save`."""
        where = {name: options[name] for name in ("subfolder", "token", "cache_folder", "revision", "local_files_only") if name in options}
        module = cls(**cls.load_config(model_name_or_path, **where))
        if module.state_dict():
            cls.load_torch_weights(model_name_or_path, model=module, **where)
        return module


class AttachedTransformer(Transformer):
    """A backbone that the export names and does not hold: attached when the model is loaded, refused if it is another one."""

    def attach(self, name: str, identity: str) -> "AttachedTransformer":
        """Remember where the backbone comes from."""
        self.named = {"name": name, "identity": identity}
        return self

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Name, hash and length; no weights."""
        facts = {**self.named, "max_seq_length": self.max_seq_length}
        facts["output_hidden_states"] = bool(self.model.config.output_hidden_states)
        (Path(output_path) / BACKBONE_FILE).write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "AttachedTransformer":
        """Find the backbone by its name on this machine or the hub.

        Raises:
            ValueError: it is not the one that the head was trained on.
        """
        place = {name: options[name] for name in ("token", "cache_folder", "revision", "local_files_only") if name in options}
        facts = json.loads(Path(str(cls.load_file_path(model_name_or_path, BACKBONE_FILE, **place))).read_text())
        source = find_backbone(facts["name"], bool(options.get("trust_remote_code")))
        if source.identity != facts["identity"]:
            raise ValueError(
                f"{model_name_or_path} was trained on backbone {facts['name']} ({facts['identity']}); "
                f"what is found under that name is another one ({source.identity})"
            )
        module = open_transformer(cls, source, facts["max_seq_length"], facts["output_hidden_states"], options.get("model_kwargs") or {})
        return module.attach(facts["name"], facts["identity"])


Kind = TypeVar("Kind", bound=Transformer)


def open_transformer(
    kind: type[Kind], source: BackboneSource, max_length: int | None, output_hidden_states: bool, model_kwargs: dict[str, Any]
) -> Kind:
    """A found backbone as sentence-transformers' first module, in float32 unless `model_kwargs` says otherwise."""
    options = {"dtype": torch.float32, **model_kwargs}
    layers = {"output_hidden_states": True} if output_hidden_states else {}
    module = kind(source.path, model_kwargs=options, config_kwargs=layers, max_seq_length=max_length)
    if module.tokenizer.pad_token is None:
        module.tokenizer.pad_token = module.tokenizer.eos_token
    return module
