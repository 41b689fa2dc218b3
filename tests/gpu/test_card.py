"""What must be equal on a card: outputs and gradients to the CPU's, runs to themselves, and no waiting for the card within a step."""

import json
import warnings

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import glot
from glot.cli import glot_main, main
from glot.nn.graph import GraphRule
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.choices import CROSS_GRAPHS, GRAPHS, POOLERS
from glot.settings.config import RunConfig
from glot.states.backbone import pick_device
from glot.types import TokenBatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")]
CASES = [
    *({"pooling_method": name} for name in POOLERS),
    *({"pooling_method": "glot", "graph_adj": name, "tau": 0.2} for name in GRAPHS),
    *({"pooling_method": "crossglot", "cross_adj": name, "tau": 0.2} for name in CROSS_GRAPHS),
]
SHORT, LONG = (5, 40, 3, 12), (2300, 200)


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
@pytest.mark.parametrize("flags", CASES, ids=lambda flags: " ".join(map(str, flags.values())))
def test_outputs_and_gradients_are_those_of_the_cpu(flags, lengths):
    expected = outcome(flags, lengths, "cpu", torch.float32)
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for one, other in zip(expected, outcome(flags, lengths, "cuda", dtype), strict=True):
            assert np.linalg.norm(one - other) <= bound * max(1.0, float(np.linalg.norm(one)))


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


def test_a_step_does_not_wait_for_the_card():
    config = RunConfig().with_values(pooling_method="glot", tau=0.6)
    pooler = build_model_pooler(config.pooler, config.graph, 384, 0).cuda()
    batch = TokenBatch.from_lengths(torch.randn(32 * 60, 384), torch.full((32,), 60)).to("cuda")
    optimizer = torch.optim.Adam(pooler.parameters(), fused=True)
    waits = []
    for count in range(3):
        torch.cuda.set_sync_debug_mode("warn" if count else "default")  # the first step allocates
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pooler(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.set_sync_debug_mode("default")
        waits += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert waits == []


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


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_backbone_is_trained_on_the_card(kind, tiny_flags, tmp_path, capsys):
    words = [word for word in tiny_flags if "store_dir" not in word]
    words += ["--pooling_method=mean", f"--finetune_backbone={kind}", "--backbone_dtype=autocast", "--device=cuda", "--run_name=run"]
    assert main([*words, "--epochs=2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(np.isfinite(epoch["train_loss"]) for epoch in result["history"])
    glot.load(tmp_path / "runs/run", device="cuda").encode(["the red cat"])
