"""StateReader: token ids to hidden states, with checks that a text's states depend on that text alone.

A loaded model is measured, because architectures differ. In some, padding reaches real tokens (FNet, MobileBERT). Some keep values from
one pass for the next (RecurrentGemma, rotary positions that grow). Some number their states differently (Mamba).
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glot.errors import ConfigError, StateError, lacks_memory, library_door, reason
from glot.progress import warn
from glot.states.backbone.blocks import equal, first_tensor, has_shape, hear
from glot.states.backbone.rewind import OneThread, left_as_it_was
from glot.states.backbone.source import LAYERS_IN_MEAN
from glot.types import TokenBatch, send
from glot.words import counted

MOST_LEAST = 16
"""The longest batch that a model may need, whatever the length of its texts: CANINE's strided convolution takes no fewer than 4 tokens."""
SHORT, LEAST_PROBE, MOST_AT_LOAD, MOST_WITH_MIDDLE = 4, 16, 512, 1024
"""Lengths in tokens: a check's short text, its shortest long text, the longest at load, the longest with texts of middle length."""
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "autocast": 1e-1}
"""Precision of a model -> largest relative difference of one token's state between two batches that hold its text."""


class ReaderOptions(NamedTuple):
    """What a StateReader must know of the model beside the model itself.

    Attributes:
        name: the backbone's name, for messages.
        num_layers: number of hidden states after the embeddings.
        fill: token id of padding.
        rows: number of rows of the embedding.
        autocast: compute matrix products in bfloat16.
    """

    name: str
    num_layers: int
    fill: int
    rows: int
    autocast: bool = False


class StateReader:
    """Runs a model on token ids and returns packed states of its hidden layers.

    Before the first batch, and whenever a longer text comes, `check` reads short texts alone and in a batch with a long one. Where the
    states differ, all later batches hold texts of equal length only.

    Args:
        model: of transformers, loaded, in evaluation mode.
        options: see `ReaderOptions`.

    Attributes:
        equal_lengths: whether padding reaches real tokens, so that batches hold texts of equal length only.
        is_causal: whether a token's state is independent of later tokens.
        least: batches are padded to at least this many tokens; 1 for most models.
        widths: layer -> d, for each layer that can be read.

    Raises:
        StateError: the model gives no state per token, or the same state for every token.

    Examples:
        >>> reader = StateReader(model, ReaderOptions("bert", num_layers=12, fill=0, rows=30522))
        >>> reader.read([[101, 7592, 102]], ["12"])
    """

    def __init__(self, model: nn.Module, options: ReaderOptions) -> None:
        self.model, self.options = model, options
        self.equal_lengths = self.is_causal = False
        self.widths: dict[str, int] = {}
        self._blocks: nn.ModuleList | None = None
        self._checked = 0
        self._alone = OneThread()
        accepted = inspect.signature(model.forward).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._takes_mask = takes_all or "attention_mask" in accepted
        self._no_cache = {"use_cache": False} if "use_cache" in accepted or (hasattr(model.config, "use_cache") and takes_all) else {}
        self.least = 1
        self.least = self._find_least()
        self._look_at_layers()

    @property
    def last(self) -> str:
        """Name of the last layer."""
        return str(self.options.num_layers)

    def read(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """States of B texts: packed (N, d) per layer, on the model's device and in its precision.

        Args:
            ids: token ids of each text, at least one per text.
            layers: `0` (embeddings) to `num_layers`, or mean4.

        Raises:
            StateError: the model fails, or gives a number that is not finite; `place` is the text's index in `ids`.
            ConfigError: a layer that this model does not give.
        """
        longest = max(map(len, ids))
        with self._alone:
            if longest > self._checked:
                self.check(longest)
        for layer in layers:
            self.width(layer)
        try:
            found = self._in_parts(ids, layers)
        except StateError as error:
            culprit = next((place for place, text in enumerate(ids) if self._failure_of(text)), None)
            raise StateError(error.problem, culprit) from error
        for batch in found:
            self._refuse_non_finite(batch)
        return found

    def _in_parts(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """One pass, or halves where memory does not suffice."""
        try:
            return self._by_length(ids, layers) if self.equal_lengths else self._pass(ids, layers)
        except StateError as error:
            if len(ids) == 1 or not lacks_memory(error):
                raise
        half = len(ids) // 2  # the handler's error would keep memory
        parts = zip(self._in_parts(ids[:half], layers), self._in_parts(ids[half:], layers), strict=True)
        return [TokenBatch.from_lengths(torch.cat([one.tokens, two.tokens]), torch.cat([one.lengths, two.lengths])) for one, two in parts]

    @property
    def precision(self) -> str:
        """The current precision, as a value of `--backbone_dtype`."""
        own = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return "autocast" if self.options.autocast and own == "float32" else own  # the caller may have cast the model since

    def failure(self, length: int) -> StateError | None:
        """The error of the model on `length` tokens; None where it runs."""
        return self._failure_of(self._sample(length, 0))

    def _failure_of(self, text: list[int]) -> StateError | None:
        try:
            self._pass([text], [self.last])
        except StateError as error:
            return error
        return None

    @torch.no_grad()
    def _find_least(self) -> int:
        """The smallest power of 2 that the model reads as a length; 1 where it reads none, and its error comes up later."""
        lengths = (1 << power for power in range(MOST_LEAST.bit_length()))
        return next((length for length in lengths if self.failure(length) is None), 1)

    @torch.no_grad()
    def check(self, length: int) -> None:
        """Compare texts read alone and in a batch with one of `length` tokens. Sets `equal_lengths` and `widths`.

        Raises:
            ConfigError: two passes over the same text differ, or a text's states depend on the other texts of its batch.
        """
        training = self.model.training
        self.model.eval()
        short = max(1, min(SHORT, length - 1))
        middle = [3 * length // 4, length - 1] if short < length - 1 <= MOST_WITH_MIDDLE else []
        texts = [self._sample(size, seed) for seed, size in enumerate([short, *middle])]
        everything = [*texts, self._sample(length, len(texts))]
        alone, together, again = self._read_apart(texts), self._read_together(everything), self._read_apart(texts)
        same = [name for name in alone if name in together and self._close(alone[name], again[name])]
        self.widths = {name: width for name, width in self.widths.items() if name in same}
        if self.last not in self.widths:
            raise ConfigError(
                f"--model_name_or_path={self.options.name}: gives other states when it reads the same text again; name another model"
            )
        if not self.equal_lengths and not all(self._close(alone[name], together[name]) for name in self.widths):
            self.equal_lengths = True
            warn(f"{self.options.name}: padding changes the states of real tokens, so batches hold texts of equal length only")
        if self.equal_lengths:
            twins = [self._sample(short, 0), self._sample(short, 7)]
            apart, paired = self._read_apart(twins), self._read_together(twins)
            if not all(self._close(apart[name], paired[name]) for name in self.widths):
                raise ConfigError(
                    f"--model_name_or_path={self.options.name}: a text's states depend on the other texts of its batch; name another model"
                )
        self._checked = max(self._checked, length)
        self.model.train(training)

    def _read_together(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """Layer -> states (N, d) of texts in one batch. Layers without one state per token are left out."""
        padded, mask = self.pad(texts)
        states = self._forward(padded, mask, list(self.widths))
        return {name: states[name].to(mask.device)[mask] for name in self.widths if has_shape(states.get(name), padded)}

    def _read_apart(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """`_read_together` for texts that are read one by one."""
        found = [self._read_together([text]) for text in texts]
        return {name: torch.cat([states[name] for states in found]) for name in self.widths if all(name in states for states in found)}

    def width(self, layer: str) -> int:
        """The width d of a layer, as measured on the model's states.

        Raises:
            ConfigError: the model does not give this layer.
        """
        found = {self.widths.get(name) for name in (self._of_mean() if layer == "mean4" else [layer])}
        if len(found) > 1 or None in found:
            there = ", ".join(f"{name} (d = {width})" for name, width in self.widths.items())
            raise ConfigError(
                f"--hidden_layer: {self.options.name} does not give layer {layer}, one state per token and of one width; it gives {there}"
            )
        return int(found.pop() or 0)

    def _of_mean(self) -> list[str]:
        return [str(index) for index in range(self.options.num_layers - LAYERS_IN_MEAN + 1, self.options.num_layers + 1)]

    def _by_length(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """`_pass` on groups of texts of equal length; results are in the order of `ids`."""
        rows: list[list[Tensor]] = [[] for _ in ids]
        for length in sorted({len(text) for text in ids}):
            places = [place for place, text in enumerate(ids) if len(text) == length]
            for batch in self._pass([ids[place] for place in places], layers):
                for place, states in zip(places, batch.tokens.split(length), strict=True):
                    rows[place].append(states)
        lengths = torch.tensor([len(text) for text in ids])
        return [TokenBatch.from_lengths(torch.cat([states[index] for states in rows]), lengths) for index in range(len(layers))]

    def pad(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, L), padded to the right and to `least`, on the model's device."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(text) for text in ids])
        mask = torch.arange(max(int(lengths.max()), self.least)) < lengths.unsqueeze(1)
        padded = torch.full(mask.shape, self.options.fill)
        padded[mask] = torch.tensor([token for text in ids for token in text])
        return send(padded, device), send(mask, device)

    def _pass(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """One forward pass over texts padded to the right."""
        padded, mask = self.pad(ids)
        states = self._forward(padded, mask, layers)
        lengths = torch.tensor([len(text) for text in ids])
        real = (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).flatten().nonzero().squeeze(1)
        places = send(real, mask.device)  # planned on the CPU: on a card a choice by the mask would wait for it
        for layer in layers:
            if not has_shape(states.get(layer), padded):
                raise StateError(f"--model_name_or_path={self.options.name}: gives no state per token for hidden layer {layer}")
        packed = [states[layer].to(mask.device).flatten(0, 1).index_select(0, places) for layer in layers]
        return [TokenBatch.from_lengths(tokens, lengths) for tokens in packed]

    def _forward(self, ids: Tensor, mask: Tensor, layers: list[str]) -> dict[str, Tensor]:
        """Ids (B, L), mask (B, L) -> layer -> hidden states, (B, L, d) where the model has one per token.

        Raises:
            StateError: the model cannot run on this batch.
        """
        inner = {name for layer in layers for name in (self._of_mean() if layer == "mean4" else [layer])} - {self.last}
        inputs = self._inputs(ids, mask)
        ask = {"output_hidden_states": True} if inner and self._blocks is None else {}
        taken: dict[str, Tensor] = {}

        def describe(error: Exception) -> str:
            tokens = counted(ids.shape[1], "token")
            batch = f"{ids.shape[0]} texts of up to {tokens}" if ids.shape[0] > 1 else f"a text of {tokens}"
            return f"--model_name_or_path={self.options.name}: cannot run on {batch} ({reason(error)})"

        autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=self.precision == "autocast")
        with self._alone, library_door(StateError, describe), left_as_it_was(self.model), self._taken_from_blocks(inner, taken), autocast:
            output = self.model(**inputs, **ask)
        if ask:
            taken = {str(index): state for index, state in enumerate(output.hidden_states)}
        states: dict[str, Any] = taken | {self.last: getattr(output, "last_hidden_state", None)}
        if "mean4" in layers:
            states["mean4"] = torch.stack([states[name].to(ids.device) for name in self._of_mean()]).mean(0)
        return states

    def _inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """The model's arguments: ids, the mask where it takes one, and no cache. Token types keep their default."""
        inputs: dict[str, Any] = {"input_ids": ids, **self._no_cache}
        return {**inputs, "attention_mask": mask.long()} if self._takes_mask else inputs

    def _look_at_layers(self) -> None:
        """Measure which states the model gives, their widths, and whether it is causal.

        Hidden state 0 must be the input of the first block, and state i the input of block i. Where the model's own list of hidden states
        differs from that, states are taken from the blocks.
        """
        text = self._sample(SHORT, 0)
        ids, mask = self.pad([text])
        with torch.no_grad():
            last = self._forward(ids, mask, [self.last])[self.last]
            if not has_shape(last, ids):
                raise StateError(f"--model_name_or_path={self.options.name}: gives no state per token")
            if bool((last == last[:, :1]).all()):
                raise StateError(f"--model_name_or_path={self.options.name}: gives the same state for every token")
            library = self._library_states(ids, mask)
            blocks, own = self._block_states(ids, mask)
            if own and not (library and all(equal(own[name], library.get(name)) for name in own)):
                self._blocks, library = blocks, own
            shaped = {name: state for name, state in library.items() if has_shape(state, ids)}
            self.widths = {name: state.shape[2] for name, state in sorted(shaped.items(), key=lambda row: int(row[0]))}
            self.widths[self.last] = last.shape[2]
            token = next((sample[-1] for seed in range(9, 99) if (sample := self._sample(SHORT, seed))[-1] != text[-1]), text[-1])
            other = [*text[:-1], token]
            first, second = (self._pass([one], [self.last])[0].tokens[:-1] for one in (text, other))
            # both passes have the same shapes, so a small tolerance suffices at any precision
            self.is_causal = other != text and torch.allclose(first, second, rtol=1e-5, atol=1e-6)

    def _library_states(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The model's own list of hidden states without the last; empty where its length does not match the number of layers."""
        try:
            with library_door(StateError, reason), left_as_it_was(self.model):
                found = getattr(self.model(**self._inputs(ids, mask), output_hidden_states=True), "hidden_states", None)
        except StateError:  # a model without this list can still give its last state
            return {}
        if found is None or len(found) != self.options.num_layers + 1:
            return {}
        return {str(index): state for index, state in enumerate(found[:-1])}

    def _block_states(self, ids: Tensor, mask: Tensor) -> tuple[nn.ModuleList | None, dict[str, Tensor]]:
        """The model's list of blocks and the input of each; (None, {}) where no list passes its states from block to block."""
        for blocks in self.model.modules():
            if not isinstance(blocks, nn.ModuleList) or len(blocks) != self.options.num_layers:
                continue
            heard: list[tuple[str, int, Any]] = []
            handles = [block.register_forward_pre_hook(hear("in", index, heard), with_kwargs=True) for index, block in enumerate(blocks)]
            handles += [block.register_forward_hook(hear("out", index, heard), with_kwargs=True) for index, block in enumerate(blocks)]
            try:
                self._forward(ids, mask, [self.last])
            finally:
                for handle in handles:
                    handle.remove()
            order = [(kind, index) for kind, index, _ in heard]
            values = [value for _, _, value in heard]
            regular = order == [(kind, index) for index in range(len(blocks)) for kind in ("in", "out")]
            if (
                regular
                and all(has_shape(value, ids) for value in values)
                and all(equal(values[at], values[at + 1]) for at in range(1, len(values) - 1, 2))
            ):
                return blocks, {str(index): values[2 * index] for index in range(len(blocks))}
        return None, {}

    @contextmanager
    def _taken_from_blocks(self, names: set[str], taken: dict[str, Tensor]) -> Iterator[None]:
        """Where states are taken from blocks, store the input of block i in `taken[i]` during a pass."""
        handles, blocks = [], list(self._blocks or ())
        for name in names if blocks else ():

            def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                """Forward pre-hook of a block."""
                taken[name] = first_tensor(args, kwargs)

            handles.append(blocks[int(name)].register_forward_pre_hook(take, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _sample(self, length: int, seed: int) -> list[int]:
        """Token ids drawn from the middle of the vocabulary, where no model family has special tokens."""
        draw = random.Random(seed)
        low, high = self.options.rows // 4, max(self.options.rows // 4 + 1, self.options.rows * 3 // 4)
        return [draw.randrange(low, high) for _ in range(length)]

    def _close(self, alone: Tensor, batch: Tensor) -> bool:
        """Whether all tokens' states agree within `TOLERANCES`. States that are not finite are ignored here.

        Args:
            alone: (n, d), states of texts that were read one by one.
            batch: (n or more, d), states in the same order; further rows are ignored.
        """
        one, other = alone.float(), batch[: len(alone)].float()
        finite = torch.isfinite(one).all(1) & torch.isfinite(other).all(1)
        difference = (one - other)[finite].norm(dim=1) / other[finite].norm(dim=1).clamp_min(1e-6)
        return bool((difference <= TOLERANCES[self.precision]).all())

    def _refuse_non_finite(self, batch: TokenBatch) -> None:
        finite = torch.isfinite(batch.tokens).all(1)
        if bool(finite.all()):
            return
        place = int(batch.segment[int((~finite).nonzero()[0])])
        broken = sum(not bool(torch.isfinite(weight).all()) for weight in self.model.parameters())
        precision = self.precision
        if precision == "float16":
            way_out = "they do not fit --backbone_dtype=float16; use bfloat16 or float32"
        elif precision in ("bfloat16", "autocast"):
            way_out = f"they may not fit --backbone_dtype={precision}; use float32"
        elif broken:
            way_out = f"{broken} of its weight tensors hold numbers that are not finite; name another model"
        else:
            way_out = "the model itself gives them for this text; name another model, or leave the text out"
        raise StateError(f"{self.options.name} gives states that are not finite: {way_out}", place)
