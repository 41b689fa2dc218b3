"""The pooling module of an export by itself: padding on either side, flattened input, prompts, precision."""

import pytest
import torch

from glot.integrations.sentence_transformers import GlotPooling
from glot.types import TokenBatch


def pooling(include_prompt: bool) -> GlotPooling:
    torch.manual_seed(0)
    flags = {"pooling_method": "glot", "gat_hidden_dim": 4, "num_layers": 1, "gnn_type": "gat", "jk_mode": "cat"}
    graph = {"graph_adj": "threshold", "tau": 0.0, "knn_k": 2, "window_size": 2}
    return GlotPooling(flags, graph, 6, include_prompt=include_prompt).eval()


@pytest.mark.parametrize("prompt", [0, 2, 9])
@pytest.mark.parametrize("include", [True, False])
def test_padding_flattening_and_prompts_against_one_sentence_at_a_time(prompt, include):
    module, draw = pooling(include), torch.Generator().manual_seed(1)
    lengths = [5, 3, 1]
    sentences = [torch.randn(length, 6, generator=draw) for length in lengths]
    skipped = [0 if include else min(prompt, length - 1) for length in lengths]
    parts = [sentence[skip:] for sentence, skip in zip(sentences, skipped, strict=True)]
    expected = torch.cat([module.net(TokenBatch.from_lengths(part, torch.tensor([len(part)]))) for part in parts])
    for left in (False, True):
        states, mask = torch.full((3, 5, 6), 7.0), torch.zeros(3, 5, dtype=torch.int64)
        for row, sentence in enumerate(sentences):
            place = slice(5 - len(sentence), 5) if left else slice(0, len(sentence))
            states[row, place], mask[row, place] = sentence, 1
        kept = mask.clone()
        found = module({"token_embeddings": states, "attention_mask": mask, "prompt_length": prompt})
        torch.testing.assert_close(found["sentence_embedding"], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(mask, kept) and found["readout_weights"].shape == (3, 5)
    bounds = torch.tensor([0, 5, 8, 9], dtype=torch.int32)
    flat = module({"token_embeddings": torch.cat(sentences).unsqueeze(0), "cu_seq_lens_q": bounds, "prompt_length": prompt})
    torch.testing.assert_close(flat["sentence_embedding"], expected, atol=1e-5, rtol=1e-5)
    assert flat["readout_weights"].shape == (9,) and float(flat["readout_weights"].detach().sum()) == pytest.approx(3, abs=1e-4)


@pytest.mark.parametrize("pooler", ["mean", "adapool"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_cast_module_pools_with_its_float32_numbers_and_saves_them(tmp_path, pooler, layers):
    torch.manual_seed(0)
    flags = {"pooling_method": pooler, "scorer_hidden": 4, "layer_mix": "stack"}
    graph = {"graph_adj": "threshold", "tau": 0.0, "knn_k": 2, "window_size": 2}
    module = GlotPooling(flags, graph, 6 * layers, layers=layers).eval()
    if layers > 1:
        module.net.fit(torch.randn(50, 6 * layers) * 3 + 1)
        module = reload(module, tmp_path / "fitted")
    features = {"token_embeddings": torch.randn(2, 4, 6 * layers), "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    expected = module(dict(features))["sentence_embedding"]
    half = reload(module, tmp_path / "whole").half()
    assert torch.equal(half(dict(features))["sentence_embedding"], expected)
    again = reload(half, tmp_path / "half")
    assert torch.equal(again(dict(features))["sentence_embedding"], expected)
    assert module.get_embedding_dimension() == expected.shape[1]


def reload(module: GlotPooling, folder) -> GlotPooling:
    """What is saved and loaded again."""
    folder.mkdir()
    module.save(str(folder))
    return GlotPooling.load(str(folder)).eval()
