"""Models and data sets of the hub: found, pinned, cached, refused. A real server on the loopback, real processes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import processes
import pytest
from conftest import single_rows, write_rows
from loopback_hub import COMMITS, Hub, serve
from safetensors.torch import load_file, save_file

from glot.cli import glot_main

pytestmark = pytest.mark.slow  # a process of its own per test: where the hub is, is read when the library is imported


@pytest.fixture
def hub(tmp_path, tiny_bert):
    """A hub with acme/tiny (two revisions), solo, acme/gated, acme/cut, acme/lora, and GLUE's cola."""
    root = tmp_path / "hub"
    for name in ("acme/tiny", "acme/tiny@v1", "solo", "acme/gated", "acme/cut"):
        shutil.copytree(tiny_bert, root / "models" / name)
    other = root / "models/acme/tiny@v1/model.safetensors"
    save_file({name: 2 * value for name, value in load_file(other).items()}, other, {"format": "pt"})
    (root / "models/acme/cut/model.safetensors").rename(root / "models/acme/cut/pytorch_model.bin")
    (root / "models/acme/lora").mkdir()
    (root / "models/acme/lora/adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "acme/tiny"}')
    shutil.copytree(root / "models/acme/lora", root / "models/acme/both")  # an adapter beside a configuration, as some are pushed
    shutil.copy(tiny_bert / "config.json", root / "models/acme/both")
    for split in ("train", "validation"):
        write_rows(root / "datasets/nyu-mll/glue/cola" / f"{split}.jsonl", single_rows(12))
    files = "".join(f"\n  - split: {split}\n    path: cola/{split}.jsonl" for split in ("train", "validation"))
    (root / "datasets/nyu-mll/glue/README.md").write_text(f"---\nconfigs:\n- config_name: cola\n  data_files:{files}\n---\n")
    hub = Hub(root, gated={"acme/gated"}, cut={"pytorch_model.bin"})
    server = serve(hub)
    yield hub
    server.shutdown()


def knowing(hub: Hub, folder: Path) -> dict[str, str]:
    """An environment in which the loopback hub is the hub."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GLOT_", "HUGGING"))}
    return clean | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf")}


@pytest.fixture
def call(hub, tmp_path, mirror):
    """`call([words, ...], **environment)` -> one answer per command, all in one new process that knows only the loopback hub."""

    def run(*commands: list[str], watch: bool = False, cwd: Path = tmp_path, **environment: str) -> list[dict]:
        env = knowing(hub, tmp_path) | environment
        return processes.answers(list(commands), *(["watch"] if watch else []), env=env, cwd=cwd)

    return run


def command(model: str, *flags: str, data: Path | None = None) -> list[str]:
    words = ["run", "--task=cola", f"--model_name_or_path={model}", "--epochs=1", "--max_length=16", "--verbose=0", "--pooling_method=mean"]
    return [*words, *([] if data is None else [f"--data_dir={data}"]), *flags]


def test_models_of_the_hub_train_load_and_stay_at_their_commit(call, hub, mirror, tmp_path):
    names = ("acme/tiny", "acme/tiny@v1", "solo")
    *answers, flagged, doubly = call(
        *(command(name, f"--run_name=run{index}", data=mirror) for index, name in enumerate(names)),
        command("acme/tiny", "--revision=v1", "--run_name=flag", data=mirror),
        command("acme/tiny@v1", "--revision=main", data=mirror),
    )
    assert [answer["code"] for answer in answers] == [0, 0, 0], answers
    results = [json.loads(answer["out"]) for answer in answers]
    identities = [result["backbone"]["identity"] for result in results]
    assert identities == [f"acme/tiny@{COMMITS['main']}", f"acme/tiny@{COMMITS['v1']}", f"solo@{COMMITS['main']}"]
    assert len({result["fingerprint"] for result in results}) == 3
    stored = json.loads((Path(tmp_path / "runs/run1/config.json")).read_text())["resolved"]
    assert stored["backbone"] == identities[1] and stored["folder"] is None
    assert json.loads(flagged["out"])["fingerprint"] != results[0]["fingerprint"]
    assert json.loads(flagged["out"])["store"]["path"] == results[1]["store"]["path"]  # one commit, however it is written
    assert doubly["code"] == 2 and "--revision=main: the name asks for another one (v1)" in doubly["err"]
    # the main branch moves on: a run still loads what it was trained on, also without a network
    shutil.rmtree(hub.root / "models/acme/tiny")
    exported = call(["export", "runs/run0", "--to", "whole"], ["export", "runs/run1", "--to", "head", "--head_only"], HF_HUB_OFFLINE="1")
    assert [answer["code"] for answer in exported] == [0, 0], exported
    facts = json.loads((tmp_path / "head/backbone.json").read_text())
    assert facts["name"] == "acme/tiny@v1" and facts["identity"] == identities[1]


def test_offline_what_is_cached_runs_and_no_socket_is_opened(call, mirror):
    first = call(command("acme/tiny", "--run_name=a", data=mirror), command("acme/tiny", "--run_name=b"))
    assert [answer["code"] for answer in first] == [0, 0], first
    again = call(
        command("acme/tiny", "--override_precompute=1", "--run_name=c", data=mirror),
        command("acme/tiny", "--run_name=d"),  # rows of the hub, too
        command("acme/never-seen", data=mirror),
        command("acme/tiny@v1", data=mirror),
        watch=True,
        HF_HUB_OFFLINE="1",
    )
    assert [answer["code"] for answer in again] == [0, 0, 2, 2], again
    assert again[-1]["watched"] == []
    assert json.loads(first[0]["out"])["best"] == json.loads(again[0]["out"])["best"]
    assert json.loads(first[1]["out"])["best"] == json.loads(again[1]["out"])["best"]
    for answer, name in ((again[2], "acme/never-seen"), (again[3], "acme/tiny@v1")):
        assert answer["err"].splitlines() == [
            f"error: --model_name_or_path={name}: it is not in the hub's cache, and HF_HUB_OFFLINE=1 forbids to fetch it; "
            "unset that, or name a local folder"
        ]


def test_what_the_hub_refuses_is_one_line_with_the_way_out(call, mirror):
    cases = {
        "acme/gated": "it is gated; accept its conditions on its page of the hub, then log in with `hf auth login`, or set HF_TOKEN",
        "acme/missing": "the hub has nothing of that name, or it is private; check the name, or log in with `hf auth login`",
        "acme/tiny@v9": "it has no revision v9; name a branch, a tag or a commit that it has",
        "acme/lora": "is an adapter (LORA) for acme/tiny, not a model; merge it into its base",
        "acme/both": "is an adapter (LORA) for acme/tiny, not a model; merge it into its base",
        "acme/cut": "the transfer was cut; run the same command again, it goes on where it stopped",
    }
    answers = call(*(command(name, data=mirror) for name in cases))
    for answer, (name, words) in zip(answers, cases.items(), strict=True):
        lines = answer["err"].splitlines()
        assert answer["code"] == 2 and len(lines) == 1, answer
        assert lines[0].startswith(f"error: --model_name_or_path={name}: ") and words in lines[0], lines


def test_a_hub_that_cannot_be_reached_is_one_line(call, mirror):
    (known,) = call(command("acme/tiny"))
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    new, rows, cached = call(
        command("acme/solo", data=mirror),
        ["run", "--task=imdb"],
        command("acme/tiny", "--override_precompute=1", "--run_name=again"),
        **gone,
    )
    for answer in (new, rows):  # one line, so nothing was tried again and again
        (line,) = answer["err"].splitlines()
        assert answer["code"] == 2 and "http://127.0.0.1:9 cannot be reached; check the network, or name a local folder" in line
    assert cached["code"] == 0 and json.loads(cached["out"])["best"] == json.loads(known["out"])["best"], cached


def test_data_sets_of_the_hub(call, hub, tiny_bert, mirror, tmp_path):
    local = tmp_path / "mirror/nyu-mll/glue/cola"
    shutil.copytree(hub.root / "datasets/nyu-mll/glue/cola", local)
    answer, same = call(command(str(tiny_bert), "--run_name=a"), command(str(tiny_bert), "--run_name=b", data=tmp_path / "mirror"))
    assert answer["code"] == same["code"] == 0, (answer, same)
    assert json.loads(same["out"])["fingerprint"] == json.loads(answer["out"])["fingerprint"]  # the rows count, not their place
    np.testing.assert_equal(json.loads(same["out"])["best"], json.loads(answer["out"])["best"])
    hub.gated.add("nyu-mll/glue")
    shutil.rmtree(tmp_path / "hf")
    refused = call(command(str(tiny_bert)), ["run", "--task=imdb", f"--model_name_or_path={tiny_bert}", "--max_length=16"])
    for one, words in zip(refused, ("hub:nyu-mll/glue:cola (train", "hub:stanfordnlp/imdb:plain_text ("), strict=True):
        assert one["code"] == 2 and len(one["err"].splitlines()) == 1, one
        assert words.split("(")[0] in one["err"] and "--data_dir or GLOT_DATA_DIR" in one["err"], one
    assert "gated" in refused[0]["err"] and "nothing of that name" in refused[1]["err"]


def test_an_export_is_pushed_and_loaded_from_the_hub(hub, mirror, tiny_bert, tmp_path):
    trained = [*command(str(tiny_bert), "--run_name=run", data=mirror), f"--output_dir={tmp_path / 'runs'}"]
    assert glot_main([*trained, f"--store_dir={tmp_path / 'hidden'}"]) == 0
    assert glot_main(["export", str(tmp_path / "runs/run"), f"--to={tmp_path / 'model'}"]) == 0
    code = f"""
from sentence_transformers import SentenceTransformer
whole = SentenceTransformer({str(tmp_path / "model")!r}, trust_remote_code=True)
whole.push_to_hub("acme/pushed", token="hf_not_a_secret")
print(whole.encode(["the red cat"]).tolist())
"""
    load = """
import sys
sys.modules["glot"] = None
from sentence_transformers import SentenceTransformer
print(SentenceTransformer("acme/pushed", trust_remote_code=True).encode(["the red cat"]).tolist())
"""
    vectors = []
    for script in (code, load):
        done = processes.run(["-c", script], env=knowing(hub, tmp_path) | {"HF_HUB_DISABLE_XET": "1"}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        vectors.append(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    pushed = {str(path.relative_to(hub.root / "models/acme/pushed")) for path in (hub.root / "models/acme/pushed").rglob("*")}
    assert {"glot_model.py", "modules.json", "README.md", "config_sentence_transformers.json"} <= pushed


def test_own_rows_from_a_table_of_the_hub(call, hub, tiny_bert, tmp_path):
    words = [
        "run",
        "--task=custom",
        f"--model_name_or_path={tiny_bert}",
        "--epochs=1",
        "--max_length=16",
        "--verbose=0",
        "--pooling_method=mean",
    ]
    words += ["--train_file=hub:nyu-mll/glue:cola", "--text_columns=sentence"]
    whole, held, wrong, missing = call(
        [*words, "--eval_split=validation"],
        words,
        [*words, "--text_columns=sentenc"],
        [*words, "--train_file=hub:acme/nothing"],
    )
    assert whole["code"] == held["code"] == 0, (whole, held)
    result = json.loads(whole["out"])
    assert result["rows"] == {"train": 12, "evaluation": 12} and result["labels"]["classes"] == ["0", "1"]
    assert json.loads(held["out"])["rows"] == {"train": 10, "evaluation": 2}
    assert wrong["code"] == 2 and "no column 'sentenc' (--text_columns) (did you mean 'sentence'?)" in wrong["err"]
    assert missing["code"] == 2 and "hub:acme/nothing (train) cannot be had: " in missing["err"] and len(missing["err"].splitlines()) == 1
