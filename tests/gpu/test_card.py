"""What must be equal on a card: outputs and gradients to the CPU's, runs to themselves, and no waiting for the card within a step."""

import json
import warnings

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F

import glot
from glot.cli import glot_main, main
from glot.distributed import Processes
from glot.nn.graph import GraphRule
from glot.nn.heads import InBatchHead, SingleHead
from glot.nn.losses import symmetric_info_nce
from glot.nn.model import SentenceModel
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.choices import CROSS_GRAPHS, GRAPHS, POOLERS
from glot.settings.config import RunConfig
from glot.states.backbone import pick_device
from glot.types import Batch, TokenBatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")]
WAITING = {"random", "shuffled", "knn", "mlp"}
"""Controls that draw on the CPU; knn, which lists its pairs; batch normalisation, which counts rows."""
CASES = [
    *({"pooling_method": name} for name in POOLERS),
    *({"pooling_method": "glot", "graph_adj": name, "tau": 0.2} for name in GRAPHS),
    *({"pooling_method": "crossglot", "cross_adj": name, "tau": 0.2} for name in CROSS_GRAPHS),
]
GLOT = ["--pooling_method=glot", "--gat_hidden_dim=8"]
RUNS = {
    "live states": ["--pooling_method=adapool", "--precompute_hidden_states=0"],
    "bfloat16": [*GLOT, "--train_dtype=bfloat16"],
    "layers side by side": [*GLOT, "--hidden_layer=all", "--layer_mix=concat"],
    "mixed layers": ["--pooling_method=adapool", "--hidden_layer=all", "--layer_mix=scalar"],
    "a probe": ["--pooling_method=mean", "--head=probe"],
    "pairs": ["--pooling_method=crossglot", "--gat_hidden_dim=8", "--task=mrpc"],
    "aligned pairs": ["--pooling_method=alignment", "--task=stsb"],
    "stacked seeds": [*GLOT, "--seeds=0..2", "--stack_seeds=1"],
    "folds": ["--pooling_method=mean", "--folds=2"],
    "readers ahead": [*GLOT, "--num_workers=2"],
    "a backbone over all cards": ["--pooling_method=mean", "--device=spread"],
}
SHORT, LONG = (5, 40, 3, 12), (2300, 200)


def name_of(flags: dict) -> str:
    """Of a case."""
    return " ".join(map(str, flags.values()))


def outcome(flags: dict, lengths: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Output and gradient of a pooler, made and fed alike on every device."""
    config = RunConfig().with_values(gat_hidden_dim=16, scorer_hidden=16, **flags)
    torch.manual_seed(0)
    pooler = build_model_pooler(config.pooler, config.graph, 32, 0).eval()
    sides = [TokenBatch.from_lengths(torch.randn(sum(lengths), 32) + 0.3, torch.tensor(lengths)) for _ in range(2)]
    pooler = pooler.to(device)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        vectors = pooler(*(side.to(device) for side in sides[: pooler.sides])).float()
    weights = list(pooler.parameters())
    if weights:
        (vectors * torch.cos(torch.arange(vectors.numel(), device=device).view_as(vectors))).sum().backward()
    grads = [weight.grad.flatten().cpu() for weight in weights if weight.grad is not None]
    return vectors.detach().cpu().numpy(), torch.cat([*grads, torch.zeros(1)]).numpy()


@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("flags", CASES, ids=name_of)
def test_outputs_and_gradients_are_those_of_the_cpu(flags, lengths):
    expected, rounded = (outcome(flags, lengths, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        output, gradient = outcome(flags, lengths, "cuda", dtype)
        assert np.linalg.norm(expected[0] - output) <= bound * max(1.0, float(np.linalg.norm(expected[0])))
        # rounding to bfloat16 moves gradients through a ReLU by up to 0.1 on the CPU too (crossglot without edges)
        own = 2 * np.linalg.norm(expected[1] - rounded[1]) if dtype == torch.bfloat16 else 0.0
        assert np.linalg.norm(expected[1] - gradient) <= max(own, bound * max(1.0, float(np.linalg.norm(expected[1]))))


@pytest.mark.parametrize("engine", ["dense", "edges", "auto"])
def test_every_engine_gives_the_same_on_the_card(engine):
    torch.manual_seed(0)
    pooler = GlotPooler(32, 16, 2, "gat", "cat", GraphRule("threshold", tau=0.3))
    batch = TokenBatch.from_lengths(torch.randn(300, 32), torch.tensor([200, 100]))
    expected = pooler(batch)
    for conv in pooler.convs:
        conv.engine = engine
    torch.testing.assert_close(pooler.cuda()(batch.to("cuda")).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_one_card_has_one_name():
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("flags", [case for case in CASES if not WAITING & set(case.values())], ids=name_of)
def test_a_step_does_not_wait_for_the_card(flags):
    """From states in half precision on the CPU to the optimizer's step; sentences of 3 to 299 tokens."""
    config = RunConfig().with_values(**{"tau": 0.6, **flags})
    torch.manual_seed(0)
    pooler = build_model_pooler(config.pooler, config.graph, 384, 0).cuda()
    lengths = torch.randint(3, 300, (32,))
    sides = tuple(TokenBatch.from_lengths(torch.randn(int(lengths.sum()), 384).half(), lengths) for _ in range(pooler.sides))
    model = SentenceModel(pooler, SingleHead(pooler.out_dim, 2)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    waits = []
    for count in range(3):
        torch.cuda.set_sync_debug_mode("warn" if count else "default")  # the first step allocates
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batch = Batch(sides, torch.arange(32) % 2).to("cuda").widened()
            F.cross_entropy(model(batch), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.set_sync_debug_mode("default")
        waits += [f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)]
    assert waits == []


def test_gradients_over_nccl_with_one_rank_are_those_without_a_group(tmp_path):
    """One card, one rank: DistributedDataParallel and the gathered rows of a contrastive batch."""
    torch.manual_seed(0)
    pooler = GlotPooler(32, 16, 2, "gat", "cat", GraphRule("threshold", tau=0.3)).cuda()
    batch = TokenBatch.from_lengths(torch.randn(60, 32), torch.tensor([20, 30, 10])).to("cuda")

    def gradients(module, shares):
        sides = Batch((batch, batch), None, shares)
        pooler.zero_grad(set_to_none=True)
        symmetric_info_nce(module(sides), None).backward()
        return [weight.grad.clone() for weight in pooler.parameters() if weight.grad is not None]

    model = SentenceModel(pooler, InBatchHead(pooler.out_dim))
    expected = gradients(model, ())
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        found = gradients(Processes(0, 2).wrap(model), ((3,), (3,)))
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", ["adapool", "glot"])
def test_a_run_on_the_card_repeats_itself_and_scores_as_on_the_cpu(pooler, tiny_flags, tmp_path, capsys):
    found = {}
    for name, device in (("one", "cuda"), ("two", "cuda"), ("cpu", "cpu")):
        assert main([*tiny_flags, f"--pooling_method={pooler}", f"--device={device}", f"--run_name={name}", "--lr=1e-2"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    same = [(tmp_path / f"runs/{name}/model.safetensors").read_bytes() for name in ("one", "two")]
    assert same[0] == same[1] and found["one"]["best"]["metrics"] == found["two"]["best"]["metrics"]
    for metric, value in found["cpu"]["best"]["metrics"].items():
        assert found["one"]["best"]["metrics"][metric] == pytest.approx(value, abs=0.1)
    texts = ["the red cat", "a dog"]
    vectors = [glot.load(tmp_path / "runs/one", device=device).encode(texts) for device in ("cuda", "cpu")]
    np.testing.assert_allclose(*vectors, atol=1e-4)
    assert glot_main(["export", str(tmp_path / "runs/one"), "--to", str(tmp_path / "export")]) == 0
    model = SentenceTransformer(str(tmp_path / "export"), trust_remote_code=True, device="cuda")
    np.testing.assert_allclose(model.encode(texts), vectors[0], atol=1e-4)


@pytest.mark.parametrize("kind", RUNS)
def test_runs_of_all_kinds_learn_on_the_card_as_on_the_cpu(kind, tiny_flags, tmp_path, capsys):
    found = []
    for device in ("cuda", "cpu"):
        words = [word for word in tiny_flags if not word.startswith("--store_dir")]
        words += [f"--store_dir={tmp_path}/{device}"] if kind != "live states" else []
        own = RUNS[kind] if device == "cuda" else [word for word in RUNS[kind] if word != "--device=spread"]
        assert main([*words, f"--device={device}", f"--run_name={device}", *own]) == 0
        result = json.loads(capsys.readouterr().out)
        found.append(result.get("runs", [result]))
    for one, other in zip(*found, strict=True):
        assert one["best"]["metrics"] == pytest.approx(other["best"]["metrics"], abs=0.15, nan_ok=True)
        losses = [[epoch["train_loss"] for epoch in result.get("history") or []] for result in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-2)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_backbone_is_trained_on_the_card(kind, tiny_flags, tmp_path, capsys):
    words = [word for word in tiny_flags if "store_dir" not in word]
    words += ["--pooling_method=mean", f"--finetune_backbone={kind}", "--backbone_dtype=autocast", "--device=cuda", "--run_name=run"]
    assert main([*words, "--epochs=2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(np.isfinite(epoch["train_loss"]) for epoch in result["history"])
    glot.load(tmp_path / "runs/run", device="cuda").encode(["the red cat"])
