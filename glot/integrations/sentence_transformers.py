"""A trained pooler as a module of sentence-transformers, and a backbone that is named instead of stored. The only door to that library.

This file and those that it imports are also written into every export, joined into one (see `export`), so that a model loads without
this package.
"""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Module, Transformer
from torch import Tensor, nn

from glot.backbone.source import LAYERS_IN_MEAN, BackboneSource, find_backbone
from glot.poolers import build_pooler
from glot.types import TokenBatch

BUNDLE = "glot_model.py"
"""The joined source in the root of an export."""
BACKBONE_FILE = "backbone.json"
WEIGHTS_FILE = "model.safetensors"


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
        self._weights = self.net.state_dict()
        object.__setattr__(self, "_saved", None)  # no module of ours to the library, which would cast it

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, and `readout_weights` where there are any; changes nothing else."""
        states = self._states(features)
        kept = self._kept(features, states)
        flat, lengths = (states[0], features["cu_seq_lens_q"].diff()) if "cu_seq_lens_q" in features else (states.flatten(0, 1), None)
        counts = kept.sum(1) if lengths is None else torch.stack([part.sum() for part in kept.split(lengths.tolist())])
        places = kept.flatten().nonzero().squeeze(1)
        batch = TokenBatch.from_lengths(flat[places].float(), counts.cpu())  # a model in half precision pools in float32 all the same
        if hasattr(self.net, "readout"):
            features["sentence_embedding"], weights = self._float32(self.net).readout(batch)
            features["readout_weights"] = weights.new_zeros(kept.numel()).index_put((places,), weights).view(kept.shape)
        else:
            features["sentence_embedding"] = self._float32(self.net)(batch)
        return features

    def _float32(self, net: nn.Module) -> nn.Module:
        """The pooler with the weights that were saved: the library casts every module to the backbone's precision."""
        weight = next(net.parameters(), None)
        if weight is None or weight.dtype == torch.float32:
            return net
        if self._saved is None or next(self._saved.parameters()).device != weight.device:
            whole = copy.deepcopy(net).to(dtype=torch.float32)
            whole.load_state_dict(self._weights)
            object.__setattr__(self, "_saved", whole)
        return self._saved

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
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
        if mask.shape != states.shape[:2]:
            raise ValueError(f"attention_mask {tuple(mask.shape)} does not belong to token states {tuple(states.shape)}")
        rank = mask.cumsum(1)  # of a real token among the real ones, from 1, whichever side the padding is on
        kept = mask & ((rank > prompt) | (rank == rank[:, -1:]))
        kept[:, 0] |= ~mask.any(1)  # a text without any token: whatever stands first
        return kept

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.net.out_dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Configuration and float32 weights; and the joined source beside `modules.json` where this class comes from one."""
        self.save_config(output_path)
        if self._weights:
            weight = next(self.net.parameters())
            kept = self.state_dict() if weight.dtype == torch.float32 else {f"net.{name}": own for name, own in self._weights.items()}
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, Path(output_path) / WEIGHTS_FILE)
        _save_source(self, Path(output_path).parent)

    @classmethod
    def load(cls, model_name_or_path: str, **options: Any) -> "GlotPooling":
        """The inverse of `save`."""
        where = {name: options[name] for name in ("subfolder", "token", "cache_folder", "revision", "local_files_only") if name in options}
        module = cls(**cls.load_config(model_name_or_path, **where))
        if module.state_dict():
            cls.load_torch_weights(model_name_or_path, model=module, **where)
            module._weights = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
        return module


def _save_source(module: Module, root: Path) -> None:
    """The joined source beside `modules.json`, where a loaded export is saved again; the library would put it elsewhere."""
    source = Path(str(sys.modules[type(module).__module__].__file__))
    if source.name == BUNDLE:
        shutil.copy(source, root / BUNDLE)


class TextTransformer(Transformer):
    """The library's backbone module; a text without any token is read as one end token, as our encoder does (decoders crash on it)."""

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """As the library's, with such texts replaced."""
        if not prompt and any(isinstance(text, str) and not text.strip() for text in inputs) and not self.tokenizer("")["input_ids"]:
            known = (self.tokenizer.eos_token, self.tokenizer.sep_token, self.tokenizer.pad_token)
            end = next(token for token in known if token is not None)
            inputs = [end if isinstance(text, str) and not text.strip() else text for text in inputs]
        return super().preprocess(inputs, prompt=prompt, **options)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """As the library's, and the joined source."""
        super().save(output_path, *args, **kwargs)
        _save_source(self, Path(output_path))


class AttachedTransformer(TextTransformer):
    """A backbone that the export names and does not hold: attached when the model is loaded, refused if it is another one."""

    def attach(self, name: str, identity: str) -> "AttachedTransformer":
        """Remember where the backbone comes from."""
        self.named = {"name": name, "identity": identity}
        return self

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Name, hash and length; no weights."""
        facts = {**self.named, "max_seq_length": self.max_seq_length, "dtype": str(self.model.dtype).removeprefix("torch.")}
        facts["output_hidden_states"] = bool(self.model.config.output_hidden_states)
        (Path(output_path) / BACKBONE_FILE).write_text(json.dumps(facts, indent=1) + "\n")
        _save_source(self, Path(output_path))

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
        precision = {"dtype": getattr(torch, facts["dtype"]), **(options.get("model_kwargs") or {})}
        module = open_transformer(cls, source, facts["max_seq_length"], facts["output_hidden_states"], precision)
        return module.attach(facts["name"], facts["identity"])


Kind = TypeVar("Kind", bound=Transformer)


def open_transformer(
    kind: type[Kind], source: BackboneSource, max_length: int | None, output_hidden_states: bool, model_kwargs: dict[str, Any]
) -> Kind:
    """A found backbone as sentence-transformers' first module; `model_kwargs` holds at least its dtype."""
    layers = {"output_hidden_states": True} if output_hidden_states else {}
    module = kind(source.path, model_kwargs=model_kwargs, config_kwargs=layers, max_seq_length=max_length)
    if module.tokenizer.pad_token is None:
        module.tokenizer.pad_token = module.tokenizer.eos_token
    return module
