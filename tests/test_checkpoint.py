"""Run folders and heads of the release."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from glot.errors import CheckpointError, ConfigError
from glot.nn.poolers import build_pooler
from glot.settings.config import GraphConfig, PoolerConfig, RunConfig
from glot.training.checkpoint import create_run_folder, load_run, write_json, write_predictions
from glot.training.released import infer_pooler, load_release_head, read_release_head
from glot.types import TokenBatch

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "path", sorted(path for path in GOLDEN.glob("*.safetensors") if path.stem.startswith(("glot", "adapool"))), ids=lambda path: path.stem
)
def test_a_head_in_the_layout_of_the_release_loads_back(path, tmp_path):
    with safe_open(path, "pt") as file:
        spec, tensors = json.loads(file.metadata()["spec"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    torch.save(state, tmp_path / "head.pth")
    pooler, config = load_release_head(tmp_path / "head.pth", GraphConfig(tau=spec.get("tau", 0.3)))
    assert pooler.in_dim == spec["in_dim"]
    if spec["pooler"] == "glot" and spec["num_layers"]:
        assert (config.gnn_type, config.num_layers, config.gat_hidden_dim) == (spec["conv"], spec["num_layers"], spec["hidden_dim"])
        assert config.jk_mode == {"mean": "max"}.get(spec["jk_mode"], spec["jk_mode"])
    batch = TokenBatch.from_padded(tensors["hidden"], tensors["mask"])
    output = pooler.train()(batch)
    if spec.get("jk_mode") != "mean":  # max and mean leave the same weights; the release offers max alone
        torch.testing.assert_close(output, tensors["output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        PoolerConfig("mlp", gat_hidden_dim=8, num_layers=3),
        PoolerConfig("glot", gnn_type="gine", gat_hidden_dim=8),
        PoolerConfig("glot", jk_mode="lstm", gat_hidden_dim=8),
    ],
)
def test_sizes_of_our_own_poolers_are_read_off_too(config):
    inferred, in_dim = infer_pooler(build_pooler(config, GraphConfig(), 12).state_dict())
    assert in_dim == 12
    for name in ("pooling_method", "gat_hidden_dim", "num_layers", "gnn_type", "jk_mode"):
        assert getattr(inferred, name) == getattr(config, name)


def test_files_that_are_no_head(tmp_path):
    class Sneaky:
        def __reduce__(self):
            return (print, ("code ran",))

    cases = {"text": b"hello", "empty": b""}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_release_head(tmp_path / name)
    torch.save({"a": Sneaky()}, tmp_path / "sneaky")
    with pytest.raises(CheckpointError, match="refusing to run code"):
        read_release_head(tmp_path / "sneaky")
    torch.save([1], tmp_path / "list")
    with pytest.raises(CheckpointError, match="must be a state dict of tensors"):
        read_release_head(tmp_path / "list")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a GLOT or AdaPool head"):
        load_release_head(tmp_path / "other", GraphConfig())
    state = build_pooler(PoolerConfig("glot", gat_hidden_dim=8), GraphConfig(), 12).state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "extra")
    with pytest.raises(CheckpointError, match="does not fit a glot pooler"):
        load_release_head(tmp_path / "extra", GraphConfig())
    with pytest.raises(CheckpointError, match=r"convs.0.\* of an unknown kind"):
        infer_pooler({"score_layer.0.weight": torch.zeros(2, 2), "convs.0.x": torch.zeros(1)})


def test_run_folders_never_collide(tmp_path):
    names = [create_run_folder(tmp_path / "runs", "a", overwrite=False).name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]
    (tmp_path / "runs/a/old").touch()
    assert create_run_folder(tmp_path / "runs", "a", overwrite=True).name == "a" and not (tmp_path / "runs/a/old").exists()
    (tmp_path / "runs/thesis").mkdir()
    with pytest.raises(ConfigError, match=r"--overwrite=1: .*thesis is no run folder"):
        create_run_folder(tmp_path / "runs", "thesis", overwrite=True)


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.json; give the folder of a finished run"):
        load_run(tmp_path)


def test_predictions_of_similarities(tmp_path):
    write_predictions(tmp_path / "p.csv", np.array([2.5]), np.array([0.25]))
    assert (tmp_path / "p.csv").read_text().split() == ["row,label,prediction", "0,2.5,0.25"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_config_round_trip():
    config = RunConfig().with_values(tau=0.7, data_dir="x", seeds="0..3")
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
