"""Prompts: where they come from, what they are put before, and that every door uses the same ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from sentence_transformers import SentenceTransformer
from zoo import make_model

import glot
from glot.cli import glot_main, main
from glot.data import PairFile, PairOptions
from glot.errors import ConfigError
from glot.prompts import Prompts, UsedPrompts, read_prompts

TEXTS = ["red cat", "the big dog runs", "a"]
OWN = {"prompts": {"query": "red dog ", "document": "a big ", "STS": "not "}, "default_prompt_name": "document"}
PAIRS = [{"query": f"{a} cat", "pos": [f"{b} dog"], "neg": []} for a in ("red", "blue", "green") for b in ("red", "big", "small", "the")]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory) -> Path:
    """A tiny decoder with prompts of its own and no special tokens, so that a prompt's tokens can be counted."""
    folder = make_model("olmo2", tmp_path_factory.mktemp("prompted") / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(OWN))
    return folder


def train(folder: Path, tmp_path: Path, *flags: str, name: str = "run") -> Path:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    words = ["--task=embedding", f"--model_name_or_path={folder}", f"--train_file={tmp_path / 'pairs.jsonl'}", "--pooling_method=adapool"]
    words += [
        f"--output_dir={tmp_path / 'runs'}",
        f"--store_dir={tmp_path / 'hidden'}",
        f"--save_dir={tmp_path / name}",
        f"--run_name={name}",
    ]
    assert main([*words, "--epochs=1", "--max_length=16", "--verbose=0", "--batch_size=4", *flags]) == 0
    return tmp_path / "runs" / name


def test_names_and_defaults():
    prompts = Prompts({"query": "q: ", "passage": "p: ", "cola": "c: "}, "query")
    assert prompts.named(None) == prompts.named("query") == "q: " and Prompts().named(None) == ""
    assert prompts.for_pairs() == UsedPrompts("q: ", "p: ") and prompts.for_task("cola") == UsedPrompts()
    own = Prompts({"cola": "c: "}, exclude=True, from_file=True)
    assert own.for_task("cola") == UsedPrompts("c: ", "c: ", True) and own.for_task("sst2").key == ""
    assert Prompts.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    with pytest.raises(ConfigError, match=r"prompt_name=quer: .* \(did you mean 'query'\?\); it has query, passage, cola"):
        prompts.named("quer")


def test_files(tmp_path):
    (tmp_path / "flat.json").write_text('{"query": "q: "}')
    (tmp_path / "nested.json").write_text(json.dumps(OWN))
    assert read_prompts(str(tmp_path / "flat.json"), None, False) == Prompts({"query": "q: "}, from_file=True)
    assert read_prompts(str(tmp_path / "nested.json"), None, True).default == "document"
    assert read_prompts("auto", None, False) == read_prompts("none", tmp_path / "nested.json", False) == Prompts()
    assert read_prompts("auto", tmp_path / "nested.json", False).texts == OWN["prompts"]
    for name, text, complaint in (
        ("broken.json", "{", "is not JSON"),
        ("list.json", "[1]", "does not hold texts by name"),
        ("number.json", '{"query": 3}', "does not hold texts by name"),
        ("default.json", '{"prompts": {}, "default_prompt_name": "x"}', "names 'x' as its default"),
        ("listed.json", '{"prompts": {"query": "q"}, "default_prompt_name": ["query"]}', r"names \['query'\] as its default"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=complaint):
            read_prompts(str(tmp_path / name), None, False)


def test_a_text_that_is_query_and_document_is_two_texts(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"query": "a", "pos": ["b"]}, {"query": "b", "pos": ["a"]}])
    plain = PairFile(tmp_path / "pairs.jsonl", PairOptions())
    roles = PairFile(tmp_path / "pairs.jsonl", PairOptions(used=UsedPrompts("q: ", "d: ")))
    assert list(plain) == ["a", "b"] and list(roles) == ["a", "b", "b", "a"]
    assert [roles.prompt(place) for place in range(4)] == ["q: ", "d: ", "q: ", "d: "]


@pytest.mark.parametrize("exclude", [0, 1])
def test_training_reads_queries_and_documents_behind_their_prompts(prompted, tmp_path, exclude, capsys):
    run = train(prompted, tmp_path, f"--exclude_prompt={exclude}")
    result = json.loads(capsys.readouterr().out)
    queries, documents = {row["query"] for row in PAIRS}, {row["pos"][0] for row in PAIRS}
    assert result["store"]["sentences"] == len(queries | documents)
    words = sum(len(text.split()) for text in (*queries, *documents))
    assert result["store"]["tokens"] == words + (0 if exclude else 2 * len(queries | documents))
    saved = json.loads((run / "config.json").read_text())["resolved"]["prompts"]
    assert saved["texts"] == OWN["prompts"] and saved["exclude"] == bool(exclude)
    key = json.loads((Path(result["store"]["path"]) / "key.json").read_text())
    assert json.loads(key["prompts"]) == ["red dog ", "a big ", bool(exclude)]


def test_every_door_puts_the_same_prompt_before_a_text(prompted, tmp_path, capsys):
    for exclude in (0, 1):
        run = train(prompted, tmp_path, f"--exclude_prompt={exclude}", name=f"run{exclude}")
        encoder = glot.load(run)
        assert glot_main(["export", str(run), "--to", str(tmp_path / f"export{exclude}")]) == 0
        model = SentenceTransformer(str(tmp_path / f"export{exclude}"), trust_remote_code=True, device="cpu")
        for name in ("query", "document", "STS", None):
            found = encoder.encode(TEXTS, prompt_name=name)
            np.testing.assert_allclose(model.encode(TEXTS, prompt_name=name), found, atol=1e-5)
            text = OWN["prompts"][name or "document"]
            np.testing.assert_allclose(encoder.encode(TEXTS, prompt=text), found, atol=1e-6)
            plainly = encoder.encode([text + one for one in TEXTS], prompt="")
            assert np.allclose(plainly, found, atol=1e-5) != bool(exclude)
        np.testing.assert_allclose(model.encode_query(TEXTS), encoder.encode(TEXTS, prompt_name="query"), atol=1e-5)
    switched = tmp_path / "switched"
    assert glot_main(["export", str(tmp_path / "runs/run0"), "--to", str(switched), "--exclude_prompt"]) == 0
    model = SentenceTransformer(str(switched), trust_remote_code=True, device="cpu")
    assert not model[1].include_prompt
    with pytest.raises(ConfigError, match="prompt_name=querry: this model has no such prompt"):
        glot.load(tmp_path / "runs/run0").encode(TEXTS, prompt_name="querry")


def test_an_export_puts_before_documents_what_training_did(tmp_path):
    folder = make_model("olmo2", tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "red ", "passage": "big "}}')
    run = train(folder, tmp_path)
    assert glot_main(["export", str(run), "--to", str(tmp_path / "export")]) == 0
    model = SentenceTransformer(str(tmp_path / "export"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode_document(TEXTS), glot.load(run).encode(TEXTS, prompt_name="passage"), atol=1e-5)


def test_excluded_tokens_are_those_of_the_prompt(prompted, tmp_path):
    run = train(prompted, tmp_path, "--exclude_prompt=1")
    encoder = glot.load(run)
    backbone = encoder.backbone
    ids, skips = backbone.tokeniser.tokenise(["the cat", ""], 16, "red dog ", True)
    assert skips == [2, 1]  # of a text of nothing but its prompt, the last token stays
    whole, cut = backbone.encode(ids), backbone.encode(ids, skips)
    torch.testing.assert_close(cut.tokens, torch.cat([whole.tokens[2:4], whole.tokens[5:6]]))
    assert cut.lengths.tolist() == [2, 1]


def test_labelled_tasks_take_a_prompt_only_from_the_users_file(prompted, mirror, tmp_path, capsys):
    base = ["--task=cola", f"--model_name_or_path={prompted}", f"--data_dir={mirror}", f"--output_dir={tmp_path}", "--epochs=1"]
    base += [f"--store_dir={tmp_path / 'hidden'}", "--max_length=16", "--verbose=0", "--pooling_method=mean"]
    (tmp_path / "own.json").write_text('{"cola": "red dog ", "sst2": "x"}')
    tokens, prints = [], []
    for flags in (
        [],
        ["--prompts=none"],
        [f"--prompts={tmp_path / 'own.json'}"],
        [f"--prompts={tmp_path / 'own.json'}", "--exclude_prompt=1"],
    ):
        assert main([*base, *flags]) == 0
        result = json.loads(capsys.readouterr().out)
        tokens.append(result["store"]["tokens"])
        prints.append(result["fingerprint"])
        sentences = result["store"]["sentences"]
    assert tokens == [tokens[0], tokens[0], tokens[0] + 2 * sentences, tokens[0]]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    (tmp_path / "others.json").write_text('{"sst2": "x"}')
    assert main([*base, f"--prompts={tmp_path / 'others.json'}"]) == 0
    assert any(
        "has no prompt named cola, so none stands before the texts; it has sst2" in note
        for note in json.loads(capsys.readouterr().out)["notes"]
    )
    for flags, complaint in (
        (["--prompts=none", "--exclude_prompt=1"], "--exclude_prompt=1: has no effect with --prompts=none"),
        (["--prompts=~nobody-here/x"], "--prompts=~nobody-here/x: must be auto, none, or a JSON file that is there"),
        (["--prompts=nowhere.json"], "--prompts=nowhere.json: must be auto, none, or a JSON file that is there"),
    ):
        assert main([*base, *flags]) == 2
        assert complaint in capsys.readouterr().err


def test_a_checkpoint_brings_its_prompts_to_mteb(prompted, tmp_path):
    from glot.opening import open_encoder
    from glot.settings.config import RunConfig
    from glot.settings.flags import parse

    run = train(prompted, tmp_path, "--exclude_prompt=1")
    config = parse(["--task=mteb", f"--checkpoint_path={run}"]).config
    encoder, config, _ = open_encoder(config)
    assert isinstance(config, RunConfig) and encoder.prompts.exclude and encoder.prompts.texts == OWN["prompts"]
    other, _, _ = open_encoder(parse(["--task=mteb", f"--checkpoint_path={run}", "--prompts=none", "--exclude_prompt=0"]).config)
    assert other.prompts == Prompts() and other.fingerprint() != encoder.fingerprint()


def test_mteb_finds_the_prompt_of_task_type_or_role(prompted):
    from types import SimpleNamespace

    from mteb.types import PromptType

    from glot.integrations.mteb import MtebModel, prompt_names

    about = SimpleNamespace(name="STS12", type="STS")
    assert prompt_names(about, PromptType.query) == ["STS12-query", "STS12", "STS-query", "STS", "query"]
    assert prompt_names(about, None) == ["STS12", "STS"]
    seen = []

    class Recorder:
        prompts = Prompts(OWN["prompts"], "document")

        def encode(self, texts, batch_size, **options):
            seen.append(options["prompt"])
            return np.zeros((len(texts), 2))

    model = object.__new__(MtebModel)
    model.encoder = Recorder()
    retrieval = SimpleNamespace(name="SciFact", type="Retrieval")
    for metadata, role in (
        (about, None),
        (retrieval, PromptType.query),
        (retrieval, PromptType.document),
        (SimpleNamespace(name="B", type="Classification"), None),
    ):
        model.encode([{"text": ["a"]}], task_metadata=metadata, prompt_type=role, hf_split="test", hf_subset="default")
    assert seen == ["not ", "red dog ", "a big ", ""]
