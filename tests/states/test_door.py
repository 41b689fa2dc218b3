"""The door of the backbone: what a loaded model gives is checked, and what cannot be used is one line."""

import errno
import fcntl
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from zoo import make_model

import glot
from glot.cli import glot_main, main
from glot.errors import ConfigError, StateError
from glot.states.backbone import Backbone, LiveTokens, find_backbone
from glot.training.checkpoint import load_run

CPU = torch.device("cpu")


def change(folder: Path, copy: Path, pattern: str, function) -> Path:
    """A copy of a model folder in which weights whose name holds `pattern` went through `function`."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    assert any(pattern in name for name in weights)
    save_file({name: function(value) if pattern in name else value for name, value in weights.items()}, copy / "model.safetensors")
    return copy


def fails(capsys, words: list[str]) -> list[str]:
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err.splitlines()


def live(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("--store_dir")] + ["--precompute_hidden_states=0"]


def test_states_that_are_not_finite_stop_every_door_and_name_row_and_cause(tiny_bert, tiny_flags, tmp_path, capsys):
    huge = change(tiny_bert, tmp_path / "huge", "layer.1.output.LayerNorm.weight", lambda value: value * 1e6)
    broken = change(tiny_bert, tmp_path / "broken", "word_embeddings", lambda value: value.index_fill(0, torch.tensor([14]), torch.nan))
    overflow = [*tiny_flags, f"--model_name_or_path={huge}"]
    (line,) = fails(capsys, overflow)
    assert "--store_dtype=float16: a hidden state of size" in line and "use bfloat16 or float32" in line
    for words in (overflow, live(overflow)):
        (line,) = fails(capsys, [*words, "--backbone_dtype=float16"])
        assert "cola train: row " in line and "they do not fit --backbone_dtype=float16; use bfloat16 or float32" in line, line
    for words in (tiny_flags, live(tiny_flags)):
        (line,) = fails(capsys, [*words, f"--model_name_or_path={broken}"])
        row = re.search(r"cola (train|validation): row (\d+): ", line)
        assert row and int(row[2]) % 2 == 1  # every second row has `not`
        assert "1 of its weight tensors hold numbers that are not finite" in line, line
    assert not list(tmp_path.glob("runs/*/model.safetensors"))


def test_an_encoder_names_the_text_that_gives_no_finite_states(tiny_bert, tmp_path):
    from glot.encoder import SentenceEncoder
    from glot.nn.poolers.fixed import MeanPooler

    broken = change(tiny_bert, tmp_path / "broken", "word_embeddings", lambda value: value.index_fill(0, torch.tensor([14]), torch.nan))
    encoder = SentenceEncoder(Backbone(find_backbone(str(broken)), None, "float32", "2", CPU), MeanPooler(16))
    assert np.isfinite(encoder.encode(["red cat", "dog"])).all()
    with pytest.raises(StateError, match=r"text 2: .* not finite"):
        encoder.encode(["red cat", "dog", "not dog", "a big cat runs"])


def test_positions_are_tried_not_believed(tmp_path, capsys, mirror):
    roberta = make_model("roberta", tmp_path / "roberta", max_position_embeddings=34)  # holds 32: two stand before the first token
    backbone = Backbone(find_backbone(str(roberta)), None, "float32", "3", CPU)
    assert backbone.max_length == backbone.limit == 32
    assert len(backbone.encode(backbone.tokenise(["cat " * 50])).tokens) == 32
    words = [
        f"--model_name_or_path={roberta}",
        f"--data_dir={mirror}",
        f"--output_dir={tmp_path}",
        f"--store_dir={tmp_path / 'h'}",
        "--task=cola",
    ]
    assert fails(capsys, [*words, "--max_length=33"]) == [f"error: --max_length=33: {roberta} reads at most 32 tokens"]
    assert fails(capsys, [*words, "--max_length=35"]) == [f"error: --max_length=35: {roberta} reads at most 34 tokens"]
    assert main([*words, "--max_length=32", "--epochs=1", "--verbose=0"]) == 0
    xlnet = Backbone(find_backbone(str(make_model("xlnet", tmp_path / "xlnet"))), 300, "float32", "3", CPU)
    assert len(xlnet.tokenise(["cat " * 500])[0]) == 300  # its configuration says -1


def test_a_decoder_with_code_of_its_own_is_one_by_measurement(tmp_path, monkeypatch, capsys, mirror):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_model("llama", tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["Mine"],
        "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModel": "mine.MineModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import LlamaConfig, LlamaModel\n\n\nclass MineConfig(LlamaConfig):\n    model_type = 'mine'\n\n\n"
    (folder / "mine.py").write_text(code + "class MineModel(LlamaModel):\n    config_class = MineConfig\n")
    words = [
        f"--model_name_or_path={folder}",
        f"--data_dir={mirror}",
        f"--output_dir={tmp_path}",
        f"--store_dir={tmp_path / 'h'}",
        "--task=cola",
    ]
    words += ["--epochs=1", "--verbose=0", "--max_length=16", "--pooling_method=cls", "--decoder_cls_last_token=1"]
    assert fails(capsys, words) == [
        f"error: --model_name_or_path={folder}: comes with code of its own; --trust_remote_code=1 runs the model's own code"
    ]
    assert main([*words, "--trust_remote_code=1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["backbone"]["kind"] == "decoder" and result["notes"] == []
    assert load_run(Path(result["run_dir"]))[0].pooler.last
    own = result["run_dir"]  # whose config.json says that the code was trusted once
    with pytest.raises(ConfigError, match="--trust_remote_code=1"):
        glot.load(own)
    for command in (["rerun", own], ["export", own, f"--to={tmp_path / 'ex'}"], ["explain", own, "--text=a"]):
        assert glot_main(command) == 2 and "--trust_remote_code=1" in capsys.readouterr().err
    trusted = glot.load(own, trust_remote_code=True)
    answer = trusted.predict(["red cat"])
    assert trusted.dim == 16 and glot.predict(own, ["red cat"], trust_remote_code=True) == answer == glot.predict(trusted, ["red cat"])
    flags = {"data_dir": mirror, "output_dir": tmp_path, "store_dir": tmp_path / "h", "epochs": 1, "max_length": 16, "pooler": "mean"}
    run = glot.train("cola", model_name_or_path=folder, trust_remote_code=True, **flags)
    assert len(run.predict(["red cat"])) == 1  # the call that trained it trusts it
    assert glot.encode(["red cat"], model=folder, trust_remote_code=True).shape == (1, 16)
    with pytest.raises(ConfigError, match=r"device: .* is loaded already; give it to glot.load"):
        glot.encode(["red cat"], run.encoder, device="cpu")


def test_a_model_by_a_relative_path_is_found_from_another_folder(tiny_bert, mirror, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_bert, tmp_path / "there/model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    flags = ["--task=cola", f"--data_dir={mirror}", "--epochs=1", "--verbose=0", "--max_length=16", "--run_name=run"]
    assert main([*flags, "--model_name_or_path=./model"]) == 0
    expected = glot.load("runs/run").encode(["red cat"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(glot.load(tmp_path / "there/runs/run").encode(["red cat"]), expected)
    shutil.copytree(tiny_bert, tmp_path / "elsewhere/model")  # another model of that name here is not taken for it
    (tmp_path / "elsewhere/model/config.json").write_text(json.dumps(json.loads((tiny_bert / "config.json").read_text()) | {"x": 1}))
    np.testing.assert_array_equal(glot.load(tmp_path / "there/runs/run").encode(["red cat"]), expected)


def test_folders_that_hold_no_model_say_what_they_are(tiny_bert, tiny_flags, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "big/model"}')
    shutil.copytree(tiny_bert, tmp_path / "outer/inner")
    shutil.copytree(tiny_bert, tmp_path / "merged")
    shutil.copy(adapter / "adapter_config.json", tmp_path / "merged")
    (tmp_path / "empty").mkdir()
    for name, words in {
        adapter: "is an adapter (LORA) for big/model, not a model; merge it into its base",
        tmp_path / "merged": "holds weights and an adapter beside them; where it is merged into the weights, remove adapter_config.json",
        tmp_path / "outer": "it holds no config.json; it holds inner, name one of those",
        tmp_path / "empty": "it holds no config.json; name a folder that save_pretrained wrote",
        tiny_bert / "config.json": "is a file; name the folder that holds it",
        "./nowhere": "no model folder there; check the path, or name a model of the hub as owner/name",
        "~nobody-here/x": "no model folder there",
    }.items():
        (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={name}"])
        assert f"--model_name_or_path={name}: " in line and words in line
    for name in ("minilm", str(tiny_bert)):
        (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={name}", "--revision=v1"])
        assert line.startswith("error: --revision=v1: ")


def test_weights_of_another_size_name_the_tensor(tiny_bert, tiny_flags, tmp_path, capsys):
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={other}"])
    assert "embeddings.position_embeddings.weight is (64, 16) in the weights and (32, 16) by the configuration" in line


def test_ids_beyond_the_embedding_are_one_line(tiny_bert, tiny_flags, tmp_path, capsys):
    cut = change(tiny_bert, tmp_path / "cut", "word_embeddings", lambda value: value[:12].clone())
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps({**config, "vocab_size": 12}))
    (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={cut}"])
    assert "its tokenizer gives id 16 ('the'), its embedding has 12 rows" in line


def test_a_python_tokenizer_without_offsets_runs_the_stress_test(tmp_path, capsys):
    folder = make_model("roberta", tmp_path / "bertweet", vocab_size=200)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    letters = [chr(code) for code in range(33, 127)]
    (folder / "vocab.txt").write_text("".join(f"{letter}@@ 9\n{letter} 9\n" for letter in letters))
    (folder / "bpe.codes").write_text("t h 9\nth e</w> 9\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertweetTokenizer", "model_max_length": 64}')
    words = [
        f"--model_name_or_path={folder}",
        f"--output_dir={tmp_path}",
        f"--store_dir={tmp_path / 'h'}",
        "--task=stress",
        "--run_name=run",
    ]
    assert main([*words, "--max_length=60", "--num_train_samples=12", "--num_eval_samples=8", "--epochs=1", "--verbose=0"]) == 0
    assert (
        0 < json.loads(capsys.readouterr().out)["signal_kept"] < 1
    )  # a token per letter: most texts of 60 words are cut before their signal
    assert (tmp_path / "run/augmented_similarity.png").is_file()
    # this tokenizer changes its own files when it saves them: the export must hold those that it was loaded from
    assert glot_main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "export")]) == 0
    model = SentenceTransformer(str(tmp_path / "export"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(["the other thing"]), glot.load(tmp_path / "run").encode(["the other thing"]), atol=1e-5)


def test_a_file_system_without_locks_is_said_and_goes_on(tiny_flags, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(tiny_flags) == 0
    assert "its file system has no locks (No locks available), so let only one process write it" in capsys.readouterr().err


def test_live_tokens_read_equal_lengths_with_gradient(tmp_path):
    folder = make_model("fnet", tmp_path / "fnet")
    source = find_backbone(str(folder))
    backbone = Backbone(source, None, "float32", "3", CPU)
    ids = backbone.tokenise(["red cat", "the big dog runs and sleeps", "dog"])
    source = LiveTokens(backbone, ids, trainable=True)
    with torch.no_grad():
        alone = torch.cat([source.gather(np.array([row])).tokens for row in (2, 0, 1)])
        torch.testing.assert_close(source.gather(np.array([2, 0, 1])).tokens, alone)
    assert source.gather(np.array([2, 0, 1])).tokens.requires_grad


def damaged(folder: Path, copy: Path, **config: object) -> Path:
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return copy


def test_files_that_stand_for_others_are_named(tiny_bert, tiny_flags, tmp_path, capsys):
    link, pointer, bare = (shutil.copytree(tiny_bert, tmp_path / name) for name in ("link", "pointer", "bin"))
    (link / "vocab.txt").symlink_to("/nowhere/at/all")
    (pointer / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (bare / "model.safetensors").unlink()
    (bare / "pytorch_model.bin").write_bytes(b"no checkpoint at all")
    for folder, words in {
        link: "vocab.txt is a link to /nowhere/at/all, which is not there; fetch the model again",
        pointer: "model.safetensors is a pointer of git-lfs, not the file; fetch it with `git lfs pull`",
        bare: "its weights cannot be loaded",
    }.items():
        for flags in ([], ["--dry_run"]) if folder is not bare else ([],):
            (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={folder}", *flags])
            assert words in line and "arbitrary code" not in line


def test_checkpoints_that_do_not_belong_to_their_configuration(tiny_bert, tiny_flags, tmp_path, capsys):
    for count in (0, -1, 1):
        folder = damaged(tiny_bert, tmp_path / f"layers{count}", num_hidden_layers=count)
        (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={folder}"])
        assert ("encoder.layer.1." in line and "counts 1 layers") if count == 1 else "how many layers" in line, line
    for dtype, word in ((torch.int8, "I8"), (torch.bool, "BOOL")):
        folder = change(tiny_bert, tmp_path / word, "", lambda value, dtype=dtype: value.to(dtype))
        (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={folder}"])
        assert "model.safetensors holds " in line and f" as {word}, not as floating-point numbers" in line
        facts = json.loads((folder / "config.json").read_text())  # a method that transformers only warns about
        (folder / "config.json").write_text(json.dumps({**facts, "quantization_config": {"quant_method": "modelopt"}}))
        (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={folder}"])
        assert f" as {word}, not as floating-point numbers" in line
    flat = change(tiny_bert, tmp_path / "flat", "layer.1.output.LayerNorm", lambda value: value * 0)
    (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={flat}"])
    assert "gives the same state for every token" in line


def test_a_precision_that_a_model_cannot_take_is_named_as_the_cause(tmp_path, tiny_flags, capsys):
    xlnet = make_model("xlnet", tmp_path / "xlnet")
    (line,) = fails(capsys, [*tiny_flags, f"--model_name_or_path={xlnet}", "--backbone_dtype=float16"])
    assert line.endswith("use --backbone_dtype=float32 in place of float16"), line


def test_identity_follows_every_file_that_a_tokenizer_reads(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    seen = [find_backbone(str(folder)).identity]
    for name in ("bpe.codes", "spiece.vocab", "vocab.tiktoken", "code/inner.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        seen.append(find_backbone(str(folder)).identity)
    assert len(set(seen)) == 5
    (folder / "pictures.bin").mkdir()  # a folder with such a name is no file
    assert find_backbone(str(folder)).identity == seen[-1]
