"""Poolers in half precision, as under `--train_dtype=bfloat16` or a caller's autocast: close to float32, however long the sentence."""

import pytest
import torch

from glot.nn.model import InBfloat16, SentenceModel
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.choices import CROSS_GRAPHS, GNN_TYPES, GRAPHS, JK_MODES, POOLERS
from glot.settings.config import RunConfig
from glot.types import Batch, TokenBatch

SHORT, LONG = (5, 9, 3, 12), (2100,)
CASES = [
    *[({"pooling_method": name}, SHORT) for name in POOLERS],
    *[({"pooling_method": name}, LONG) for name in ("adapool", "gated", "pma", "mean", "std", "weightedmean")],
    *[({"pooling_method": "glot", "gnn_type": name}, SHORT) for name in GNN_TYPES],
    *[({"pooling_method": "glot", "jk_mode": name}, SHORT) for name in JK_MODES],
    *[({"pooling_method": "glot", "graph_adj": name}, SHORT) for name in GRAPHS],
    *[({"pooling_method": "crossglot", "cross_adj": name}, SHORT) for name in CROSS_GRAPHS],
    *[({"pooling_method": "glot", "graph_adj": name, "tau": 0.1}, LONG) for name in ("threshold", "knn")],
    ({"pooling_method": "crossglot", "cross_adj": "complete"}, LONG),
]


def name_of(case: object) -> str:
    return " ".join(map(str, case.values())) if isinstance(case, dict) else "long" if case == LONG else "short"


@pytest.mark.parametrize(("flags", "lengths"), CASES, ids=name_of)
def test_outputs_and_gradients_are_close_to_those_of_float32(flags, lengths):
    config = RunConfig().with_values(gat_hidden_dim=16, scorer_hidden=16, **flags)
    torch.manual_seed(0)
    pooler = build_model_pooler(config.pooler, config.graph, 32, 0).eval()
    sides = [TokenBatch.from_lengths(torch.randn(sum(lengths), 32) + 0.3, torch.tensor(lengths)) for _ in range(2)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        pooler.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            vectors = pooler(*sides[: pooler.sides])
        weights = [weight for weight in pooler.parameters()]
        if weights:
            (vectors.float() * torch.cos(torch.arange(vectors.numel()).view_as(vectors))).sum().backward()
        grads = [weight.grad.flatten() for weight in weights if weight.grad is not None]
        found[dtype] = vectors.detach().float(), torch.cat([*grads, torch.zeros(1)])
    for (exact, half), bound in zip(zip(*found.values(), strict=True), (1e-2, 5e-2), strict=True):
        assert float((exact - half).norm()) <= bound * float(exact.norm())


def test_a_model_in_bfloat16_computes_products_in_it_and_gives_float32():
    config = RunConfig().with_values(pooling_method="adapool", scorer_hidden=16)
    torch.manual_seed(0)
    model = SentenceModel(build_model_pooler(config.pooler, config.graph, 32, 0), torch.nn.Linear(32, 2))
    batch = Batch((TokenBatch.from_lengths(torch.randn(30, 32), torch.tensor([10, 20])),), torch.zeros(2))
    exact, half = model(batch), InBfloat16(model, "cpu")(batch)
    assert half.dtype == torch.float32 and 0 < float((exact - half).abs().max()) < 2e-2 * float(exact.abs().max()) + 1e-2
    half.sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in model.parameters())
