"""A loaded model is looked at before it is believed: what one text gives depends on nothing but that text."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from glot.errors import ConfigError, StateError
from glot.states.backbone import Backbone, find_backbone
from glot.states.backbone.states import ReaderOptions, StateReader

CPU = torch.device("cpu")


class Odd(nn.Module):
    """A model of 2 layers that misbehaves on request; its configuration says nothing."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.config, self.calls = fault, type("Config", (), {})(), []
        torch.manual_seed(0)
        self.table = nn.Embedding(100, 8)

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        states = self.table(input_ids)
        mask = attention_mask.unsqueeze(2).float()
        self.calls.append(input_ids.shape)
        if self.fault == "memory":
            states = states + 0.1 * len(self.calls)  # a list is changed in place: no attribute tells
        if self.fault == "counter":
            self.count = getattr(self, "count", 0) + 1
            states = states + 0.1 * self.count
        if self.fault == "padding":
            states = states + states.mean(1, keepdim=True)
        if self.fault == "little memory" and input_ids.numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.fault == "left over":
            self.shift = 0.1 * float(input_ids[0, 0])  # of this pass, until another one sets it
            time.sleep(0.001)
            states = states + self.shift
        if self.fault == "mates":
            states = states + (states * mask).sum((0, 1))
        if self.fault == "nothing":
            return states.mean(1)
        if self.fault == "long" and input_ids.shape[1] > 20:
            states = states + (1 - mask).mean()
        hidden = (states, states, states) if output_hidden_states else None
        return type("Output", (), {"last_hidden_state": states, "hidden_states": hidden})()


def read(fault: str) -> StateReader:
    return StateReader(Odd(fault).eval(), ReaderOptions("odd", 2, 0, 100))


@pytest.mark.parametrize(
    ("fault", "complaint"), [("memory", "gives other states when it reads the same text again"), ("mates", "depend on the other texts")]
)
def test_a_model_that_cannot_be_relied_on_is_refused(fault, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read(fault).read([[40, 41], [42]], ["2"])


def test_threads_that_share_a_model_get_the_states_of_their_own_texts():
    reader, texts = read("left over"), [[token, token + 1] for token in range(20, 60)]
    alone = [reader.read([text], ["2"])[0].tokens for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: reader.read([text], ["2"])[0].tokens, texts))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(copy.deepcopy(reader).read([texts[0]], ["2"])[0].tokens, alone[0])


def test_a_model_without_a_state_per_token_is_refused():
    with pytest.raises(StateError, match="gives no state per token"):
        read("nothing")


def test_padding_that_reaches_tokens_is_found_also_when_it_only_does_so_in_long_batches(caplog):
    ids = [[40, 41, 42], [43], [44, 45, 46, 47, 48]]
    for fault, texts in (("padding", ids), ("long", [*ids, list(range(30, 60))])):
        reader = read(fault)
        (batch,) = reader.read(texts, ["2"])
        for row, text in enumerate(texts):
            (alone,) = reader.read([text], ["2"])
            torch.testing.assert_close(batch.tokens[batch.ptr[row] : batch.ptr[row + 1]], alone.tokens)
        assert reader.equal_lengths
        assert caplog.text.count("padding changes the states of real tokens") == 1
        caplog.clear()
    short = read("long")
    short.read(ids, ["2"])
    assert not short.equal_lengths


def test_what_a_pass_leaves_behind_is_taken_away():
    reader = read("counter")
    first = reader.read([[40, 41]], ["2"])[0].tokens
    reader.read([[42] * 30], ["2"])
    torch.testing.assert_close(reader.read([[40, 41]], ["2"])[0].tokens, first, rtol=0, atol=0)
    assert not hasattr(reader.model, "count")


def test_the_text_that_a_batch_fails_on_is_named():
    class Picky(Odd):
        def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
            if 99 in input_ids:
                raise RuntimeError("no such token")
            return super().forward(input_ids, attention_mask, output_hidden_states)

    reader = StateReader(Picky("padding").eval(), ReaderOptions("odd", 2, 0, 100))
    reader.check(16)
    with pytest.raises(StateError, match="no such token") as caught:
        reader.read([[40, 41], [42, 43], [99]], ["2"])
    assert caught.value.place == 2


@pytest.mark.parametrize(
    ("texts", "complaint"), [(["a", None], "text 1 is None"), (["a", 3], "text 1 is 3"), (["\ud83d"], "half a surrogate")]
)
def test_what_is_no_text_is_named(texts, complaint, tiny_bert):
    backbone = Backbone(find_backbone(str(tiny_bert)), None, "float32", "2", CPU)
    with pytest.raises(ConfigError, match=complaint):
        backbone.tokenise(texts)


def test_a_batch_beyond_memory_is_read_in_parts():
    texts = [list(range(30, 40)), *([50 + row, 60, 70 + row] for row in range(9))]
    reader, plain = read("little memory"), read("")
    (parts,), (whole,) = reader.read(texts, ["2"]), plain.read(texts, ["2"])
    torch.testing.assert_close(parts.tokens, whole.tokens)
    assert parts.ptr.equal(whole.ptr) and max(shape.numel() for shape in plain.model.calls) > 40
    with pytest.raises(StateError, match=r"texts of up to 41 tokens \(OutOfMemoryError: CUDA out of memory"):
        reader.read([[40], [30] * 41], ["2"])  # one text that is too long stays an error
