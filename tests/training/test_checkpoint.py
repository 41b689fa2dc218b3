"""Run folders and heads of the release."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from glot.data.labels import LabelFacts
from glot.errors import CheckpointError, ConfigError
from glot.nn.poolers import build_pooler
from glot.settings.config import GraphConfig, PoolerConfig, RunConfig
from glot.training.checkpoint import load_run
from glot.training.folders import create_run_folder
from glot.training.predictions import text_columns_of, write_predictions
from glot.training.released import infer_pooler, load_pooler, read_release_head, resolve_checkpoint
from glot.training.result_file import write_json
from glot.types import Examples, TokenBatch

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    "path", sorted(path for path in GOLDEN.glob("*.safetensors") if path.stem.startswith(("glot", "adapool"))), ids=lambda path: path.stem
)
def test_a_head_in_the_layout_of_the_release_loads_back(path, tmp_path):
    with safe_open(path, "pt") as file:
        spec, tensors = json.loads(file.metadata()["spec"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    torch.save(state, tmp_path / "head.pth")
    resolved, remarks = resolve_checkpoint(tmp_path / "head.pth", RunConfig().with_values(tau=spec.get("tau", 0.3)))
    pooler, config = load_pooler(tmp_path / "head.pth", resolved, spec["in_dim"]), resolved.pooler
    assert pooler.in_dim == spec["in_dim"] and "says nothing of its training" in remarks[0]
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
        resolve_checkpoint(tmp_path / "other", RunConfig())
    state = build_pooler(PoolerConfig("glot", gat_hidden_dim=8), GraphConfig(), 12).state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "extra")
    with pytest.raises(CheckpointError, match="does not fit a glot pooler"):
        load_pooler(tmp_path / "extra", resolve_checkpoint(tmp_path / "extra", RunConfig())[0], 12)
    with pytest.raises(CheckpointError, match=r"convs.0.\* of an unknown kind"):
        infer_pooler({"score_layer.0.weight": torch.zeros(2, 2), "convs.0.x": torch.zeros(1)})


def test_run_folders_never_collide(tmp_path):
    names = [create_run_folder(tmp_path / "runs", "a", overwrite=False).name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]
    (tmp_path / "runs/a/old").touch()
    assert create_run_folder(tmp_path / "runs", "a", overwrite=True).name == "a" and not (tmp_path / "runs/a/old").exists()
    (tmp_path / "runs/thesis").mkdir()
    (tmp_path / "runs/thesis/chapter").touch()
    with pytest.raises(ConfigError, match=r"--overwrite=1: .*thesis is no run folder"):
        create_run_folder(tmp_path / "runs", "thesis", overwrite=True)


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.json; give the folder of a finished run"):
        load_run(tmp_path)


def test_predictions_of_similarities(tmp_path):
    split = Examples("t", "validation", (["a, b"], ["c"]), np.array([2.5]), ("one", "row"))
    write_predictions(tmp_path / "p.csv", split, np.array([0.25]), LabelFacts("score", (), 0, 5))
    assert (tmp_path / "p.csv").read_text().splitlines() == ["row,label,prediction,one,text_row", '0,2.5,0.25,"a, b",c']
    assert not (tmp_path / "classes.csv").exists()
    names = ("score_7", "label_name", "label", "text_label")  # each stands for something else here, or is taken
    split = Examples("t", "validation", (["a"], ["b"], ["c"], ["d"]), np.array([2.5]), names)
    write_predictions(tmp_path / "p.csv", split, np.array([0.25]), LabelFacts("score", (), 0, 5))
    header = (tmp_path / "p.csv").read_text().splitlines()[0].split(",")
    assert text_columns_of(header) == header[3:] == ["text_score_7", "text_label_name", "text_label", "text_text_label"]


def test_predictions_of_classes_name_them_and_are_counted(tmp_path):
    split = Examples("t", "validation", (["a", "b", "c"],), np.array([0.0, 1.0, 1.0]), ("text",))
    write_predictions(tmp_path / "p.csv", split, np.array([[2.0, 1.0], [0.5, 0.25], [0.0, 1.0]]), LabelFacts("class", ("no", "yes")))
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "row,label,prediction,score_0,score_1,label_name,prediction_name,text" and lines[2] == "1,1.0,0,0.5,0.25,yes,no,b"
    assert (tmp_path / "confusion.csv").read_text().splitlines()[1:] == ["no,1,0", "yes,1,1"]
    assert (tmp_path / "classes.csv").read_text().splitlines()[1:] == ["no,0.5000,1.0000,0.6667,1", "yes,1.0000,0.5000,0.6667,2"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_config_round_trip():
    config = RunConfig().with_values(tau=0.7, data_dir="x", seeds="0..3")
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
