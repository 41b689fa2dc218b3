"""Finding, loading and running backbones: tiny ones here, the embedded ones marked slow."""

import hashlib
import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, LlamaConfig, MistralConfig, T5Config

from glot.errors import ConfigError
from glot.states.backbone import (
    Backbone,
    BackboneSource,
    LiveTokens,
    embedded,
    file_sha256,
    find_backbone,
    find_embedded,
    hashes,
    kept_characters,
    pick_device,
)
from glot.states.backbone.states import ReaderOptions, StateReader

CPU = torch.device("cpu")
TEXTS = ["the big cat runs", "red", "a small dog sleeps not the cat", "dog"]


def load(folder, layer="-1", max_length=None) -> Backbone:
    source = find_backbone(str(folder))
    return Backbone(source, max_length, "float32", source.resolve_layer(layer), CPU)


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("layer", ["-1", "0", "1", "2", "-2"])
def test_states_equal_the_library_one_text_at_a_time(kind, layer, request):
    folder = request.getfixturevalue(kind)
    backbone = load(folder, layer)
    batch = backbone.encode(backbone.tokenise(TEXTS))
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True).hidden_states[
                int(layer)
            ][0]
        torch.testing.assert_close(batch.tokens[batch.ptr[row] : batch.ptr[row + 1]], states, atol=1e-5, rtol=1e-5)


def test_several_layers_come_from_one_pass(tiny_bert):
    backbone = load(tiny_bert)
    ids = backbone.tokenise(TEXTS)
    for layer, batch in zip(("0", "2", "1"), backbone.encode_layers(ids, ["0", "2", "1"]), strict=True):
        torch.testing.assert_close(batch.tokens, load(tiny_bert, layer).encode(ids).tokens)


def test_mean4_is_the_mean_of_the_last_four(tiny_bert):
    with pytest.raises(ConfigError, match=r"--hidden_layer=mean4: .* hidden states 0 \(embeddings\) to 2"):
        find_backbone(str(tiny_bert)).resolve_layer("mean4")
    source = BackboneSource("x", "x", "x", BertConfig(num_hidden_layers=3))
    assert source.resolve_layer("mean4") == "mean4"
    assert [source.resolve_layer(layer) for layer in ("-1", "3", "0", "-4")] == ["3", "3", "0", "0"]
    for layer in ("4", "-5"):
        with pytest.raises(ConfigError, match=f"--hidden_layer={layer}"):
            source.resolve_layer(layer)


def test_a_decoder_without_padding_token_pads_with_eos_and_ignores_it(tiny_llama):
    backbone = load(tiny_llama)
    assert backbone.tokeniser.fill_token == backbone.tokenizer.eos_token_id
    alone, together = backbone.encode(backbone.tokenise(TEXTS[:1])), backbone.encode(backbone.tokenise(TEXTS))
    torch.testing.assert_close(alone.tokens, together.tokens[: len(alone.tokens)], atol=1e-6, rtol=1e-5)


def test_texts_are_cut_and_limits_named(tiny_bert):
    long = " ".join(["cat"] * 200)
    assert [len(ids) for ids in load(tiny_bert, max_length=5).tokenise([long, "cat", ""])] == [5, 3, 2]
    assert len(load(tiny_bert, max_length=None).tokenise([long])[0]) == 64
    with pytest.raises(ConfigError, match=r"--max_length=65: .* reads at most 64 tokens"):
        load(tiny_bert, max_length=65)
    with pytest.raises(ConfigError, match=r"--max_length=2: .* puts 2 tokens around a text; must be at least 3"):
        load(tiny_bert, max_length=2)  # transformers would not cut at all


@pytest.mark.parametrize(
    ("config", "decoder"),
    [(BertConfig(), False), (BertConfig(is_decoder=True), True), (LlamaConfig(), True), (MistralConfig(), True)],
)
def test_what_counts_as_a_decoder(config, decoder):
    assert BackboneSource("x", "x", "x", config).is_decoder is decoder


def test_live_tokens_have_gradient_and_dropout_only_when_trained(tiny_bert):
    backbone = load(tiny_bert)
    ids = backbone.tokenise(TEXTS)
    frozen = LiveTokens(backbone, ids)
    assert not frozen.gather(np.array([1, 0])).tokens.requires_grad
    trained = LiveTokens(backbone, ids, trainable=True)
    first, second = (trained.gather(np.array([0])).tokens for _ in range(2))
    assert first.requires_grad and not torch.equal(first, second)
    with torch.no_grad():
        first, second = (trained.gather(np.array([0])).tokens for _ in range(2))
    assert not first.requires_grad and torch.equal(first, second)


def test_identity_follows_the_files(tiny_bert, tmp_path):
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    assert find_backbone(str(copy)).identity == find_backbone(str(tiny_bert)).identity
    config = copy / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert find_backbone(str(copy)).identity != find_backbone(str(tiny_bert)).identity


def test_what_a_cut_leaves_of_a_text(tiny_bert, tiny_llama):
    texts = ["red blue green", "the big dog runs", "a"]
    assert kept_characters(find_backbone(str(tiny_bert)), texts, 4) == [8, 7, 1]  # two of the four are special
    assert kept_characters(find_backbone(str(tiny_llama)), texts, 3) == [14, 11, 1]
    assert kept_characters(find_backbone(str(tiny_llama)), texts, None) == [14, 16, 1]


OWN_CODE = """
from transformers import BertConfig, BertModel


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_it_is_trusted(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    with pytest.raises(ConfigError, match="--trust_remote_code=1 runs the model's own code"):
        find_backbone(str(folder))
    backbone = Backbone(find_backbone(str(folder), True), None, "float32", "2", CPU)
    assert type(backbone.model).__name__ == "OwnModel"
    torch.testing.assert_close(backbone.encode([[2, 5, 3]]).tokens, load(tiny_bert).encode([[2, 5, 3]]).tokens)


def test_backbones_that_cannot_be_used(tmp_path):
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ConfigError, match="encoder-decoder models"):
        find_backbone(str(tmp_path / "t5"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"--model_name_or_path=.*broken: its configuration cannot be read"):
        find_backbone(str(tmp_path / "broken"))
    BertConfig().save_pretrained(tmp_path / "no-tokenizer")
    with pytest.raises(ConfigError, match="its tokenizer knows 5 tokens and the model 30522; are the tokenizer's files missing"):
        load(tmp_path / "no-tokenizer")


def rename_tensors(path: Path) -> None:
    save_file({f"x.{name}": value for name, value in load_file(path).items()}, path)


def test_damaged_weights_never_become_random_ones(tiny_bert, tmp_path):
    for name, damage, message in (
        ("missing", lambda path: path.unlink(), "its weights cannot be loaded"),
        ("truncated", lambda path: path.write_bytes(path.read_bytes()[:500]), "its weights cannot be loaded"),
        (
            "renamed",
            rename_tensors,
            r"the checkpoint lacks \d+ of",
        ),
    ):
        folder = shutil.copytree(tiny_bert, tmp_path / name)
        damage(folder / "model.safetensors")
        with pytest.raises(ConfigError, match=message):
            load(folder)


def test_a_length_is_refused_before_the_weights_are_loaded(tiny_bert):
    with pytest.raises(ConfigError, match=r"--max_length=65: .* reads at most 64 tokens"):
        find_backbone(str(tiny_bert)).check_length(65)


def test_states_do_not_depend_on_how_many_texts_follow(tiny_bert):
    backbone = load(tiny_bert)
    ids = [ids for ids in backbone.tokenise(["cat dog red"] * 900)]
    batches = [len(batch) for (batch,) in backbone.encode_sorted(ids, ["2"])]
    assert batches == [819, 81]  # 4,096 tokens, 5 a text


def test_an_unwritable_or_damaged_cache_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(hashes.REMEMBERED_FROM))
    digest = file_sha256(tmp_path / "file")
    assert digest == hashlib.sha256(bytes(hashes.REMEMBERED_FROM)).hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_sha256(tmp_path / "file") == digest
    (tmp_path / "cache/glot").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for damage in ("{", "[1]", '{"a": '):
        (tmp_path / "cache/glot/hashes.json").write_text(damage)
        assert file_sha256(tmp_path / "file") == digest
    assert digest in (tmp_path / "cache/glot/hashes.json").read_text()


def test_only_large_files_are_remembered(tmp_path, monkeypatch):
    """A cache that holds every small file of every folder that was ever opened takes longer to read than the files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("x")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"x").hexdigest()
    assert not (tmp_path / "cache").exists()


def test_a_t5gemma_encoder_is_measured_by_its_own_part(tmp_path):
    part = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    torch.manual_seed(0)
    config = transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(num_hidden_layers=3, **part),
        decoder=transformers.T5GemmaModuleConfig(num_hidden_layers=2, **part),
        is_encoder_decoder=False,
    )
    transformers.T5GemmaEncoderModel(config).save_pretrained(tmp_path)
    assert find_backbone(str(tmp_path)).num_layers == 3


@pytest.mark.parametrize("rows", [6, 11, 20, 44, 48, 64])
def test_a_decoder_is_causal_whatever_the_size_of_its_vocabulary(rows, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    model = transformers.LlamaModel(LlamaConfig(vocab_size=rows, max_position_embeddings=64, **sizes)).eval()
    assert StateReader(model, ReaderOptions("llama", 2, 0, rows)).is_causal


def test_long_texts_lose_their_end_whatever_the_tokenizer_says(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "left")
    facts = json.loads((tmp_path / "left/tokenizer_config.json").read_text())
    (tmp_path / "left/tokenizer_config.json").write_text(json.dumps({**facts, "truncation_side": "left"}))
    text = "the red blue green big small cat dog runs"
    for backbone in (load(tiny_bert, max_length=6), load(tmp_path / "left", max_length=6)):
        assert backbone.tokenizer.convert_ids_to_tokens(backbone.tokenise([text])[0])[1:-1] == ["the", "red", "blue", "green"]


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device=cuda:7: not on this machine"):
            pick_device("cuda:7")


def test_embedded_weights_are_checked(monkeypatch):
    row = embedded.EMBEDDED["minilm"]
    monkeypatch.setitem(embedded.EMBEDDED, "minilm", row._replace(sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"has SHA-256 53aa51172d.*expected 0000"):
        find_embedded("minilm")
    monkeypatch.setitem(embedded.EMBEDDED, "minilm", row._replace(distribution="no-such-package"))
    with pytest.raises(ConfigError, match=r"no-such-package is not installed; pip install 'glot-toolkit\[minilm\]'"):
        find_embedded("minilm")


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_text("one")
    first = file_sha256(file)
    with monkeypatch.context() as patch:
        patch.setattr(hashes.hashlib, "file_digest", lambda *_: pytest.fail("read twice"))
        assert file_sha256(file) == first
    file.write_text("other")
    assert file_sha256(file) != first


def wordpiece(text: str, vocabulary: dict[str, int]) -> list[int]:
    """BERT's tokenisation written out: lower case, accents off, punctuation apart, longest match first."""
    plain = "".join(letter for letter in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(letter) != "Mn")
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", plain):
        start, pieces = 0, []
        while start < len(word):
            ends = [end for end in range(len(word), start, -1) if ("##" if start else "") + word[start:end] in vocabulary]
            if not ends:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[("##" if start else "") + word[start : ends[0]]])
            start = ends[0]
        ids += pieces
    return [*ids, vocabulary["[SEP]"]]


@pytest.mark.slow
def test_minilm_tokenises_as_wordpiece_and_is_an_encoder():
    source = find_backbone("minilm")
    backbone = Backbone(source, 128, "float32", "6", CPU)
    assert (backbone.hidden_size, source.num_layers, source.is_decoder) == (384, 6, False)
    vocabulary = {word: index for index, word in enumerate((Path(source.path) / "vocab.txt").read_text().splitlines())}
    texts = ["Na\u00efve caf\u00e9 \u2014 'tis 3.14!", "Unbelievably, transformerless tokenisation.", "\u03b1\u03b2\u03b3 \u2603 end"]
    for text, ids in zip(texts, backbone.tokenise(texts), strict=True):
        assert ids == wordpiece(text, vocabulary)
    assert [len(ids) for ids in backbone.tokenise(["word " * 300, ""])] == [128, 2]
    assert backbone.tokenise(["[SEP] [CLS]"]) == [[101, 102, 101, 102]]


@pytest.mark.slow
def test_smollm2_is_a_decoder_and_padding_does_not_reach_its_states():
    source = find_backbone("smollm2")
    backbone = Backbone(source, 128, "float32", str(source.num_layers), CPU)
    assert (backbone.hidden_size, source.is_decoder) == (576, True)
    ids = backbone.tokenise(["A short text.", "A text that is a good deal longer than the other one."])
    with torch.no_grad():
        together, alone = backbone.encode(ids), backbone.encode(ids[:1])
    torch.testing.assert_close(together.tokens[: len(ids[0])], alone.tokens, atol=2e-4, rtol=1e-4)


def test_a_model_that_takes_no_short_batch_reads_short_texts_in_a_longer_one(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_hash_buckets": 64}
    config = transformers.CanineConfig(**sizes, max_position_embeddings=256, local_transformer_stride=16)
    torch.manual_seed(0)
    transformers.CanineModel(config).save_pretrained(tmp_path)
    transformers.CanineTokenizer(model_max_length=256).save_pretrained(tmp_path)
    backbone = Backbone(find_backbone(str(tmp_path)), 32, "float32", "2", CPU)
    texts = backbone.tokenise(["", "a", "ab", "the red cat"])  # of 2, 3, 4 and 13 tokens, and its convolution takes 4
    assert backbone.reader.least == 4
    together = backbone.encode(texts)
    assert together.lengths.tolist() == [len(text) for text in texts] == [2, 3, 4, 13]
    for states, text in zip(together.tokens.split(together.lengths.tolist()), texts, strict=True):
        torch.testing.assert_close(backbone.encode([text]).tokens, states, rtol=0, atol=1e-5)
