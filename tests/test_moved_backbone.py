"""A run whose backbone's folder was moved: every command that opens it can be told where it is now."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows
from safetensors.torch import load_file, save_file

import glot
from glot.cli import glot_main, main
from glot.errors import CheckpointError
from glot.opening import load_encoder
from glot.training.folders import current_umask


@pytest.fixture
def moved(tiny_bert, tiny_flags, tmp_path, capsys):
    """A run, the folder that its backbone was moved to, a file of texts, and the vectors of before."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_bert, here)
    assert main([*tiny_flags, f"--model_name_or_path={here}", "--run_name=run"]) == 0
    run = json.loads(capsys.readouterr().out)["run_dir"]
    texts = [{"sentence": text} for text in ("the red cat", "a dog", "the cat sat")]
    write_rows(tmp_path / "in.jsonl", texts)
    before = glot.load(run).encode([row["sentence"] for row in texts])
    here.rename(there)
    return run, there, tmp_path / "in.jsonl", before


def test_commands_take_the_folder_that_it_is_in_now(moved, tmp_path, capsys):
    run, there, texts, before = moved
    where = f"--backbone={there}"
    np.testing.assert_array_equal(glot.load(run, backbone=there).encode(["the red cat", "a dog", "the cat sat"]), before)
    assert glot_main(["encode", run, f"--input={texts}", f"--output={tmp_path / 'out.npy'}", where]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), before, atol=1e-6)
    assert glot_main(["predict", run, f"--input={texts}", where]) == 0
    assert glot_main(["explain", run, "--text", "a dog", where]) == 0
    assert glot_main(["export", run, f"--to={tmp_path / 'export'}", where]) == 0
    capsys.readouterr()
    for words in (["predict", run, f"--input={texts}"], ["export", run, f"--to={tmp_path / 'other'}"]):
        assert glot_main(words) == 2
        line = capsys.readouterr().err.strip()
        assert line == (
            f"error: {run}: its backbone is no longer in {there.with_name('here')}; "
            "put it back, or say where it is by --backbone (main.py: --model_name_or_path)"
        )
    assert glot_main(["encode", "--pooling_method=mean", f"--input={texts}", where]) == 2
    assert "--backbone=" in capsys.readouterr().err


def test_mteb_takes_it_as_the_models_name(moved, tiny_flags, mteb_data, capsys):
    run, there, _, _ = moved
    flags = [flag for flag in tiny_flags if not flag.startswith(("--task", "--data_dir", "--model", "--max_length", "--store_dir"))]
    flags += ["--task=mteb", "--mteb_task=STS12", "--mteb_max_length=16", f"--checkpoint_path={run}", f"--data_dir={mteb_data}"]
    assert main([*flags, f"--model_name_or_path={there}"]) == 0
    assert main([*flags, "--model_name_or_path=minilm"]) == 2
    assert "--model_name_or_path=minilm: " in capsys.readouterr().err


def test_another_backbone_in_its_place_is_refused(moved):
    run, there, _, _ = moved
    weights = load_file(there / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, there / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"was trained on .* is another backbone"):
        glot.load(run, backbone=there)


def test_what_names_no_folder_is_refused(moved, tmp_path, capsys):
    run, _, texts, _ = moved
    for name in ("nowhere", "minilm", "acme/tiny@v2"):
        assert glot_main(["predict", run, f"--input={texts}", f"--backbone={name}"]) == 2
        line = f"error: --backbone={name}: no such folder; name the one that the run's backbone is in now"
        assert capsys.readouterr().err.strip() == line


def test_a_run_beside_it_keeps_its_own_backbone(moved, tiny_flags, capsys):
    run, there, _, _ = moved
    assert main([*tiny_flags, "--run_name=still"]) == 0
    still = json.loads(capsys.readouterr().out)["run_dir"]
    assert glot_main(["explain", run, "--text", "a dog", f"--compare={still}", f"--backbone={there}"]) == 0
    assert "still: max" in capsys.readouterr().out


def test_a_run_with_a_backbone_of_its_own_takes_no_other(tiny_bert, tiny_flags, mteb_data, capsys):
    tuned = [*tiny_flags, "--run_name=tuned", "--finetune_backbone=full", "--precompute_hidden_states=0", "--num_train_samples=8"]
    assert main([flag for flag in tuned if not flag.startswith("--store_dir")]) == 0
    run = json.loads(capsys.readouterr().out)["run_dir"]
    with pytest.raises(CheckpointError, match="has its own backbone, which it trained"):
        glot.load(run, backbone=tiny_bert.parent)
    assert glot.load(run).encode(["a dog"]).shape == (1, 16)
    assert {path.stat().st_mode & 0o777 for path in Path(run, "backbone").iterdir()} == {0o666 & ~current_umask()}
    weights = Path(run, "backbone/model.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 0x40
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"backbone/model\.safetensors: is not what the run wrote"):  # and not: another model
        load_encoder(Path(run))
