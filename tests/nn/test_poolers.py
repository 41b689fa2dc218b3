"""Poolers against the release's recorded tensors, against naive loops, and against what must not matter."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from glot.nn.edges import Edges
from glot.nn.graph import CARD_ELEMENTS, CARD_OVERHEAD, RULES, GraphRule, TokenGraph
from glot.nn.losses import symmetric_info_nce
from glot.nn.poolers import build_pooler
from glot.nn.poolers.gat import GatConv
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.mixing import MixOnEdges
from glot.settings.config import GraphConfig, PoolerConfig
from glot.types import TokenBatch

GOLDEN = sorted(path for path in (Path(__file__).parents[1] / "golden").glob("*.safetensors") if path.stem != "losses")
CONFIGS = {
    "cls": PoolerConfig("cls"),
    "mean": PoolerConfig("mean"),
    "max": PoolerConfig("max"),
    "adapool": PoolerConfig("adapool", scorer_hidden=8),
    "mlp": PoolerConfig("mlp", gat_hidden_dim=8),
    **{f"glot-{conv}": PoolerConfig("glot", gnn_type=conv, gat_hidden_dim=8) for conv in ("gat", "gcn", "gin", "gine")},
    **{f"glot-{jump}": PoolerConfig("glot", jk_mode=jump, gat_hidden_dim=8) for jump in ("max", "mean", "lstm", "none")},
    "glot-projected": PoolerConfig("glot", gat_hidden_dim=8, input_proj=True),
    "weightedmean": PoolerConfig("weightedmean"),
    "std": PoolerConfig("std"),
    "gated": PoolerConfig("gated"),
    "pma": PoolerConfig("pma"),
    "latent": PoolerConfig("latent", gat_hidden_dim=5),
    "glot-K0": PoolerConfig("glot", num_layers=0),
}


class PygConv(GatConv):
    """Our layer's parameters in PyG's own layer: the oracle of all three engines."""

    def forward(self, x: Tensor, graph: TokenGraph) -> Tensor:
        with torch.device("meta"):
            layer = GATConv(self.lin.in_features, self.lin.out_features, edge_dim=1)
        ones = x.new_ones(graph.edges.shape[1], 1)
        return functional_call(layer, dict(self.named_parameters()), (x, graph.edges, ones))


def random_batch(lengths: list[int], d: int = 12, seed: int = 0) -> TokenBatch:
    """Sentences with a common direction, so that cosines spread around 0.3."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), d, generator=generator) + 0.7
    return TokenBatch.from_lengths(tokens, torch.tensor(lengths))


def load_golden(path: Path) -> tuple[dict, dict]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["spec"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def golden_pooler(spec: dict, engine: str) -> torch.nn.Module:
    if spec["pooler"] == "glot":
        pooler = GlotPooler(
            spec["in_dim"], spec["hidden_dim"], spec["num_layers"], spec["conv"], spec["jk_mode"], GraphRule(tau=spec["tau"])
        )
        for conv in pooler.convs:
            conv.engine = engine
        return pooler
    last = bool(spec.get("decoder_cls_last_token"))
    return build_pooler(PoolerConfig(spec["pooler"], last, spec.get("scorer_hidden", 1)), GraphConfig(), spec["in_dim"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("engine", ["dense", "edges"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_outputs_and_gradients(path, engine, side):
    spec, tensors = load_golden(path)
    if engine == "edges" and spec.get("conv") != "gat":
        engine = "auto"
    hidden, mask = tensors["hidden"], tensors["mask"].bool()
    if side == "left":
        order = torch.argsort(mask.int(), dim=1, stable=True)
        hidden, mask = torch.gather(hidden, 1, order.unsqueeze(-1).expand_as(hidden)), torch.gather(mask, 1, order)
    pooler = golden_pooler(spec, engine)
    pooler.load_state_dict({name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")})
    output = pooler.train()(TokenBatch.from_padded(hidden, mask))
    torch.testing.assert_close(output, tensors["output"], atol=1e-5, rtol=1e-5)
    gradients = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    if gradients:
        output.pow(2).mean().backward()
    found = {name: parameter.grad for name, parameter in pooler.named_parameters()}
    assert found.keys() == gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_golden_contrastive_loss(temperature):
    with safe_open(Path(__file__).parents[1] / "golden" / "losses.safetensors", "pt") as file:
        a, b, expected = file.get_tensor("a"), file.get_tensor("b"), file.get_tensor(f"contrastive_t{temperature}")
    torch.testing.assert_close(symmetric_info_nce(a @ b.T, temperature=temperature), expected.squeeze(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sentence_does_not_depend_on_its_batch_mates(name):
    torch.manual_seed(0)
    pooler = build_pooler(CONFIGS[name], GraphConfig(tau=0.3), 12).eval()
    batch = random_batch([5, 1, 9, 9, 2, 30])
    together = pooler(batch)
    assert together.shape == (6, pooler.out_dim)
    for row in range(len(batch)):
        tokens = batch.tokens[batch.ptr[row] : batch.ptr[row + 1]]
        alone = pooler(TokenBatch.from_lengths(tokens, torch.tensor([len(tokens)])))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_pooler_trains_on_a_single_token(name):
    pooler = build_pooler(CONFIGS[name], GraphConfig(), 12).train()
    vector = pooler(random_batch([1]))
    assert torch.isfinite(vector).all()


@pytest.mark.parametrize("kind", ["threshold", "none", "complete", "random", "knn", "window"])
@pytest.mark.parametrize("few", [0.0, 1.0])
def test_a_long_sentence_by_rows_is_the_same(kind, few, monkeypatch):
    """Mixed by rows, or on edges that are found by rows."""
    for name in ("glot.nn.poolers.gat.DENSE_TOKENS", "glot.nn.graph.DENSE_TOKENS"):
        monkeypatch.setattr(name, 40)
    monkeypatch.setattr("glot.nn.graph.SPARSE_TOKENS", 40)
    monkeypatch.setattr("glot.nn.graph.SPARSE_DENSITY", few)
    monkeypatch.setattr("glot.nn.graph.BLOCK_ELEMENTS", 700)  # ten rows of the longest at a time, and long sentences stand alone
    batch = random_batch([7, 70, 41, 3, 20], seed=5)
    rule = GraphRule(kind, 0.1, knn_k=3)
    assert (TokenGraph(batch, rule).few is not None) == bool(few)
    results = []
    for layer in (GatConv, PygConv):
        torch.manual_seed(2)
        conv = layer(12, 8)
        x = batch.tokens.clone().requires_grad_()
        out = conv(x, TokenGraph(batch, rule))
        out.pow(2).sum().backward()
        results.append([out, x.grad, conv.lin.weight.grad, conv.bias.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["threshold", "none", "complete", "random", "knn", "window"])
@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.5, 0.99])
def test_gat_engines_agree_on_random_graphs(kind, tau):
    torch.manual_seed(1)
    batch = random_batch([7, 1, 20, 3, 64, 64], seed=3)
    graph = TokenGraph(batch, GraphRule(kind, tau, knn_k=3))
    pyg = PygConv(12, 8)
    expected = pyg(batch.tokens, graph)
    expected.pow(2).sum().backward()
    for engine in ("dense", "edges", "auto"):
        ours = GatConv(12, 8, engine)
        ours.load_state_dict(pyg.state_dict())
        output = ours(batch.tokens, graph)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
        output.pow(2).sum().backward()
        if engine == "auto" and kind == "none":  # without edges the attention is left out, and its gradient is none instead of zero
            continue
        for (name, one), (_, other) in zip(ours.named_parameters(), pyg.named_parameters(), strict=True):
            scale = max(1.0, float(other.grad.abs().max()))
            torch.testing.assert_close(
                one.grad / scale, other.grad / scale, atol=1e-4, rtol=1e-4, msg=lambda text, of=(engine, name): f"{of}: {text}"
            )


def test_mixing_on_edges_has_the_right_gradients():
    graph = TokenGraph(random_batch([5, 1, 4]), GraphRule(tau=0.3))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*size, dtype=torch.float64, generator=generator, requires_grad=True) for size in ((10, 3), (10,), (10,))]
    assert 10 < graph.edges.shape[1] < 42  # neither empty nor complete
    assert torch.autograd.gradcheck(lambda *parts: MixOnEdges.apply(*parts, graph.sparse)[0], inputs)
    one_way = torch.cat([graph.edges, torch.tensor([[0, 8, 3], [7, 1, 9]])], 1)  # two cosines of a pair may lie on both sides of tau
    assert torch.autograd.gradcheck(lambda *parts: MixOnEdges.apply(*parts, Edges.from_pairs(one_way, 10))[0], inputs)


@pytest.mark.parametrize(("window", "length", "few"), [(3, 200, True), (4, 200, False), (1, 127, False), (1, 128, True)])
def test_edges_are_taken_where_they_are_few(window, length, few, monkeypatch):
    """Seven edges a token are 3.6 % of 200 x 200 and 10 x 10, nine 4.6 %; where no sentence has 128 tokens, nothing is counted."""
    batch = random_batch([length, 10])
    rule = GraphRule("window", window_size=window)
    assert (TokenGraph(batch, rule).few is not None) == few
    edges = TokenGraph(batch, rule).edges.shape[1]
    for limit, taken in ((edges, few), (edges - 1, False)):
        monkeypatch.setattr("glot.nn.graph.SPARSE_NEIGHBOURS", limit / (length + 10))
        assert (TokenGraph(batch, rule).few is not None) == taken
    monkeypatch.undo()


@pytest.mark.parametrize("kind", ["window", "random"])
def test_without_sparse_products_everything_is_mixed_in_blocks(kind, monkeypatch):
    """In half precision, on a CPU without MKL, on a device that is neither; a random graph beyond `DENSE_TOKENS` too."""
    for name in ("glot.nn.poolers.gat.DENSE_TOKENS", "glot.nn.graph.DENSE_TOKENS"):
        monkeypatch.setattr(name, 150)
    batch, rule = random_batch([200, 140]), GraphRule(kind, tau=0.8)  # a graph is of float32 cosines, also under autocast
    torch.manual_seed(0)
    conv = GatConv(12, 8)
    expected = conv(batch.tokens, TokenGraph(batch, rule))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(batch.tokens, TokenGraph(batch, rule)).float(), expected, atol=0.05, rtol=0.05)
    half = copy.deepcopy(conv).to(torch.bfloat16)
    torch.testing.assert_close(half(batch.tokens.bfloat16(), TokenGraph(batch, rule)).float(), expected, atol=0.05, rtol=0.05)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    monkeypatch.setattr(MixOnEdges, "apply", None)
    torch.testing.assert_close(conv(batch.tokens, TokenGraph(batch, rule)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("longest", [2048, 40], ids=["whole", "by rows"])
def test_the_sizes_of_blocks_that_a_card_takes_change_nothing(kind, longest, monkeypatch):
    batch, rule = random_batch([60, 3, 17, 40, 55]), GraphRule(kind, tau=0.2, knn_k=3)
    for name in ("glot.nn.poolers.gat.DENSE_TOKENS", "glot.nn.graph.DENSE_TOKENS"):
        monkeypatch.setattr(name, longest)
    torch.manual_seed(0)
    conv, found = GatConv(12, 8), []
    for sizes in ((700, 20), (CARD_ELEMENTS, CARD_OVERHEAD)):
        monkeypatch.setattr("glot.nn.graph.BLOCK_ELEMENTS", sizes[0])
        monkeypatch.setattr("glot.nn.graph.BLOCK_OVERHEAD", sizes[1])
        conv.zero_grad()
        graph = TokenGraph(batch, rule)
        output = conv(batch.tokens, graph)
        output.square().sum().backward()
        found.append((len(graph.blocks), output.detach(), conv.lin.weight.grad.clone()))
    assert found[0][0] > found[1][0] == 1
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_gat_has_the_names_of_pyg_and_refuses_unknown_engines():
    from torch_geometric.nn import GATConv

    theirs, ours = GATConv(12, 8, edge_dim=1).state_dict(), GatConv(12, 8).state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}
    with pytest.raises(ValueError, match="engine must be one of"):
        GatConv(12, 8, "sparse")


def test_no_layers_is_adapool_whatever_the_graph():
    batch = random_batch([4, 11])
    for kind in ("threshold", "none", "complete"):
        torch.manual_seed(0)
        glot = build_pooler(PoolerConfig("glot", num_layers=0), GraphConfig(kind), 12)
        adapool = build_pooler(PoolerConfig("adapool", scorer_hidden=128), GraphConfig(), 12)
        adapool.load_state_dict(glot.state_dict())
        torch.testing.assert_close(glot(batch), adapool(batch))
    with pytest.raises(ValueError, match="only 'cat'"):
        GlotPooler(12, 8, 0, "gat", "max", GraphRule())


def test_without_edges_glot_is_a_token_wise_network():
    torch.manual_seed(0)
    pooler = build_pooler(PoolerConfig("glot", gat_hidden_dim=8), GraphConfig("none"), 12)
    batch = random_batch([6, 3])
    states = [batch.tokens]
    for conv in pooler.convs:
        states.append((states[-1] @ conv.lin.weight.T + conv.bias).relu())
    torch.testing.assert_close(torch.cat(pooler.states(batch), 1), torch.cat(states, 1))


@pytest.mark.parametrize("method", ["adapool", "glot"])
def test_a_constant_score_is_the_mean(method):
    pooler = build_pooler(PoolerConfig(method, gat_hidden_dim=8), GraphConfig(), 12)
    torch.nn.init.zeros_(pooler.score_layer[2].weight)
    batch = random_batch([6, 3])
    vectors, weights = pooler.readout(batch)
    torch.testing.assert_close(weights, torch.cat([torch.full((6,), 1 / 6), torch.full((3,), 1 / 3)]))
    torch.testing.assert_close(vectors[:, :12], torch.stack([batch.tokens[:6].mean(0), batch.tokens[6:].mean(0)]))


def test_mlp_is_pyg_mlp_then_mean_and_lstm_jump_has_its_parameters():
    pooler = build_pooler(CONFIGS["mlp"], GraphConfig(), 12).eval()
    batch = random_batch([4, 2])
    torch.testing.assert_close(pooler(batch)[1], pooler.mlp(batch.tokens[4:]).mean(0))
    names = dict(build_pooler(CONFIGS["glot-lstm"], GraphConfig(), 12).named_parameters())
    assert any(name.startswith("jk.lstm") for name in names)


def test_weighted_mean_by_hand():
    batch = TokenBatch.from_lengths(torch.tensor([[1.0], [2.0], [4.0], [7.0]]), torch.tensor([3, 1]))
    vectors = build_pooler(PoolerConfig("weightedmean"), GraphConfig(), 1)(batch)
    assert vectors.view(-1).tolist() == pytest.approx([(1 * 1 + 2 * 2 + 3 * 4) / 6, 7.0])


def test_pma_is_the_libraries_multi_head_attention():
    torch.manual_seed(0)
    pooler = build_pooler(PoolerConfig("pma"), GraphConfig(), 12)
    theirs = torch.nn.MultiheadAttention(12, pooler.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(12), pooler.key.weight, pooler.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(12), pooler.key.bias, pooler.value.bias]))
    theirs.out_proj.load_state_dict(pooler.out.state_dict())
    batch = random_batch([6, 3])
    for row, tokens in enumerate(batch.tokens.split([6, 3])):
        expected, _ = theirs(pooler.query.view(1, 1, 12), tokens.unsqueeze(0), tokens.unsqueeze(0))
        torch.testing.assert_close(pooler(batch)[row], expected[0, 0], atol=1e-5, rtol=1e-5)


def test_latent_attention_against_the_libraries():
    torch.manual_seed(0)
    pooler = build_pooler(CONFIGS["latent"], GraphConfig(), 12)
    batch = random_batch([4, 2])
    found = F.scaled_dot_product_attention(batch.tokens, pooler.latents, pooler.latents)
    states = found + pooler.mlp(found)
    torch.testing.assert_close(pooler(batch), torch.stack([states[:4].mean(0), states[4:].mean(0)]))


def test_glot_against_a_loop_over_tokens():
    """The whole method written out for one sentence at a time, token by token."""
    torch.manual_seed(2)
    pooler = build_pooler(PoolerConfig("glot", gat_hidden_dim=8), GraphConfig(tau=0.35), 12)
    batch = random_batch([5, 8])
    expected = []
    for row in range(2):
        x = batch.tokens[batch.ptr[row] : batch.ptr[row + 1]]
        joined = [[i == j or bool(F.cosine_similarity(x[i], x[j], dim=0) > 0.35) for j in range(len(x))] for i in range(len(x))]
        layers = [x]
        for conv in pooler.convs:
            h = layers[-1] @ conv.lin.weight.T
            edge = (conv.lin_edge.weight.view(-1) * conv.att_edge.view(-1)).sum()
            out = []
            for i in range(len(x)):
                near = [j for j in range(len(x)) if joined[i][j]]
                logits = torch.stack([(h[j] * conv.att_src.view(-1)).sum() + (h[i] * conv.att_dst.view(-1)).sum() + edge for j in near])
                weights = F.leaky_relu(logits, 0.2).softmax(0)
                out.append(sum(weight * h[j] for weight, j in zip(weights, near, strict=True)) + conv.bias)
            layers.append(torch.stack(out).relu())
        states = torch.cat(layers, 1)
        expected.append(pooler.score_layer(states).softmax(0).T @ states)
    torch.testing.assert_close(pooler(batch), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_standard_deviations_against_numpy_and_a_single_token_has_none():
    batch = TokenBatch.from_lengths(torch.randn(9, 4).requires_grad_(), torch.tensor([3, 1, 5]))
    found = build_pooler(PoolerConfig("std"), GraphConfig(), 4)(batch)
    parts = [part.detach().numpy() for part in batch.tokens.split([3, 1, 5])]
    expected = [np.concatenate([part.mean(0), part.std(0)]) for part in parts]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
    found.sum().backward()
    assert bool(torch.isfinite(batch.tokens.grad).all())


def test_gated_attention_begins_at_the_mean_and_is_a_loop_over_heads():
    batch = TokenBatch.from_lengths(torch.randn(9, 6), torch.tensor([3, 1, 5]))
    pooler = build_pooler(PoolerConfig("gated"), GraphConfig(), 6)
    torch.testing.assert_close(pooler(batch), build_pooler(PoolerConfig("mean"), GraphConfig(), 6)(batch))
    pooler(batch).square().sum().backward()
    assert float(pooler.gate.grad.abs().max()) > 0  # it can leave the mean
    with torch.no_grad():
        pooler.gate.normal_()
    vectors, weights = pooler.readout(batch)
    for row, (part, own) in enumerate(zip(batch.tokens.split([3, 1, 5]), weights.split([3, 1, 5]), strict=True)):
        expected = part.mean(0)
        for head, gate in enumerate(pooler.gate):
            expected = expected + gate * (pooler.score(part)[:, head].softmax(0) @ part - part.mean(0))
        torch.testing.assert_close(vectors[row], expected, atol=1e-5, rtol=1e-4)
        assert float(own.detach().sum()) == pytest.approx(1, abs=1e-5)
    assert sum(weight.numel() for weight in build_pooler(PoolerConfig("gated"), GraphConfig(), 384).parameters()) == 3088


def test_the_last_layer_alone_and_projected_tokens():
    batch = random_batch([5, 1, 8])
    torch.manual_seed(0)
    last = GlotPooler(12, 6, 2, "gat", "none", GraphRule(tau=0.4))
    graph, state = TokenGraph(batch, last.rule), batch.tokens
    for conv in last.convs:
        state = conv(state, graph).relu()
    assert last.out_dim == 6 and torch.allclose(torch.cat(last.states(batch), 1), state)
    projected = GlotPooler(12, 6, 2, "gat", "cat", GraphRule(tau=0.4), input_proj=True)
    state = projected.input_proj(batch.tokens)
    columns = [state]
    for conv in projected.convs:  # on the graph of the raw tokens
        state = conv(state, graph).relu()
        columns.append(state)
    assert projected.out_dim == 18 and torch.allclose(torch.cat(projected.states(batch), 1), torch.cat(columns, 1))
