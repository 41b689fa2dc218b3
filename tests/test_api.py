"""The public surface: names, `glot.train`, runs, stores and studies as values."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import glot
from glot.cli import main
from glot.errors import CheckpointError, ConfigError, DataError, StoreError

SURFACE = {
    *("train", "load", "predict", "encode", "Run", "TokenBatch", "TokenGraph", "Pooler", "open_store", "read_study", "__version__"),
    *("AdaPooler", "ClsPooler", "GlotPooler", "LatentPooler", "MaxPooler", "MeanPooler", "MlpPooler", "PmaPooler", "WeightedMeanPooler"),
    *("segment_max", "segment_mean", "segment_softmax", "segment_sum"),
}


def test_the_public_surface_is_lazy_and_nothing_else():
    assert set(dir(glot)) == SURFACE == set(glot.__all__)
    for name in SURFACE:
        assert getattr(glot, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = glot.trian
    code = "import sys, glot; print(sorted(name for name in ('torch', 'numpy', 'yaml') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.fixture
def flags(tiny_bert, mirror, tmp_path) -> dict:
    where = {"output_dir": tmp_path / "runs", "store_dir": tmp_path / "hidden", "data_dir": mirror, "model_name_or_path": tiny_bert}
    return {**where, "max_length": 16, "verbose": False}


def test_train_is_the_command_line(flags, tiny_flags, tmp_path, capsys):
    run = glot.train(task="cola", pooler="glot", tau=0.2, gat_hidden_dim=8, **flags)
    assert run.runs == [run] and run.folder == Path(run.result["run_dir"])
    words = [word for word in tiny_flags if not word.startswith("--output_dir")]
    assert main([*words, "--pooling_method=glot", "--tau=0.2", "--gat_hidden_dim=8", f"--output_dir={tmp_path / 'cli'}"]) == 0
    (other,) = (tmp_path / "cli").iterdir()
    assert (other / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()
    assert run.classes == ("unacceptable", "acceptable") and run.predict("the red cat") in run.classes
    assert run.predict_proba(["a", "b"]).shape == (2, 2) and run.encode(["a", "b"]).shape == (2, 16 + 2 * 8)
    assert run.similarity(run.encode(["a"]), run.encode(["a"]))[0, 0] == pytest.approx(1)


def test_several_seeds_and_an_iterable(flags):
    run = glot.train(task="cola", pooler="mean", seeds=range(3), epochs=1, **flags)
    assert len(run.runs) == 3 and run.summary["accuracy"]["n"] == 3
    assert run.metrics == run.runs[0].metrics and run.predict(["the cat"]) == run.runs[0].predict(["the cat"])
    values = [one.metrics["accuracy"] for one in run.runs]
    assert run.summary["accuracy"]["mean"] == pytest.approx(np.mean(values))


def test_mistakes_are_those_of_the_command_line(flags, tmp_path):
    with pytest.raises(ConfigError, match=r"--tua: no such flag \(did you mean 'tau'\?\)"):
        glot.train(task="cola", tua=0.5, **flags)
    with pytest.raises(ConfigError, match="--lr=-1"):
        glot.train(task="cola", lr=-1, **flags)
    with pytest.raises(ConfigError, match=r"--train_file=nowhere\.csv: no such file"):
        glot.train(train_file="nowhere.csv", **{name: value for name, value in flags.items() if name != "data_dir"})
    with pytest.raises(StoreError, match="there is no complete store"):
        glot.open_store(tmp_path)
    with pytest.raises(DataError, match=r"no study\.json"):
        glot.read_study(tmp_path)


def test_calls_that_cannot_mean_one_thing_are_refused(flags, tmp_path):
    for name in ("dry_run", "estimate", "print_config"):
        with pytest.raises(ConfigError, match=f"{name}: trains nothing"):
            glot.train(task="cola", **{name: True}, **flags)
    for name, kind in (("seeds", "a text"), ("epochs", "a whole number"), ("lr", "a number")):
        with pytest.raises(ConfigError, match=f"{name}=True: must be {kind}; it is no switch"):
            glot.train(task="cola", **{name: True}, **flags)
    with pytest.raises(ConfigError, match="pooler and pooling_method are the same"):
        glot.train(task="cola", pooler="mean", pooling_method="max", **flags)
    with pytest.raises(ConfigError, match="pooler_options: TypeError"):
        glot.train(task="cola", pooler_options={"a": object()}, **flags)
    run = glot.train(task="cola", pooler=glot.MeanPooler, epochs=np.int64(1), lr=torch.tensor(0.01), print_config=False, **flags)
    assert run.result["pooler"] == "mean"
    with pytest.raises(ConfigError, match="has its own pooler"):
        glot.encode(["a"], run.folder, pooler="max")
    with pytest.raises(ConfigError, match=r"has its own backbone \(minilm was named too\)"):
        glot.encode(["a"], run.folder, model="minilm")
    with pytest.raises(ConfigError, match="metrics: takes a value or a list of them, not set"):
        glot.train(task="custom", metrics={"accuracy", "auroc"}, **flags)
    with pytest.raises(ConfigError, match=r"train_file: 'a,b\.csv' holds a comma"):
        glot.train(train_file=["a,b.csv", "c.csv"])
    for wrong in ("3", None, 1.5, 0, True):
        with pytest.raises(ConfigError, match=r"batch_size=.*: must be a whole number of at least 1"):
            run.predict(["a"], batch_size=wrong)
        with pytest.raises(ConfigError, match=r"max_length=.*: must be a whole number" if wrong is not None else "prompt=3"):
            glot.load(run.folder, max_length=wrong).encode(["a"], prompt=3)
    np.testing.assert_array_equal(run.encode(["a"], batch_size=np.int64(4), devices="cpu"), run.encode(["a"]))
    with pytest.raises(ConfigError, match="train_file: takes the name of a file, not a DataFrame; write the table to one"):
        glot.train(train_file=pd.DataFrame({"text": ["a"], "label": [1]}))
    for call in (glot.load, glot.open_store, glot.read_study, lambda it: glot.encode(["a"], it), lambda it: glot.predict(it, ["a"])):
        with pytest.raises(ConfigError, match=r": takes a path, not int"):
            call(5)
    with pytest.raises(ConfigError, match="model_name_or_path: takes a text, not Linear"):
        glot.encode(["a"], model=torch.nn.Linear(2, 2))
    for wrong in ({"normalize": "no"}, {"prompt": "x", "prompt_name": "query"}):
        with pytest.raises(ConfigError, match=f"{list(wrong)[-1]}='"):
            run.encode(["a"], **wrong)
    with pytest.raises(ConfigError, match="trust_pooler='no': must be True or False"):
        glot.load(run.folder, trust_pooler="no")
    with pytest.raises(ConfigError, match="similarity: takes two arrays of vectors of one width"):
        run.similarity(np.ones((1, 2)), np.ones((1, 3)))
    with pytest.raises(ConfigError, match=r"--learning_rate: no such flag \(did you mean 'lr'\?\)"):
        glot.train(task="cola", learning_rate=1e-3, **flags)
    with pytest.raises(CheckpointError, match="is a file of a run; give its folder"):
        glot.load(run.folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"give one of the runs in it, such as {run.folder}"):
        glot.load(run.folder.parent)


def test_vectors_of_random_weights_come_with_a_warning(tiny_bert, caplog):
    assert glot.encode(["a"], pooler="mean", model=str(tiny_bert)).shape == (1, 16) and not caplog.records
    glot.encode(["a"], pooler="glot", model=str(tiny_bert))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "its weights are random" in record.getMessage()


def test_any_iterable_of_texts_is_taken_and_what_has_no_order_is_not(flags):
    run = glot.train(task="mrpc", pooler="mean", epochs=1, **flags)
    pairs = [("the cat", "a cat"), ("the dog", "not")]
    expected = run.predict(pairs)
    assert run.predict(np.array(pairs)) == run.predict(iter(pairs)) == run.predict([list(pair) for pair in pairs]) == expected
    vectors = run.encode(["a cat", "the dog"])
    np.testing.assert_array_equal(run.encode(text for text in ("a cat", "the dog")), vectors)
    assert run.similarity(vectors[0], vectors).shape == (1, 2)
    np.testing.assert_array_equal(glot.encode(["a cat", "the dog"], run), vectors)  # a run stands for its folder
    assert glot.predict(run, pairs) == glot.predict(run.folder, pairs) == expected
    for wrong in (pd.DataFrame({"a": ["x"], "b": ["y"]}), {"a": "x"}, None, 7, b"x", np.array("one text")):
        with pytest.raises(ConfigError, match="takes a text or a list of them"):
            run.predict(wrong)
        with pytest.raises(ConfigError, match="takes a text or a list of them"):
            run.encode(wrong)
    with pytest.raises(ConfigError, match="text 1 is 'None' "):
        run.encode(["a", None])
    with pytest.raises(TypeError):
        _ = glot.open_store(run.result["store"]["path"])[0:2]


def test_a_run_is_found_from_another_working_folder(flags, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    run = glot.train(task="cola", pooler="mean", epochs=1, **flags | {"output_dir": "here"})
    monkeypatch.chdir(tmp_path / "other")
    assert run.folder.is_absolute() and run.predict(["a cat"])[0] in run.classes


def test_own_rows_without_a_task_are_custom(flags, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"the cat {row} runs,{'yes' if row % 2 else 'no'}\n" for row in range(20)))
    own = {name: value for name, value in flags.items() if name != "data_dir"}
    run = glot.train(train_file=tmp_path / "a.csv", pooler="mean", epochs=1, metrics=["macro_f1", "accuracy"], **own)
    assert list(run.metrics) == ["macro_f1", "accuracy"] and run.classes == ("no", "yes")


def test_a_store_is_a_sequence_of_states(flags):
    run = glot.train(task="cola", pooler="mean", epochs=1, **flags)
    store = glot.open_store(run.result["store"]["path"])
    assert len(store) == run.result["store"]["sentences"] and sum(len(states) for states in store) == run.result["store"]["tokens"]
    assert store[3].shape[1] == 16 and torch.equal(store[-1], store[len(store) - 1])
    batch = store.gather(np.array([3, 0]))
    assert isinstance(batch, glot.TokenBatch) and torch.equal(batch.tokens[: batch.ptr[1]], store[3])


def test_a_study_is_a_table(tiny_bert, mirror, tmp_path):
    from glot.study.sweep import run_study

    path = tmp_path / "study.yaml"
    path.write_text(f"""
kind: study
name: s
runs_with: {{model_name_or_path: {tiny_bert}, data_dir: {mirror}, store_dir: {tmp_path / "hidden"}, max_length: 16, epochs: 1}}
grid: {{task: [cola, mrpc]}}
arms: {{mean: {{pooling_method: mean}}, max: {{pooling_method: max}}}}
seeds: [0, 1]
""")
    frame = glot.read_study(run_study(path, str(tmp_path / "runs")))
    assert len(frame) == 8 and {"arm", "task", "seed", "accuracy", "folder", "error"} <= set(frame.columns)
    assert frame.pivot_table("accuracy", "arm", "task").shape == (2, 2) and frame["error"].isna().all()
    other = tmp_path / "other.yaml"
    other.write_text("# moved\n" + path.read_text())
    run_study(other, str(tmp_path / "runs"))  # the same study
    run_study(path, str(tmp_path / "runs"))
    other.write_text(path.read_text().replace("mrpc", "rte"))
    with pytest.raises(ConfigError, match=r"other\.yaml: name: .*/runs/s holds the study of that name of .*/study\.yaml; choose"):
        run_study(other, str(tmp_path / "runs"))
    text = path.read_text()
    path.write_text("arms: [")  # broken since then
    with pytest.raises(ConfigError, match="holds the study of that name"):
        run_study(other, str(tmp_path / "runs"))
    path.write_text(text)
    (Path(frame["folder"][0]) / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"result\.json: is damaged"):
        glot.read_study(tmp_path / "runs/s")
