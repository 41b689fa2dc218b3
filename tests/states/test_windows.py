"""Texts longer than the model reads, in windows: against naive loops, and through runs, checkpoints and exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from sentence_transformers import SentenceTransformer

import glot
from glot.cli import glot_main, main
from glot.errors import ConfigError
from glot.states.backbone import Backbone, find_backbone
from glot.states.backbone.windows import Windows, make_windows

WORDS = ["red", "cat", "the", "big", "dog", "runs", "not", "small", "blue", "sleeps", "green"]
CPU = torch.device("cpu")


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def long_text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 13, 20, 21, 57])
@pytest.mark.parametrize(("limit", "overlap", "before", "after"), [(10, 2, 1, 1), (10, 0, 1, 1), (10, 7, 1, 1), (8, 3, 0, 0), (9, 4, 0, 1)])
def test_every_token_is_kept_once_from_the_window_in_which_it_is_most_central(limit, overlap, before, after, count):
    windows = Windows(limit, overlap, before, after)
    ids = list(range(before + count + after))
    pieces = windows.split(ids)
    assert all(len(piece) <= limit for piece in pieces) and len({len(piece) for piece in pieces}) == 1
    states = [torch.tensor([[token, place] for token in piece]) for place, piece in enumerate(pieces)]
    joined = windows.join(states, len(ids))
    assert joined[:, 0].tolist() == ids
    starts = windows.starts(count)
    for token, chosen in enumerate(joined[before : before + count, 1].tolist()):
        inside = {place: min(token - start, start + windows.size - 1 - token) for place, start in enumerate(starts)}
        assert inside[chosen] >= max(inside.values()) - 1  # of an odd overlap one of two middles


def open_model(folder: Path, max_length: int | None, windows: str = "") -> Backbone:
    source = find_backbone(str(folder))
    return Backbone(source, max_length, "float32", str(source.num_layers), CPU, None, windows)


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
def test_states_are_those_of_the_windows_read_by_hand(request, model):
    folder = request.getfixturevalue(model)
    backbone = open_model(folder, 150, "5")
    ids = backbone.tokenise([long_text(120), "the red cat", long_text(90, 1)])
    assert len(ids[0]) > backbone.limit and len(ids[1]) < backbone.limit
    batch = backbone.encode(ids)
    assert batch.lengths.tolist() == [len(text) for text in ids]
    before, after = backbone.tokeniser.special_ends()
    assert (before, after) == ((1, 1) if model == "tiny_bert" else (1, 0) if ids[1][0] == backbone.tokenizer.bos_token_id else (0, 0))
    text, size = ids[0], backbone.limit - before - after
    body = text[before : len(text) - after]
    starts, best = [], [-1] * len(body)
    place = 0
    while not starts or starts[-1] + size < len(body):
        starts.append(min(place, len(body) - size))
        place += size - 5
    expected = torch.empty(len(body), backbone.hidden_size)
    for start in starts:
        piece = [*text[:before], *body[start : start + size], *text[len(text) - after :]]
        states = backbone.reader.read([piece], backbone.layers)[0].tokens[before : before + size]
        for offset, state in enumerate(states):
            depth = min(offset, size - 1 - offset)
            if depth > best[start + offset]:
                expected[start + offset], best[start + offset] = state, depth
    found = batch.tokens[before : before + len(body)]
    differing = (found - expected).abs().amax(1) > 1e-4
    assert int(differing.sum()) <= len(starts)  # where two windows are equally deep, either may give the state
    cut = open_model(folder, 30).encode([ids[1]]).tokens
    assert torch.allclose(batch.tokens[len(text) : len(text) + len(ids[1])], cut, atol=1e-5)


@pytest.mark.parametrize("flags", [[], ["--hidden_layer=all"], ["--adaptive_length=1"]], ids=["plain", "layers", "uncut"])
def test_a_run_on_long_texts(capsys, tiny_flags, tmp_path, flags):
    rows = [{"text": long_text(100 + place, place), "label": place % 2} for place in range(24)] + [{"text": "red cat", "label": 1}]
    write_rows(tmp_path / "rows.jsonl", rows)
    words = [flag for flag in tiny_flags if not flag.startswith(("--task", "--data_dir", "--max_length"))]
    words += ["--task=custom", f"--train_file={tmp_path / 'rows.jsonl'}", "--text_columns=text", "--pooling_method=glot"]
    words += ["--gat_hidden_dim=8", "--long_texts=windows", "--epochs=1", *flags]
    words += [] if "--adaptive_length=1" in flags else ["--max_length=110"]
    result = run(capsys, words)
    longest = 110 if "--adaptive_length=1" not in flags else 10**9
    assert result["store"]["tokens"] == sum(min(len(row["text"].split()) + 2, longest) for row in rows)
    live = run(capsys, [*(word for word in words if "store_dir" not in word), "--precompute_hidden_states=0"])
    assert live["best"]["metrics"]["accuracy"] == result["best"]["metrics"]["accuracy"]
    other = run(capsys, [*words, "--window_overlap=3"])
    assert other["store"]["path"] != result["store"]["path"]
    loaded = glot.load(result["run_dir"], device="cpu")
    texts = [rows[0]["text"], "red cat"]
    vectors = loaded.encode(texts)
    shorter = loaded.encode([" ".join(texts[0].split()[:60])])
    assert np.abs(vectors[0] - shorter[0]).max() > 1e-4  # what stands behind the model's limit counts
    assert glot_main(["export", result["run_dir"], f"--to={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    exported = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(exported.encode(texts), vectors, atol=1e-4)


def test_mistakes(capsys, tiny_flags, tiny_bert):
    assert main([*tiny_flags, "--window_overlap=4"]) == 2
    assert "--window_overlap: has no effect in this run, it needs --long_texts=windows" in capsys.readouterr().err
    assert main([*tiny_flags, "--long_texts=windows", "--window_overlap=62"]) == 2
    assert "--window_overlap=62: must be below the 62 tokens of a window" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--max_length=65"):
        open_model(tiny_bert, 65)
    assert make_windows("m", 512, None, (1, 1)).overlap == 128


def test_windows_that_no_text_can_need_are_said(tiny_bert, caplog):
    caplog.set_level("INFO", "glot")
    source = find_backbone(str(tiny_bert))
    needed = Backbone(source, 200, "float32", "1", CPU, None, "quarter")
    assert "--long_texts=windows" not in caplog.text
    Backbone(source, needed.limit, "float32", "1", CPU, None, "quarter")
    assert f"reads {needed.limit} tokens at once, and --max_length={needed.limit} are no more" in caplog.text
