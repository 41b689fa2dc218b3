"""`wandb sweep FILE` and `wandb agent PATH` by the real client, with our sweep files and main.py; the server is on the loopback."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT
from wandb_server import ENTITY, SWEEP, SweepServer

from glot.study.files import read_study

pytestmark = pytest.mark.slow


@pytest.fixture
def server():
    with SweepServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def wandb(server, tmp_path):
    """`wandb(...)` runs the client in the checkout, apart from the user's account and settings, and returns what was printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = {name: tmp_path / name for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    for folder in folders.values():
        folder.mkdir()
    (folders["WANDB_DIR"] / "wandb").mkdir()  # without it the client's own log goes to the machine's temporary folder
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the sweep files say `python`
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_MODE": "offline",  # for the runs, which inherit it; the two commands ask the server all the same
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_AGENT_MAX_INITIAL_FAILURES": "1",  # the first run that fails ends the agent before it asks for another command
    }

    def run(*words: object, seconds: float) -> str:
        log = tmp_path / f"{words[0]}.log"  # a file: a pipe would be kept open by whatever outlives the client
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "wandb", *map(str, words)],
                cwd=ROOT,
                env={**kept, **{name: str(folder) for name, folder in folders.items()}, **own},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + seconds
        while process.poll() is None and not server.refused and time.monotonic() < deadline:
            time.sleep(0.05)
        code = process.poll()
        kill_tree(process)
        said = log.read_text()
        assert code == 0 and not server.refused, (
            f"{said}\nexit code {code} (None: stopped here); the server has no answer to {server.refused}"
        )
        return said

    return run


def kill_tree(process: subprocess.Popen) -> None:
    """End a client that still runs, with its service and its runs."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended in the meantime
                one.kill()
        process.wait()


def test_the_agent_runs_the_grid_that_was_registered(server, wandb, tmp_path, tiny_bert, mirror):
    fixed = {
        "task": "cola",
        "model_name_or_path": str(tiny_bert),
        "data_dir": str(mirror),
        "output_dir": str(tmp_path / "runs"),
        "store_dir": str(tmp_path / "hidden"),
        "max_length": 16,
        "epochs": 1,
        "verbose": 0,
    }
    poolers = ["mean", "adapool"]
    parameters = {"pooling_method": {"values": poolers}} | {name: {"value": value} for name, value in fixed.items()}
    sweep = yaml.safe_load((ROOT / "mteb_eval_config.yaml").read_text()) | {"parameters": parameters}
    assert sweep["program"] == "main.py" and sweep["command"] == ["${env}", "python", "${program}", "${args}"]
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))

    said = wandb("sweep", path, "--project", "GLOT", seconds=120)
    assert server.config == sweep and server.project == "GLOT"
    name = re.search(r"Run sweep agent with: wandb agent (\S+)", said)[1]
    assert name == f"{ENTITY}/GLOT/{SWEEP}"

    said = wandb("agent", name, seconds=400)
    assert server.dismissed, said  # it asked again after the last run: none had failed
    assert list(server.handed_out.values()) == [fixed | {"pooling_method": pooler} for pooler in poolers]
    used = {}
    for folder in (tmp_path / "runs").iterdir():
        (record,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        config = json.loads((folder / "config.json").read_text())["flags"]
        used[record.stem.removeprefix("run-")] = {flag: config[flag] for flag in [*fixed, "pooling_method"]}
        assert json.loads((folder / "result.json").read_text())["pooler"] == config["pooling_method"]
    assert used == server.handed_out


@pytest.mark.parametrize("name", ["mteb_eval_config.yaml", "configs/mteb7.yaml"])
def test_a_shipped_file_is_registered_with_the_runs_of_glot_sweep(server, wandb, name):
    wandb("sweep", ROOT / name, "--project", "GLOT", seconds=120)
    assert server.config == yaml.safe_load((ROOT / name).read_text())
    handed_out = [{flag: str(value) for flag, value in flags.items()} for flags in server.waiting]
    cells = read_study(ROOT / name).cells
    assert len(handed_out) == len(cells) and all(cell.flags in handed_out for cell in cells)
