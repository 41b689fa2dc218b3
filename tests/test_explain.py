"""`glot explain`: every number against a naive way to the same one, and wrong input in one line."""

import copy
import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import glot
from glot.cli import glot_main, main
from glot.data.stress import needle_words
from glot.explain.measure import explain, rank_correlation, without_span
from glot.explain.show import as_text
from glot.nn.graph import GraphRule, TokenGraph
from glot.states.backbone.naming import name_tokens
from glot.types import TokenBatch

TEXT, PAIR = "the red cat runs and sleeps", ("the red cat", "a big dog runs")
TRAINED = {
    "glot": ["--task=cola", "--pooling_method=glot", "--gat_hidden_dim=4", "--tau=0.2"],
    "layers": ["--task=cola", "--pooling_method=glot", "--gat_hidden_dim=4", "--tau=0.2", "--hidden_layer=0,2", "--layer_mix=scalar"],
    "mean": ["--task=cola", "--pooling_method=mean"],
    "max": ["--task=cola", "--pooling_method=max"],
    "cross": ["--task=mrpc", "--pooling_method=crossglot", "--gat_hidden_dim=4", "--tau=0.2", "--num_layers=1"],
    "alignment": ["--task=stsb", "--pooling_method=alignment"],
    "scores": ["--task=stsb", "--pooling_method=adapool", "--scorer_hidden=4"],
}


@pytest.fixture(scope="module")
def runs(tiny_bert, mirror, tmp_path_factory):
    """`runs(name)` -> folder of a small finished run."""
    root, done = tmp_path_factory.mktemp("explained"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in done:
            words = f"--model_name_or_path={tiny_bert} --data_dir={mirror} --output_dir={root} --store_dir={root}/hidden --verbose=0"
            words += f" --max_length=16 --epochs=1 --lr=1e-2 --run_name={name}"
            assert main([*words.split(), *TRAINED[name]]) == 0
            done[name] = root / name
        return done[name]

    return make


def explained(runs, name, texts=(TEXT,)):
    encoder = glot.load(runs(name))
    return encoder, explain(encoder, texts, name, name)


@torch.no_grad()
def value(encoder, batches, pooler, best) -> float:
    """The answer by the plain call on one text."""
    vectors = [pooler(*batches)] if pooler.sides == 2 else [pooler(batch) for batch in batches]
    output = encoder.head(*vectors).float()
    return float(output.softmax(1)[0, best]) if encoder.classes else float(output.reshape(-1)[0])


@pytest.mark.parametrize(
    ("name", "texts"), [("glot", (TEXT,)), ("layers", (TEXT,)), ("max", (TEXT,)), ("cross", PAIR), ("scores", PAIR), ("alignment", PAIR)]
)
def test_leaving_out_tokens_words_and_edges_equals_doing_it_one_by_one(runs, name, texts):
    encoder, found = explained(runs, name, texts)
    with torch.no_grad():
        batches = [encoder.states([text]) for text in texts]
    best = encoder.classes.index(found.outcome.words) if encoder.classes else 0
    assert found.outcome.value == pytest.approx(value(encoder, batches, encoder.pooler, best), abs=1e-5)
    for place, side in enumerate(found.sides):
        for token in range(len(side.tokens)):
            kept = torch.arange(len(side.tokens)) != token
            less = TokenBatch.from_lengths(batches[place].tokens[kept], torch.tensor([int(kept.sum())]))
            given = [less if at == place else batch for at, batch in enumerate(batches)]
            assert side.without_token[token] == pytest.approx(value(encoder, given, encoder.pooler, best) - found.outcome.value, abs=1e-5)
        for word in range(len(side.words)):
            rest = " ".join(part for at, part in enumerate(side.words) if at != word)
            row = tuple(rest if at == place else text for at, text in enumerate(texts))
            given_text = row[0] if len(row) == 1 else row
            again = encoder.predict_proba(given_text)[best] if encoder.classes else float(encoder.scores(given_text))
            assert side.without_word[word] == pytest.approx(again - found.outcome.value, abs=2e-4)
        assert (
            side.agreement == pytest.approx(rank_correlation(side.weights, -side.without_token))
            if side.weights is not None
            else math.isnan(side.agreement)
        )
    if name == "glot":
        edgeless = copy.deepcopy(encoder.pooler)
        edgeless.rule = GraphRule("none")
        assert found.outcome.without_edges == pytest.approx(value(encoder, batches, edgeless, best), abs=1e-5)
    assert (found.outcome.without_edges is None) == (name in ("max", "scores", "alignment"))


def test_graph_and_attention_are_those_that_the_pooler_uses(runs):
    encoder, found = explained(runs, "glot")
    with torch.no_grad():
        batch, (side,) = encoder.states([TEXT]), found.sides
    unit = torch.nn.functional.normalize(batch.tokens, dim=1)
    cosines = (unit @ unit.T).numpy()
    np.testing.assert_allclose(side.cosines, cosines, atol=1e-5)
    np.testing.assert_array_equal(side.edges, (cosines > 0.2) | np.eye(len(cosines), dtype=bool))
    np.testing.assert_allclose(side.weights, encoder.pooler.readout(batch)[1].detach().numpy(), atol=1e-6)
    states = batch.tokens
    graph = TokenGraph(batch, encoder.pooler.rule)
    with torch.no_grad():
        for conv, weights in zip(encoder.pooler.convs, side.attention, strict=True):
            assert weights.sum(1) == pytest.approx(1, abs=1e-5) and not weights[~side.edges].any()
            mixed = torch.from_numpy(weights) @ conv.lin(states) + conv.bias
            torch.testing.assert_close(mixed, conv(states, graph), rtol=1e-4, atol=1e-5)
            states = mixed.relu()
    assert found.tau == 0.2 and side.special[0] and side.special[-1] and side.word_of[1:3] == [0, 1]


def test_an_unknown_word_is_no_special_token(runs):
    encoder = glot.load(runs("glot"))
    named = name_tokens(encoder.backbone.tokeniser, "the ßœ cat", 16)
    assert named.tokens.count("[UNK]") == 1 and [name for name, special in zip(named.tokens, named.special, strict=True) if special] == [
        "[CLS]",
        "[SEP]",
    ]


def test_pairs_have_edges_across_and_mixed_layers_their_shares(runs):
    encoder, found = explained(runs, "cross", PAIR)
    with torch.no_grad():
        first, second = (encoder.states([text]).tokens for text in PAIR)
    unit = [torch.nn.functional.normalize(part, dim=1) for part in (first, second)]
    across = (unit[0] @ unit[1].T).numpy()
    np.testing.assert_allclose(found.across, across, atol=1e-5)
    np.testing.assert_array_equal(found.cross_edges, across > 0.2)
    for place, side in enumerate(found.sides):
        np.testing.assert_allclose(side.matches, across.max(1 - place), atol=1e-5)
        assert side.weights.sum() == pytest.approx(1, abs=1e-5)
    cells = [line.split("|")[-2].strip() for line in as_text(found).splitlines() if line.startswith("|")]  # the last column of both tables
    assert [int(cell) for cell in cells if cell.isdecimal()] == [*found.cross_edges.sum(1), *found.cross_edges.sum(0)]
    assert sum(explained(runs, "layers")[1].layer_weights.values()) == pytest.approx(1, abs=1e-5)
    assert explained(runs, "mean")[1].sides[0].weights == pytest.approx(1 / 8)
    assert any("gives tokens no weights" in note for note in explained(runs, "max")[1].notes)


def test_files_hold_what_the_terminal_shows(runs, tmp_path, capsys):
    words = [
        "explain",
        str(runs("glot")),
        "--text",
        TEXT,
        "--text",
        "</script><script>alert(1)</script> cat",
        "--compare",
        str(runs("mean")),
    ]
    assert glot_main([*words, "--out", str(tmp_path / "e.json"), "--html", str(tmp_path / "e.html")]) == 0
    said = capsys.readouterr().out
    groups = json.loads((tmp_path / "e.json").read_text())
    assert [[one["run"] for one in group] for group in groups] == [["glot", "mean"]] * 2 and "rank correlation" in said
    (side,) = groups[0][0]["sides"]
    assert all(f"| {weight:.3f} |" in said.replace("  ", " ") for weight in side["weights"][:2])
    page = (tmp_path / "e.html").read_text()
    assert page.count("<script") == 3 and "http-equiv" in page and "</script><script>alert" not in page
    assert "src=" not in page and "href=" not in page
    assert glot_main([*words, "--out", str(tmp_path / "e.png")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["e-0.png", "e-1.png"]


def test_rows_of_the_evaluation_split(runs, tmp_path, capsys):
    assert glot_main(["explain", str(runs("cross")), "--rows", "0,2", "--out", str(tmp_path / "e.json")]) == 0
    groups = json.loads((tmp_path / "e.json").read_text())
    lines = (runs("cross") / "predictions.csv").read_text().splitlines()
    for group, line in zip(groups, (lines[1], lines[3]), strict=True):
        assert all(side["text"] in line for side in group[0]["sides"]) and len(group[0]["sides"]) == 2
        assert group[0]["answer"] in line
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", " "], "--text: is empty"),
        (["--pair", "a cat", "a dog"], "glot: takes single texts: use --text"),
        ([], "glot explain: give --text, --pair, --rows or --split"),
        (["--text", "a", "--pair", "a", "b"], "--pair: a run takes either texts or pairs"),
        (["--rows", "x"], "--rows=x: must be numbers of rows"),
        (["--rows", "100000"], "--rows=100000: there is no row 100000"),
        (["--text", "a cat", "--out", "e.gif"], "--out=e.gif: ends with none of .png, .pdf, .svg, .json"),
        (["--text", "a cat", "--html", "/no/such/e.html"], "--html=/no/such/e.html: its folder is not there"),
        (["--text", "a cat", "--compare", "/no/run"], "/no/run: not there"),
    ],
)
def test_mistakes(runs, words, said, capsys):
    run = runs("glot")
    capsys.readouterr()
    assert glot_main(["explain", str(run), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_a_text_that_is_cut_says_so_and_a_run_without_labels_has_no_answer(runs, tiny_bert, tmp_path, capsys):
    _, found = explained(runs, "glot", (" ".join(["cat"] * 40),))
    assert found.sides[0].is_cut and any("is cut at 16 tokens" in note for note in found.notes) and len(found.sides[0].tokens) == 16
    lines = [json.dumps({"query": f"{a} {b}", "pos": [f"the {a} {b}"]}) for a in ("red", "big", "green") for b in ("cat", "dog")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_bert} --max_length=12 --verbose=0 --epochs=1"
    words += f" --batch_size=3 --heldout_fraction=0.3 --store_dir={tmp_path}/hidden --output_dir={tmp_path} --run_name=emb"
    words += f" --save_dir={tmp_path}/saved"
    assert main([*words.split(), "--pooling_method=adapool"]) == 0
    capsys.readouterr()
    assert glot_main(["explain", str(tmp_path / "emb"), "--text", TEXT]) == 0
    assert "no answer: the run was trained without labels" in capsys.readouterr().out


def test_the_papers_fifth_figure_is_drawn(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert glot_main(["explain", str(runs("glot")), "--rows", "0,2", "--compare", str(runs("mean")), "--figure5"]) == 0
    drawn = sorted(tmp_path.glob("figure5*.png"))  # one per row
    assert len(drawn) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_weight_over_a_split_is_the_mean_over_its_texts(runs, tmp_path, capsys):
    assert glot_main(["explain", str(runs("glot")), "--split", "validation", "--limit", "9", "--out", str(tmp_path / "s.json")]) == 0
    said = capsys.readouterr().out
    (census,) = json.loads((tmp_path / "s.json").read_text())
    encoder = glot.load(runs("glot"))
    with (runs("glot") / "predictions.csv").open(newline="") as stream:
        texts = [row["sentence"] for row in csv.DictReader(stream)][:9]
    special, words = [], {}
    for text in texts:
        with torch.no_grad():
            weights = encoder.pooler.readout(encoder.states([text]))[1].tolist()
        special.append(weights[0] + weights[-1])
        for word, weight in zip(text.split(), weights[1:-1], strict=True):  # the tiny tokenizer has a token per word
            words.setdefault(word.lower(), []).append(weight * len(weights))
    assert census["texts"] == 9 and census["special"] == pytest.approx(special, abs=1e-5)
    assert {word: len(found) for word, found in census["words"].items()} == {word: len(found) for word, found in words.items()}
    assert f"{100 * np.mean(special):.1f} %" in said
    assert glot_main(["explain", str(runs("glot")), "--split", "validation", "--limit", "5", "--out", str(tmp_path / "s.png")]) == 0
    capsys.readouterr()
    for words, line in (
        (["--split", "train"], "--split=train: the predictions of"),
        (["--split", "validation", "--text", "a"], "--split: is over many texts"),
        (["--split", "validation", "--limit", "0"], "--limit=0: must be at least 1"),
        (["--figure5"], "glot explain: give --text"),
        (["--figure5", "--text", "a"], "--figure5: draws rows of the evaluation split"),
    ):
        assert glot_main(["explain", str(runs("glot")), *words]) == 2
        assert line in capsys.readouterr().err
    assert glot_main(["explain", str(runs("max")), "--split", "validation"]) == 2
    assert "gives tokens no weights, so none can be counted" in capsys.readouterr().err


def test_needles_of_the_stress_test_get_a_share(tiny_flags, tmp_path, capsys):
    words = [word for word in tiny_flags if not word.startswith(("--task", "--data_dir", "--max_length"))]
    words += ["--task=stress", "--max_length=12", "--num_train_samples=20", "--num_eval_samples=10", "--pooling_method=mean", "--epochs=1"]
    assert main([*words, "--run_name=noise", "--distractor_ratio=0.5"]) == 0
    capsys.readouterr()
    assert glot_main(["explain", str(tmp_path / "runs/noise"), "--split", "validation", "--out", str(tmp_path / "s.json")]) == 0
    (census,) = json.loads((tmp_path / "s.json").read_text())
    assert census["about"] == "ratio 0.5" and len(census["needles"]) == 10
    assert census["needles"] == pytest.approx(census["needle_shares"], abs=1e-6)  # every token of a mean weighs alike
    with (tmp_path / "runs/noise/predictions.csv").open(newline="") as stream:
        text = next(csv.DictReader(stream))["text"]
    hits = sum(word in needle_words() for word in text.split()[:10])  # 12 tokens, two of them special
    assert census["needle_shares"][0] == pytest.approx(hits / 12, abs=1e-6)


def test_only_the_word_is_taken_out_of_a_text():
    text = "the cat\n\nruns\tand  the red dog"
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    expected = ["cat\n\nruns\tand  the red dog", "the \nruns\tand  the red dog", "the cat\n\nand  the red dog"]
    assert [without_span(text, *span) for span in spans[:3]] == expected
    assert without_span(text, *spans[-1]) == "the cat\n\nruns\tand  the red" and without_span("cat", 0, 3) == ""


def test_words_behind_the_cut_are_not_read_again(runs, monkeypatch):
    words = ["the red cat runs"] * 60
    read = []
    encoder = glot.load(runs("glot"))
    whole = type(encoder).scores
    monkeypatch.setattr(
        type(encoder), "scores", lambda self, texts, *more, **options: read.extend(texts) or whole(self, texts, *more, **options)
    )
    side = explain(encoder, (" ".join(words),), "glot", "glot").sides[0]
    assert len(read) == 14 and len(side.without_word) == 240 and not side.without_word[14:].any()
    again = encoder.predict_proba(" ".join(words[0].split()[1:] + words[1:]))
    assert side.without_word[0] == pytest.approx(float(again.max()) - float(encoder.predict_proba(" ".join(words)).max()), abs=1e-4)


def test_many_words_move_up_where_a_long_one_is_left_out(runs):
    text = " ".join(["-".join("a" * 25), *["the red cat runs"] * 20])  # the first word fills the limit
    encoder = glot.load(runs("glot"))
    encoder.backbone.max_length = 48
    side = explain(encoder, (text,), "glot", "glot").sides[0]
    whole, without = (encoder.predict_proba(one) for one in (text, text.split(" ", 1)[1]))
    best = int(whole.argmax())
    assert side.without_word[0] == pytest.approx(float(without[best] - whole[best]), abs=1e-4)


def test_a_vector_without_edges_is_compared_with_the_runs_own(tiny_bert, tmp_path, capsys):
    lines = [json.dumps({"query": f"{a} {b}", "pos": [f"the {a} {b}"]}) for a in ("red", "big", "green") for b in ("cat", "dog")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_bert} --max_length=12 --verbose=0 --epochs=1"
    words += f" --batch_size=3 --heldout_fraction=0.3 --store_dir={tmp_path}/hidden --output_dir={tmp_path} --run_name=emb --lr=0.1"
    assert main([*words.split(), f"--save_dir={tmp_path}/saved", "--pooling_method=glot", "--tau=-0.9", "--gat_hidden_dim=8"]) == 0
    encoder = glot.load(tmp_path / "emb")
    found = explain(encoder, (TEXT,), "emb", "glot")
    edgeless = copy.deepcopy(encoder.pooler)
    edgeless.rule = GraphRule("none")
    with torch.no_grad():
        batch = encoder.states([TEXT])
        expected = torch.nn.functional.cosine_similarity(edgeless(batch), encoder.pooler(batch)).item()
    assert found.outcome.without_edges == pytest.approx(expected, abs=1e-6) and expected < 1 - 1e-6
    capsys.readouterr()
