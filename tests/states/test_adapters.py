"""LoRA on any architecture: it moves the states, is saved as peft reads it, and is added to the weights when a run is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from zoo import KINDS, make_model

import glot
from glot.cli import main
from glot.errors import CheckpointError, ConfigError
from glot.states.backbone import Backbone, LoraOptions, find_backbone, with_adapter
from glot.states.backbone.adapters import save_adapter, train_weights

CPU = torch.device("cpu")
TEXTS = ["the red cat", "a big dog runs and the small cat sleeps not on the green dog in every word7 of the red cat", "dog"]
READ = [name for name, kind in KINDS.items() if not kind.refused]
UNLIKE = ("albert", "deberta", "fnet", "gpt2", "mamba", "mobilebert", "modernbert", "qwen3-moe", "recurrent-gemma", "t5-encoder", "xlnet")
"""Architectures whose linear layers are named or used in a way of their own."""
assert set(UNLIKE) <= set(READ)


def open_at(folder: Path, layer: str = "-1", adapter: Path | None = None) -> Backbone:
    source = find_backbone(str(folder))
    source = source if adapter is None else with_adapter(source, adapter)
    return Backbone(source, 16, "float32", source.resolve_layer(layer), CPU)


ADAPTED = {}


def unfreeze(backbone: Backbone, lora: LoraOptions | None = None) -> list[torch.nn.Parameter]:
    """The weights that are trained."""
    ADAPTED[id(backbone)] = train_weights(backbone, lora)
    return [weight for weight in backbone.model.parameters() if weight.requires_grad]


def adapted_of(backbone: Backbone):
    return ADAPTED[id(backbone)]


@torch.no_grad()
def states_of(backbone: Backbone) -> torch.Tensor:
    backbone.model.eval()
    return backbone.encode(backbone.tokenise(TEXTS)).tokens


def train_steps(backbone: Backbone, weights: list[torch.nn.Parameter]) -> None:
    """Two steps after which every weight of the adapter has had a gradient; its B begins at zero, so its A waits for the second."""
    optimizer = torch.optim.SGD(weights, lr=0.1)
    backbone.model.eval()
    for _ in range(2):
        states = backbone.encode(backbone.tokenise(TEXTS)).tokens
        optimizer.zero_grad()
        (states * torch.cos(torch.arange(states.numel()).view_as(states))).mean().mul(10).backward()
        optimizer.step()


@pytest.mark.parametrize("name", UNLIKE)
def test_every_weight_of_an_adapter_takes_part_and_merged_states_are_those_of_training(name, tmp_path):
    folder = make_model(name, tmp_path / name)
    backbone, plain = open_at(folder), states_of(open_at(folder))
    weights = unfreeze(backbone, LoraOptions(4, 8.0, "auto", 0))
    torch.testing.assert_close(states_of(backbone), plain, rtol=1e-5, atol=1e-5)
    train_steps(backbone, weights)
    assert weights and all(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
    assert len(weights) < len(list(backbone.model.parameters()))
    save_adapter(adapted_of(backbone), tmp_path / "adapter")
    trained, scale = states_of(backbone), float(plain.abs().max())
    assert float((trained - plain).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(states_of(open_at(folder, adapter=tmp_path / "adapter")), trained, rtol=1e-4, atol=1e-5 * max(1, scale))


@pytest.fixture
def bert(tmp_path) -> Path:
    return make_model("bert", tmp_path / "bert")


def targets(backbone: Backbone) -> set[str]:
    return {
        name.partition(".lora_")[0].partition("layer.")[2] for name, weight in backbone.model.named_parameters() if weight.requires_grad
    }


def test_matrices_without_a_layer_are_named(tmp_path, caplog):
    train_weights(open_at(make_model("xlnet", tmp_path / "a")), LoraOptions(2, 4.0, "auto", 0))
    assert "layer.#.rel_attn.k" in caplog.text and "are weights without a linear layer, so they get no adapter" in caplog.text
    caplog.clear()
    train_weights(open_at(make_model("bert", tmp_path / "b")), LoraOptions(2, 4.0, "auto", 0))
    assert "no adapter" not in caplog.text


def test_targets_are_those_that_the_states_depend_on_or_that_are_named(bert):
    backbone = open_at(bert, "1")
    unfreeze(backbone, LoraOptions(2, 4.0, "auto", 0))
    assert {name[0] for name in targets(backbone)} == {"0"} and any("attention" in name for name in targets(backbone))
    backbone = open_at(bert)
    unfreeze(backbone, LoraOptions(2, 4.0, "query, output.dense", 0))
    found = {name.partition(".")[2] for name in targets(backbone)}
    assert found == {"attention.self.query", "attention.output.dense", "output.dense"}
    with pytest.raises(
        ConfigError, match=r"--lora_targets=query,q_proj: .* has no linear layer 'q_proj'.* it has dense, key, query, value"
    ):
        unfreeze(open_at(bert), LoraOptions(2, 4.0, "query,q_proj", 0))


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone(bert):
    torch.manual_seed(3)
    expected, found = torch.rand(1), []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        found.append(torch.cat([weight.detach().flatten() for weight in unfreeze(open_at(bert), LoraOptions(2, 4.0, "auto", seed))]))
        assert torch.equal(torch.rand(1), expected)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.fixture
def flags(tiny_flags) -> list[str]:
    kept = [flag for flag in tiny_flags if "store_dir" not in flag]
    return [*kept, "--pooling_method=mean", "--finetune_backbone=lora", "--backbone_lr=1e-2", "--run_name=run", "--save_every=1"]


def test_a_run_saves_an_adapter_that_peft_and_automodel_read(flags, tiny_bert, tmp_path, capsys):
    assert main([*flags, "--lora_r=3"]) == 0
    result = json.loads(capsys.readouterr().out)
    run = tmp_path / "runs/run"
    adapter = load_file(run / "backbone/adapter_model.safetensors")
    head = load_file(run / "model.safetensors")
    assert result["trainable_params"] == sum(weight.numel() for weight in (*adapter.values(), *head.values()))
    encoder, text = glot.load(run), "the red cat runs"
    ids = torch.tensor([encoder.backbone.tokenise([text])[0]])
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), run / "backbone").eval()
    auto = AutoModel.from_pretrained(run / "backbone").eval()
    with torch.no_grad():
        vectors = [model(ids).last_hidden_state[0].mean(0).numpy() for model in (peft, auto)]
    for vector in vectors:
        np.testing.assert_allclose(encoder.encode(text, normalize=False), vector, atol=1e-5)
    plain = AutoModel.from_pretrained(tiny_bert).eval()(ids).last_hidden_state[0].mean(0).detach().numpy()
    assert np.abs(vectors[0] - plain).max() > 1e-3
    rows = (run / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + result["rows"]["validation"]


def test_a_trained_adapter_is_checked_when_it_is_loaded(flags, tmp_path, capsys):
    assert main(flags) == 0
    run = tmp_path / "runs/run"
    (run / "result.json").unlink()  # which holds the checksums of the files
    file = run / "backbone/adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight.fill_(float("nan")) for name, weight in weights.items()}, file)
    with pytest.raises(CheckpointError, match="holds numbers that are not finite"):
        glot.load(run)
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is no adapter for"):
        glot.load(run)
    assert "Traceback" not in capsys.readouterr().err


def test_a_configuration_of_before_names_full_fine_tuning_by_true(flags, tmp_path, capsys):
    words = ["--finetune_backbone=true" if "finetune" in flag else flag for flag in flags]
    assert main(words) == 0
    run = tmp_path / "runs/run"
    saved = json.loads((run / "config.json").read_text())
    assert saved["flags"]["finetune_backbone"] == "full"
    vectors = glot.load(run).encode(["the red cat"])
    saved["flags"]["finetune_backbone"] = True
    (run / "config.json").write_text(json.dumps(saved))
    (run / "result.json").unlink()
    np.testing.assert_array_equal(glot.load(run).encode(["the red cat"]), vectors)
    assert capsys.readouterr().err == ""


def test_full_fine_tuning_frees_what_the_states_depend_on(bert):
    for layer, least in (("-1", 0.5), ("1", 0.2)):
        backbone = open_at(bert, layer)
        weights = unfreeze(backbone)
        train_steps(backbone, weights)
        free = {name for name, weight in backbone.model.named_parameters() if weight.requires_grad}
        assert all(weight.grad is not None for weight in weights) and not any(name.startswith("pooler.") for name in free)
        assert any("embeddings" in name for name in free) and len(weights) >= least * len(list(backbone.model.parameters()))
    assert not any("layer.1." in name for name in free)  # of two blocks, the states of layer 1 depend on the first


def test_states_that_depend_on_no_linear_layer_take_no_adapter(bert):
    with pytest.raises(ConfigError, match=r"--finetune_backbone=lora: the states that are read of .* depend on no linear layer; use full"):
        unfreeze(open_at(bert, "0"), LoraOptions(2, 4.0, "auto", 0))


def test_the_base_is_named_by_its_whole_path_and_nothing_warns(flags, tiny_bert, tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tiny_bert.parent)
    words = [f"--model_name_or_path=./{tiny_bert.name}" if "model_name" in flag else flag for flag in flags]
    assert main(words) == 0
    capsys.readouterr()
    saved = json.loads((tmp_path / "runs/run/backbone/adapter_config.json").read_text())
    assert Path(saved["base_model_name_or_path"]) == tiny_bert
    monkeypatch.chdir(tmp_path)
    recwarn.clear()
    glot.load(tmp_path / "runs/run")
    assert not [warning for warning in recwarn if "peft" in str(warning.filename) or issubclass(warning.category, FutureWarning)]
