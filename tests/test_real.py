"""The embedded backbone on real data (slow), and the demo on a tiny one."""

import json

import numpy as np
import pytest
import torch

from glot.cli import demo_main, main
from glot.data import load_hub_examples
from glot.data.loader import TextIndex
from glot.nn.poolers import build_pooler
from glot.progress import Clock
from glot.settings.config import GraphConfig, PoolerConfig, RunConfig
from glot.states.backbone import Backbone, LiveTokens, find_backbone
from glot.states.store import StorePlan
from glot.states.tokens import open_tokens
from glot.study import demo

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_live_states_equal_a_float32_store(name, real_data, tmp_path):
    examples = load_hub_examples("rte", "train", real_data, {"minilm": 40, "smollm2": 8}[name])
    index = TextIndex([examples])
    source = find_backbone(name)
    config = RunConfig().with_values(model_name_or_path=name, store_dir=str(tmp_path), store_dtype="float32", verbose=False)
    stored = open_tokens(config, source, index, CPU, Clock())
    live = open_tokens(config.with_values(precompute_hidden_states=False), source, index, CPU, Clock())
    assert isinstance(live, LiveTokens) and len(live) == len(stored) == len(index.texts)
    rows = np.random.default_rng(0).permutation(len(index.texts))
    for start in range(0, len(rows), 5):
        one, other = stored.gather(rows[start : start + 5]), live.gather(rows[start : start + 5])
        scale = max(1.0, float(one.tokens.abs().max()))  # smollm2 has states of size 30
        torch.testing.assert_close(one.tokens / scale, other.tokens / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_half_precision_stores_pool_to_nearly_the_same_vectors(real_data, tmp_path):
    index = TextIndex([load_hub_examples("stsb", "train", real_data, 100)])
    source, vectors = find_backbone("minilm"), {}
    torch.manual_seed(0)
    pooler = build_pooler(PoolerConfig("glot"), GraphConfig(tau=0.8), 384)
    for dtype in ("float32", "float16", "bfloat16"):
        config = RunConfig().with_values(store_dir=str(tmp_path), store_dtype=dtype, verbose=False)
        tokens = open_tokens(config, source, index, CPU, Clock()).gather(np.arange(len(index.texts)))
        vectors[dtype] = pooler(tokens).detach()
    for dtype, smallest in (("float16", 0.999), ("bfloat16", 0.99)):  # a cosine near tau may fall on the other side
        assert torch.cosine_similarity(vectors["float32"], vectors[dtype]).min() > smallest


@pytest.mark.slow
def test_cola_takes_a_twentieth_of_padded_float32(real_data):
    examples = load_hub_examples("cola", "train", real_data, None)
    backbone = Backbone(find_backbone("minilm"), 128, "float32", "6", CPU)
    lengths = np.array([len(ids) for ids in backbone.tokenise(TextIndex([examples]).texts)])
    assert StorePlan(lengths, 384, "float16").size_bytes * 20 < 8551 * 128 * 384 * 4


@pytest.mark.slow
def test_a_glue_line_on_real_data_beats_the_majority(real_data, tmp_path, capsys):
    flags = ["--task=sst2", f"--data_dir={real_data}", "--num_train_samples=2000", "--pooling_method=adapool", "--lr=1e-3", "--verbose=0"]
    assert main([*flags, f"--store_dir={tmp_path}", f"--output_dir={tmp_path / 'runs'}", "--selection=heldout"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["best"]["metrics"]["accuracy"] > 0.7
    assert result["store"]["sentences"] == 2000 + 872


def test_the_demo_on_a_tiny_backbone(tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "DEMO", {**demo.DEMO, "epochs": 2, "num_train_samples": "60", "num_eval_samples": 40, "max_length": 48})
    flags = [f"--model_name_or_path={tiny_bert}", f"--output_dir={tmp_path / 'runs'}", f"--store_dir={tmp_path / 'hidden'}", "--verbose=0"]
    assert demo_main(flags) == 0
    table = capsys.readouterr().out
    for name in demo.DEMO_POOLERS:
        assert f"| {name} " in table
    assert "| (length alone)" in table and table.split("(length alone)")[1].split("|")[1].strip() == "100.0 %"
    assert (tmp_path / "runs/demo/table.md").read_text() in table
    assert (tmp_path / "runs/demo/figure.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "hidden").iterdir())) == 1
