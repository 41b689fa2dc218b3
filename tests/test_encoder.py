"""Texts to vectors: order, batches, devices, what a trained run and a checkpoint give."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows

import glot
from glot.cli import main
from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError
from glot.nn.poolers.fixed import ClsPooler, MeanPooler
from glot.states.backbone import Backbone, find_backbone
from glot.training.checkpoint import load_run
from glot.types import TokenBatch

CPU = torch.device("cpu")
TEXTS = ["red cat", "the big dog runs", "a", "not the small blue cat sleeps", "red cat", "green"]


def naive(encoder: SentenceEncoder, texts: list[str]) -> np.ndarray:
    """One text at a time through the library's own tokenizer and model."""
    backbone, rows = encoder.backbone, []
    for text in texts:
        coded = backbone.tokenizer([text], return_tensors="pt", truncation=True, max_length=backbone.max_length)
        with torch.no_grad():
            states = backbone.model(**coded).last_hidden_state[0].float()
            rows.append(encoder.pooler(TokenBatch.from_lengths(states, torch.tensor([len(states)])))[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
def test_vectors_are_those_of_one_text_at_a_time_in_the_given_order(request, model):
    backbone = Backbone(find_backbone(str(request.getfixturevalue(model))), 5, "float32", "2", CPU)
    encoder = SentenceEncoder(backbone, MeanPooler(16))
    expected = naive(encoder, TEXTS)
    for size in (1, 2, 100):
        found = encoder.encode(TEXTS, batch_size=size, normalize=False)
        assert found.dtype == np.float32 and found.shape == (6, 16)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    unit = encoder.encode(TEXTS)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(expected, expected[:2]), unit @ unit[:2].T, atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_windows_and_devices_change_nothing(tiny_bert, monkeypatch):
    backbone = Backbone(find_backbone(str(tiny_bert)), 16, "float32", "2", CPU)
    encoder = SentenceEncoder(backbone, MeanPooler(16))
    expected = encoder.encode(TEXTS * 5, batch_size=4)
    for pooled in (1, 17):  # texts that pass the pooler together: one batch, or as many as hold so many tokens
        monkeypatch.setattr("glot.encoder.POOLED_TOKENS", pooled)
        np.testing.assert_allclose(encoder.encode(TEXTS * 5, batch_size=4), expected, atol=1e-6)
    monkeypatch.setattr("glot.encoder.WINDOW", 7)
    np.testing.assert_allclose(encoder.encode(TEXTS * 5, batch_size=4), expected, atol=1e-6)
    monkeypatch.setattr("glot.encoder.pick_device", lambda name: torch.device("cpu", int(name)))  # two names of one processor
    copies = []
    monkeypatch.setattr(Backbone, "copy_to", lambda self, device: copies.append(device) or backbone)
    np.testing.assert_allclose(encoder.encode(TEXTS * 5, batch_size=4, devices=["0", "1", "1"]), expected, atol=1e-6)
    assert copies == [torch.device("cpu", 0), torch.device("cpu", 1)]


def test_a_copy_of_a_backbone_is_a_model_of_its_own(tiny_bert):
    backbone = Backbone(find_backbone(str(tiny_bert)), 16, "float32", "2", CPU)
    other = backbone.copy_to(CPU)
    ids = backbone.tokenise(TEXTS[:2])
    torch.testing.assert_close(other.encode(ids).tokens, backbone.encode(ids).tokens)
    next(other.model.parameters()).zero_()
    assert not torch.equal(other.encode(ids).tokens, backbone.encode(ids).tokens)


def test_a_text_without_tokens_is_one_end_token_and_that_is_said_once(tiny_llama, caplog):
    encoder = SentenceEncoder(Backbone(find_backbone(str(tiny_llama)), 8, "float32", "2", CPU), MeanPooler(16), "mine")
    found = encoder.encode(["red", "", " "])
    np.testing.assert_allclose(found[1], found[2])
    np.testing.assert_allclose(found[1], encoder.encode(["</s>"])[0], atol=1e-6)
    assert caplog.text.count(": a text without tokens is read as one end token") == 1
    with pytest.raises(ConfigError, match="batch_size=0"):
        encoder.encode(["a"], batch_size=0)


def test_the_fingerprint_follows_what_a_vector_depends_on(tiny_bert):
    source = find_backbone(str(tiny_bert))
    backbones = [Backbone(source, length, "float32", layer, CPU) for length, layer in ((8, "2"), (9, "2"), (8, "1"))]
    prints = [SentenceEncoder(backbone, MeanPooler(16)).fingerprint() for backbone in backbones]
    prints += [SentenceEncoder(backbones[0], ClsPooler(16, last)).fingerprint() for last in (False, True)]
    prints += [SentenceEncoder(backbones[0], MeanPooler(16), settings={"jk_mode": jump}).fingerprint() for jump in ("max", "mean")]
    assert len(set(prints)) == 7 and prints[0] == SentenceEncoder(backbones[0], MeanPooler(16), "other name").fingerprint()


@pytest.fixture(scope="module")
def trained(tiny_bert, tmp_path_factory) -> Path:
    """The folder of a contrastive GLOT run on the tiny encoder."""
    root = tmp_path_factory.mktemp("trained")
    words = ("red", "blue", "green", "big", "small")
    rows = [{"query": f"{one} {other}", "pos": [f"the {one} {other} cat"], "neg": ["not a dog"]} for one in words for other in words]
    write_rows(root / "pairs.jsonl", rows)
    flags = f"--task=embedding --train_file={root}/pairs.jsonl --pooling_method=glot --gat_hidden_dim=8 --tau=0.5 --lr=1e-2 --epochs=3"
    flags += f" --batch_size=8 --heldout_fraction=0.3 --max_length=12 --verbose=0 --run_name=run --model_name_or_path={tiny_bert}"
    flags += f" --output_dir={root}/runs --store_dir={root}/hidden --save_dir={root}/saved"
    assert main(flags.split()) == 0
    return root


def test_a_run_loads_with_the_public_api(trained):
    encoder = glot.load(str(trained / "runs/run"))
    model, config, _ = load_run(trained / "runs/run")
    assert encoder.backbone.max_length == 12 and encoder.dim == 32
    np.testing.assert_allclose(encoder.encode(TEXTS, normalize=False), naive(encoder, TEXTS), atol=1e-6)
    for one, other in zip(encoder.pooler.parameters(), model.pooler.parameters(), strict=True):
        assert torch.equal(one, other)
    (released,) = (trained / "saved").glob("*.pth")
    np.testing.assert_allclose(glot.load(released).encode(TEXTS), encoder.encode(TEXTS), atol=1e-7)
    assert glot.load(released, max_length=4, backbone_dtype="bfloat16").backbone.max_length == 4
    assert config.pooler.pooling_method == "glot"


def test_checkpoints_that_cannot_be_loaded(trained, tmp_path, tiny_bert):
    for path, complaint in (
        (tmp_path / "none", "not there"),
        (tmp_path, "no config.json; give the folder"),
        (tiny_bert, "is no configuration"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            glot.load(path)
    (released,) = (trained / "saved").glob("*.pth")
    broken = tmp_path / "broken.pth"
    shutil.copy(released.with_name(released.name + ".json"), tmp_path / "broken.pth.json")
    state = torch.load(released, weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1.0
    torch.save(state, broken)
    with pytest.raises(CheckpointError, match=r"is not what was written beside broken.pth.json"):
        glot.load(broken)
    next(iter(state.values())).view(-1)[0] = torch.nan
    torch.save(state, broken)
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        glot.load(broken)
    bare = tmp_path / "bare.pth"
    shutil.copy(released, bare)
    with pytest.raises(CheckpointError, match="nothing beside it says which backbone"):
        glot.load(bare)
    copy = tmp_path / "run"
    shutil.copytree(trained / "runs/run", copy)
    saved = json.loads((copy / "config.json").read_text())
    saved["resolved"]["backbone"] = "sha256:0"
    (copy / "config.json").write_text(json.dumps(saved))
    one = glot.load(released).encode("red cat")  # a single text is a single vector
    np.testing.assert_allclose(one, glot.load(released).encode(["red cat"])[0], atol=1e-7)
    with pytest.raises(ConfigError, match="--backbone_dtype=float8: unknown"):
        glot.load(released, backbone_dtype="float8")
    with pytest.raises(ConfigError, match="max_length=0: must be a whole number of at least 1"):
        glot.load(released, max_length=0)
    with pytest.raises(CheckpointError, match=r"was trained on another .* \(sha256:0 there, sha256:"):
        glot.load(copy)


DAMAGES = {
    "is no configuration of a run": lambda saved: "[",
    "is no configuration of a run of this": lambda saved: json.dumps([saved]),
    "written by another version \\(unknown: future\\)": lambda saved: json.dumps({**saved, "flags": {**saved["flags"], "future": 1}}),
}


@pytest.mark.parametrize("complaint", DAMAGES)
def test_damaged_configurations(trained, tmp_path, complaint):
    copy = tmp_path / "run"
    shutil.copytree(trained / "runs/run", copy)
    saved = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(DAMAGES[complaint](saved))
    with pytest.raises(CheckpointError, match=complaint):
        glot.load(copy)


def test_damaged_weights(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained / "runs/run", copy)
    (copy / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not what the run wrote; do the run again"):
        glot.load(copy)
    (copy / "result.json").unlink()  # a run of an older version has no checksums
    with pytest.raises(CheckpointError, match="weights and configuration disagree"):
        glot.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors; give the folder of a finished run"):
        glot.load(copy)


EVERY_POOLER = {
    "adapool": "--pooling_method=adapool --scorer_hidden=4",
    "mlp": "--pooling_method=mlp --gat_hidden_dim=6",
    "pma": "--pooling_method=pma",
    "latent": "--pooling_method=latent --gat_hidden_dim=5",
    "random graph": "--pooling_method=glot --gat_hidden_dim=4 --graph_adj=random --tau=0.2 --data_seed=3",
    "mean of layers": "--pooling_method=glot --gat_hidden_dim=4 --jk_mode=mean",
    "fine-tuned": "--pooling_method=adapool --finetune_backbone=1 --backbone_lr=1e-2",
    "with an adapter": "--pooling_method=glot --gat_hidden_dim=4 --finetune_backbone=lora --backbone_lr=1e-2",
}


@pytest.mark.parametrize("name", EVERY_POOLER)
def test_the_released_file_of_every_pooler_gives_the_runs_vectors(name, trained, tmp_path, tiny_bert):
    flags = f"--task=embedding --train_file={trained}/pairs.jsonl --lr=1e-2 --epochs=1 --batch_size=8 --max_length=12 --verbose=0"
    flags += f" --run_name=run --model_name_or_path={tiny_bert} --output_dir={tmp_path} --save_dir={tmp_path}/saved {EVERY_POOLER[name]}"
    flags += "" if "finetune" in flags else f" --store_dir={tmp_path}/hidden"
    assert main(flags.split()) == 0
    (released,) = (tmp_path / "saved").glob("*.pth")
    np.testing.assert_allclose(glot.load(released).encode(TEXTS), glot.load(tmp_path / "run").encode(TEXTS), atol=1e-6)
    if "finetune" in flags:
        shutil.rmtree(tmp_path / "run/backbone")
        with pytest.raises(CheckpointError, match="was trained together with its backbone, which is not in"):
            glot.load(released)
