"""Token states by text: what was read once is read from disk, whatever texts come with it."""

import numpy as np
import pytest
import torch

from glot.cli import glot_main
from glot.encoder import SentenceEncoder
from glot.encoders import open_text_states
from glot.errors import StoreError
from glot.nn.poolers.fixed import MeanPooler
from glot.prompts import Prompts
from glot.settings.config import RunConfig, versions
from glot.states.backbone import Backbone, find_backbone
from glot.states.by_text import TextStates
from glot.states.store import StoreKey

TEXTS = ["the red cat", "a big dog runs", "dog", "", "not a cat", "the red cat"]


@pytest.fixture
def backbone(tiny_bert) -> Backbone:
    return Backbone(find_backbone(str(tiny_bert)), 16, "float32", "2", torch.device("cpu"))


def open_states(tmp_path, backbone, dtype="float32") -> TextStates:
    key = StoreKey(backbone.source.identity, "2", 16, "float32", dtype, "of no text")
    return TextStates(tmp_path / "hidden", key, backbone, versions())


def expected(backbone, texts, prompt="", exclude=False) -> torch.Tensor:
    ids, skips = backbone.tokeniser.tokenise(list(texts), 16, prompt, exclude)
    with torch.no_grad():
        return torch.cat([backbone.encode([one], [skip]).tokens for one, skip in zip(ids, skips, strict=True)])


def test_states_of_any_texts_in_any_order_from_any_call(tmp_path, backbone, monkeypatch):
    states = open_states(tmp_path, backbone)
    states.add(TEXTS[:3])
    states.add(TEXTS)
    assert len(states) == 5 and len(list(states.folder.iterdir())) == 2
    order = [TEXTS[place] for place in (4, 0, 2, 3, 5, 1)]
    torch.testing.assert_close(states.gather(order).tokens, expected(backbone, order), rtol=1e-4, atol=1e-5)
    assert states.lengths(order).tolist() == states.gather(order).lengths.tolist()
    monkeypatch.setattr(Backbone, "encode_sorted", lambda *_: pytest.fail("a text was read again"))
    again = open_states(tmp_path, backbone)
    again.add(order)
    torch.testing.assert_close(again.gather(order).tokens, states.gather(order).tokens, rtol=0, atol=0)


def test_prompts_and_what_is_left_out_of_them_are_other_texts(tmp_path, backbone):
    states = open_states(tmp_path, backbone)
    for prompt, exclude in (("", False), ("big green ", False), ("big green ", True)):
        states.add(TEXTS, prompt, exclude)
        found = states.gather(TEXTS, prompt, exclude)
        torch.testing.assert_close(found.tokens, expected(backbone, TEXTS, prompt, exclude), rtol=1e-4, atol=1e-5)
    assert len(states) == 15
    states.add(TEXTS, "", True)  # without a prompt there is nothing to leave out
    assert len(states) == 15


def test_another_precision_is_another_folder(tmp_path, backbone):
    whole, half = open_states(tmp_path, backbone), open_states(tmp_path, backbone, "float16")
    whole.add(TEXTS)
    half.add(TEXTS)
    assert whole.folder != half.folder
    assert 0 < float((whole.gather(TEXTS).tokens - half.gather(TEXTS).tokens).abs().max()) < 1e-2


def test_the_precision_that_a_trial_picked_is_in_the_key(tmp_path, backbone):
    config = RunConfig().with_values(task="mteb", backbone_dtype="auto", mteb_store=True, store_dir=str(tmp_path))
    encoder = SentenceEncoder(backbone, MeanPooler(backbone.hidden_size), "mean", {}, Prompts())
    assert open_text_states(config, encoder)._key.backbone_dtype == "float32"


def test_half_a_write_is_not_there_and_damage_is_found(tmp_path, backbone):
    states = open_states(tmp_path, backbone)
    states.add(TEXTS)
    (folder,) = states.folder.iterdir()
    kept = (folder / "texts.npy").read_bytes()
    (folder / "texts.npy").unlink()  # a process that was killed between both files
    again = open_states(tmp_path, backbone)
    assert len(again) == 0
    again.add(TEXTS)
    assert len(again) == 5 and (folder / "texts.npy").read_bytes() == kept
    np.save(folder / "texts.npy", np.zeros((4, 16), dtype=np.uint8))
    with pytest.raises(StoreError, match=r"texts\.npy is damaged"):
        open_states(tmp_path, backbone)
    (folder / "texts.npy").write_bytes(kept)
    data = bytearray((folder / "tokens.bin").read_bytes())
    data[5] ^= 1
    (folder / "tokens.bin").write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged .*is damaged in texts.*glot store rm"):
        open_states(tmp_path, backbone)


def test_several_layers_lie_side_by_side(tmp_path, tiny_bert):
    backbone = Backbone(find_backbone(str(tiny_bert)), 16, "float32", "0,2", torch.device("cpu"))
    key = StoreKey(backbone.source.identity, "0,2", 16, "float32", "float32", "")
    states = TextStates(tmp_path / "hidden", key, backbone, versions())
    states.add(TEXTS)
    torch.testing.assert_close(states.gather(TEXTS).tokens, expected(backbone, TEXTS), rtol=1e-4, atol=1e-5)


def test_the_stores_of_texts_are_listed_kept_and_removed(tmp_path, backbone, capsys):
    states = open_states(tmp_path, backbone)
    states.add(TEXTS)
    (folder,) = states.folder.iterdir()
    where = f"--store_dir={tmp_path / 'hidden'}"
    name = f"{states.folder.name}/{folder.name}"
    for words, said in ((["list"], name), (["verify"], f"{name}: as written"), (["gc", f"--output_dir={tmp_path}"], "nothing to remove")):
        assert glot_main(["store", words[0], where, *words[1:]]) == 0
        assert said in capsys.readouterr().out
    assert glot_main(["store", "rm", where, states.folder.name]) == 0
    assert f"{name}: removed" in capsys.readouterr().out and not states.folder.exists()
