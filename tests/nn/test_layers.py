"""Several hidden layers: standardisation, mixes, stores and live states, checkpoints, predictions and exports."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import glot
from glot.cli import glot_main, main
from glot.errors import ConfigError
from glot.nn.layers import LAYER_MIXES, NORMAL_RANGE, WIDEST, LayeredPooler
from glot.nn.poolers.fixed import MeanPooler
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.choices import PAIR_POOLERS, POOLERS
from glot.settings.config import GraphConfig, PoolerConfig
from glot.states.backbone import find_backbone
from glot.types import TokenBatch

ALL = "--hidden_layer=all"


def run(capsys, words: list[str], command=main) -> dict:
    assert command(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def fail(capsys, words: list[str], command=main) -> list[str]:
    assert command(words) == 2
    return capsys.readouterr().err.splitlines()


def batch_of(layers: int, d: int = 8) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    return TokenBatch.from_lengths(torch.randn(9, layers * d, generator=generator) * 5 + 2, torch.tensor([3, 1, 5]))


def scores_of(result: dict) -> np.ndarray:
    rows = list(csv.DictReader((Path(result["run_dir"]) / "predictions.csv").open()))
    names = [name for name in rows[0] if name.startswith("score_")] or ["prediction"]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_standardisation_is_numpys_and_cuts_what_is_far_out():
    batch = batch_of(3)
    pooler = LayeredPooler(MeanPooler, 24, 3, "concat")
    tokens = batch.tokens.clone()
    tokens[:, 5] = 4.0  # never changes
    pooler.fit(tokens)
    low, middle, high = np.quantile(tokens.numpy(), [0.25, 0.5, 0.75], axis=0)
    scale = (high - low) / NORMAL_RANGE
    scale[5] = 1.0
    tokens[0, 7] = 1e6
    expected = np.clip((tokens.numpy() - middle) / scale, -WIDEST, WIDEST)
    found = pooler.mixed(batch.with_tokens(tokens))[0].tokens.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[0, 7] == WIDEST and (found[:, 5] == 0).all()


def test_mixes_are_what_they_say():
    batch = batch_of(3)
    poolers = {mix: LayeredPooler(MeanPooler, 24, 3, mix) for mix in LAYER_MIXES}
    means = torch.stack([rows.mean(0) for rows in batch.tokens.clamp(-WIDEST, WIDEST).split([3, 1, 5])])
    for mix in ("concat", "stack"):
        assert torch.allclose(poolers[mix](batch), means, atol=1e-5)
    assert len(poolers["stack"].poolers) == 3 and len(poolers["concat"].poolers) == 1
    scalar = poolers["scalar"]
    torch.nn.init.normal_(scalar.logits)
    shares = torch.tensor(scalar.layer_weights)
    assert torch.allclose(scalar(batch), (means.unflatten(1, (3, 8)) * shares.unsqueeze(1)).sum(1), atol=1e-5)
    scalar(batch).square().sum().backward()
    assert float(scalar.logits.grad.abs().min()) > 0 and shares.sum() == pytest.approx(1)
    assert poolers["concat"].layer_weights == []


@pytest.mark.parametrize("mix", sorted(LAYER_MIXES))
@pytest.mark.parametrize("name", POOLERS)
def test_every_pooler_takes_several_layers(name, mix):
    torch.manual_seed(0)
    config = PoolerConfig(name, gat_hidden_dim=4, num_layers=1, scorer_hidden=4, layer_mix=mix)
    pooler = build_model_pooler(config, GraphConfig(), 24, layers=3)
    batch = batch_of(3)
    sides = (batch,) * pooler.sides
    vectors = pooler.eval()(*sides)
    assert vectors.shape == (3, pooler.out_dim) and bool(torch.isfinite(vectors).all())
    single = [TokenBatch.from_lengths(rows, torch.tensor([len(rows)])) for rows in batch.tokens.split([3, 1, 5])]
    alone = torch.cat([pooler(*[one] * pooler.sides) for one in single])
    assert torch.allclose(vectors, alone, atol=1e-4)
    if name not in PAIR_POOLERS:
        assert torch.allclose(pooler.readout(batch)[0], vectors, atol=1e-5)


def test_layers_have_one_name(tiny_bert):
    source = find_backbone(str(tiny_bert))
    last = source.num_layers
    assert source.resolve_layers("all") == tuple(map(str, range(last + 1)))
    assert source.resolve_layers("-1") == (str(last),) and source.resolve_layers("-1,0") == ("0", str(last))
    assert source.resolve_layers(f"every:{last + 3}") == ("0", str(last)) and source.resolve_layers("every:1") == source.resolve_layers(
        "all"
    )


@pytest.mark.parametrize("pooler", ["mean", "glot"])
@pytest.mark.parametrize("mix", sorted(LAYER_MIXES))
def test_a_run_on_all_layers(capsys, tiny_flags, tmp_path, mix, pooler):
    flags = [*tiny_flags, f"--pooling_method={pooler}", "--gat_hidden_dim=8", "--lr=1e-2", f"--layer_mix={mix}"]
    result = run(capsys, [*flags, ALL])
    stores = [glot.open_store(path) for path in result["store"]["paths"]]
    assert len(stores) == 3 and result["store"]["bytes"] == sum(store.manifest.size_bytes for store in stores)
    weights = load_file(Path(result["run_dir"]) / "model.safetensors")
    assert weights["pooler.center"].shape == (48,) and float((weights["pooler.scale"] - 1).abs().max()) > 0
    assert ("layer_weights" in result) == (mix == "scalar")
    if mix == "scalar":
        assert list(result["layer_weights"]) == ["0", "1", "2"] and sum(result["layer_weights"].values()) == pytest.approx(1, abs=1e-5)
    named = run(capsys, [*flags, "--hidden_layer=0,1,-1", "--overwrite=1"])
    assert named["fingerprint"] == result["fingerprint"]  # the same layers under another name
    live = run(capsys, [flag for flag in flags if "store_dir" not in flag] + [ALL, "--precompute_hidden_states=0"])
    assert np.abs(scores_of(live) - scores_of(result)).max() < 5e-2  # stored states have half precision
    loaded = glot.load(result["run_dir"], device="cpu")
    texts = ["the red cat", "a blue sky is here"]
    rows = list(csv.DictReader((Path(result["run_dir"]) / "predictions.csv").open()))
    assert np.abs(loaded.scores([row["sentence"] for row in rows]) - scores_of(result)).max() < 1e-4
    target = tmp_path / "exported"
    assert glot_main(["export", str(result["run_dir"]), f"--to={target}"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert f"- states: hidden layers 0, 1, 2 ({mix})" in (target / "README.md").read_text()
    exported = SentenceTransformer(str(target), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(exported.encode(texts), loaded.encode(texts), atol=1e-4)
    assert exported.half().encode(texts).shape == (2, loaded.dim)


def test_seeds_on_several_layers_train_side_by_side(capsys, tiny_flags):
    flags = [*tiny_flags, ALL, "--layer_mix=stack", "--pooling_method=adapool", "--lr=1e-2", "--seeds=3,1"]
    together = run(capsys, [*flags, "--stack_seeds=1", "--run_name=together"])["runs"]
    alone = run(capsys, [*flags, "--order_seed=3", "--run_name=alone"])["runs"]
    for one, other in zip(together, alone, strict=True):
        assert one["best"]["metrics"] == pytest.approx(other["best"]["metrics"], abs=1e-4)
        assert np.abs(scores_of(one) - scores_of(other)).max() < 2e-3
    refused = fail(capsys, [*flags, "--layer_mix=scalar", "--stack_seeds=1"])
    assert any("--layer_mix=scalar: each run has its own sum of the layers" in line for line in refused)


def test_layer_weights_are_those_of_the_folds_and_are_plotted(tiny_bert, mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLOT_DATA_DIR", str(mirror))
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "hidden"))
    (tmp_path / "s.yaml").write_text(f"""
kind: study
name: s
runs_with: {{model_name_or_path: {tiny_bert}, task: cola, max_length: 16, folds: 3, hidden_layer: all, layer_mix: scalar, lr: 0.05}}
arms:
  mean: {{pooling_method: mean}}
  adapool: {{pooling_method: adapool}}
seeds: [0, 1]
""")
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), f"--output_dir={tmp_path}"]) == 0, capsys.readouterr().err
    assert "layer_weights.png" in capsys.readouterr().out and (tmp_path / "s/layer_weights.png").stat().st_size > 5000
    runs = [json.loads((path / "result.json").read_text()) for path in (tmp_path / "s/runs").iterdir()]
    for run_ in runs:
        folds = [json.loads((Path(run_["run_dir"]) / f"fold-{fold}/result.json").read_text())["layer_weights"] for fold in range(3)]
        assert run_["layer_weights"] == {layer: pytest.approx(np.mean([one[layer] for one in folds]), abs=1e-5) for layer in "012"}
        assert len({tuple(one.values()) for one in folds}) == 3


def test_the_density_is_that_of_the_graph_the_pooler_makes(capsys, tiny_flags):
    graph = [*tiny_flags, ALL, "--tau=0.2", "--layer_mix=scalar"]
    result = run(capsys, [*graph, "--pooling_method=glot", "--gat_hidden_dim=8", "--epochs=1", "--lr=0"])
    stores = [glot.open_store(path) for path in result["store"]["paths"]]
    weights = load_file(Path(result["run_dir"]) / "model.safetensors")
    joined = pairs = 0
    for texts in zip(*stores, strict=True):
        raw = torch.cat(texts, 1)
        states = ((raw - weights["pooler.center"]) / weights["pooler.scale"]).clamp(-WIDEST, WIDEST).unflatten(1, (3, 16)).mean(1)
        cosines = torch.nn.functional.normalize(states, dim=1) @ torch.nn.functional.normalize(states, dim=1).T
        joined += int((cosines > 0.2).sum()) - len(states)
        pairs += len(states) * (len(states) - 1)
    assert result["graph"]["density"] == pytest.approx(joined / pairs, abs=2e-3) and 0 < joined < pairs
    assert glot_main(["graph", *graph]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0.2 *")]
    assert float(line.split("|")[2].strip(" %")) == pytest.approx(100 * joined / pairs, abs=0.2)


def test_several_layers_need_training_rows(capsys, tiny_flags, tiny_bert, tmp_path):
    words = ["encode", "--input=-", f"--output={tmp_path / 'v.npy'}", "--pooling_method=mean", f"--model_name_or_path={tiny_bert}", ALL]
    (line,) = fail(capsys, words, glot_main)
    assert "--hidden_layer=all: several layers are standardised by training rows" in line
    (line,) = fail(capsys, [*words[:3], "--pooling_method=alignment", *words[4:5]], glot_main)
    assert "--pooling_method=alignment: scores pairs of texts, and it gives no sentence vector" in line and "--task" not in line


@pytest.mark.parametrize(("pooler", "mix"), [("mean", "scalar"), ("adapool", "concat"), ("glot", "stack")])
def test_contrastive_training_on_layers_and_its_released_file(capsys, tiny_flags, tmp_path, pooler, mix):
    rows = [
        {"query": f"the {word} cat", "pos": [f"a {word} dog runs"]}
        for word in ["red", "blue", "big", "small", "green", "not", "sky", "here"]
    ]
    write_rows(tmp_path / "pairs.jsonl", [{**row, "query": f"{row['query']} {place}"} for place in range(3) for row in rows])
    flags = [flag for flag in tiny_flags if "--task" not in flag and "data_dir" not in flag]
    flags += ["--task=embedding", f"--train_file={tmp_path / 'pairs.jsonl'}", f"--save_dir={tmp_path / 'saved'}", "--epochs=1"]
    result = run(
        capsys, [*flags, ALL, f"--layer_mix={mix}", f"--pooling_method={pooler}", *(["--gat_hidden_dim=8"] if pooler == "glot" else [])]
    )
    texts = ["the red cat", "a"]
    of_run, of_file = (glot.load(path, device="cpu").encode(texts) for path in (result["run_dir"], result["checkpoint"]))
    np.testing.assert_allclose(of_run, of_file, atol=1e-6)
    Path(result["checkpoint"] + ".json").unlink()
    words = ["--task=mteb", f"--checkpoint_path={result['checkpoint']}", "--mteb_task=STS12", f"--model_name_or_path={tiny_bert_of(flags)}"]
    assert "several hidden layers" in fail(capsys, words)[0]


def tiny_bert_of(flags: list[str]) -> str:
    return next(flag for flag in flags if flag.startswith("--model_name_or_path=")).partition("=")[2]


def test_an_own_rule_inside_the_sentences_of_a_pair(capsys, tiny_flags, tmp_path):
    (tmp_path / "rule.py").write_text(
        "import torch\n\n\ndef everyone(tokens):\n    return torch.ones(len(tokens), len(tokens), dtype=torch.bool)\n"
    )
    flags = [*tiny_flags, *PAIRS, "--pooling_method=crossglot", "--cross_inside=1", "--epochs=1"]
    own = run(capsys, [*flags, f"--graph_adj={tmp_path / 'rule.py'}:everyone"])
    known = run(capsys, [*flags, "--graph_adj=complete"])
    assert np.abs(scores_of(own) - scores_of(known)).max() < 1e-5 and own["fingerprint"] != known["fingerprint"]
    (line,) = fail(capsys, [*flags, f"--graph_adj={tmp_path / 'nothere.py'}:everyone", "--dry_run=1"])
    assert "nothere.py" in line and "NoneType" not in line


def test_what_a_model_does_not_have_is_one_line(capsys, tiny_flags):
    (line,) = fail(capsys, [*tiny_flags, "--hidden_layer=0,9"])
    assert "--hidden_layer=0,9: 9: " in line and "hidden states 0 (embeddings) to 2" in line
    (line,) = fail(capsys, [*tiny_flags, "--hidden_layer=2,-1"])
    assert "names layer 2" in line and "twice" in line


PAIRS = ["--task=mrpc", "--gat_hidden_dim=8", "--lr=1e-2"]


@pytest.mark.parametrize("extra", [[], [ALL, "--layer_mix=stack"], ["--head=probe"]], ids=["trained", "layers", "probe"])
@pytest.mark.parametrize("pooler", PAIR_POOLERS)
def test_a_pooler_of_pairs_predicts_and_gives_no_vector(capsys, tiny_flags, tmp_path, pooler, extra):
    result = run(capsys, [*tiny_flags, *PAIRS, f"--pooling_method={pooler}", "--eval_batch_size=64", *extra])
    rows = list(csv.DictReader((Path(result["run_dir"]) / "predictions.csv").open()))
    loaded = glot.load(result["run_dir"], device="cpu")
    pairs = [(row["sentence1"], row["sentence2"]) for row in rows]
    assert np.abs(loaded.scores(pairs, batch_size=7) - scores_of(result)).max() < 1e-3
    assert np.abs(loaded.scores([(second, first) for first, second in pairs]) - scores_of(result)).max() < 1e-3  # mrpc is symmetric
    with pytest.raises(ConfigError, match="scores pairs and gives no sentence vector"):
        loaded.encode(["a text"])
    (line,) = fail(capsys, ["export", str(result["run_dir"]), f"--to={tmp_path / 'out'}"], glot_main)
    assert f"--pooling_method={pooler} scores pairs" in line and not (tmp_path / "out").exists()
    (line,) = fail(capsys, ["encode", str(result["run_dir"]), "--input=-", f"--output={tmp_path / 'v.npy'}"], glot_main)
    assert "scores pairs and gives no sentence vector" in line


@pytest.mark.parametrize("pooler", PAIR_POOLERS)
@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_a_pooler_of_pairs_on_scores_and_on_three_classes(capsys, tiny_flags, task, pooler):
    result = run(
        capsys, [*tiny_flags, *PAIRS, f"--task={task}", f"--pooling_method={pooler}", "--epochs=2", "--seeds=1,2", "--stack_seeds=1"]
    )
    assert len(result["runs"]) == 2 and all(np.isfinite(scores_of(one)).all() for one in result["runs"])


CROSSED = ["--pooling_method=crossglot", "--tau=0.2"]
CHANGES = [
    *([*CROSSED, f"--cross_adj={kind}"] for kind in ("knn", "complete", "none", "random", "shuffled")),
    [*CROSSED, "--cross_inside=1"],
    [*CROSSED, "--tau=0.6"],
    ["--pooling_method=alignment", "--cross_adj=shuffled"],
    ["--pooling_method=glot", "--jk_mode=none"],
    ["--pooling_method=glot", "--input_proj=1"],
    ["--pooling_method=mean", "--pair_features=cosine"],
    ["--pooling_method=glot", "--train_dtype=bfloat16"],
]


@pytest.mark.parametrize("flags", CHANGES, ids=" ".join)
def test_each_choice_moves_the_scores_of_a_run(capsys, tiny_flags, flags):
    base = CROSSED if flags[: len(CROSSED)] == CROSSED else flags[:1]
    first, second = (run(capsys, [*tiny_flags, *PAIRS, "--epochs=1", *words]) for words in (base, flags))
    assert first["fingerprint"] != second["fingerprint"]
    assert np.abs(scores_of(first) - scores_of(second)).max() > 1e-5
