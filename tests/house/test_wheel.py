"""The wheel, installed into an environment that sees the libraries of this one and nothing of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


def call(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})})


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `glot` command of a fresh environment with the wheel."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"  # a copy: what an earlier build left in the checkout must not get into the wheel
    shutil.copytree(ROOT / "glot", source / "glot", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", root, source, cwd=root)
    assert built.returncode == 0, built.stderr
    (wheel,) = root.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "glot/py.typed" in names and "glot/resources/pooler_template.txt" in names and not any("tests" in name for name in names)
    call(sys.executable, "-m", "venv", "--without-pip", root / "venv", cwd=root)
    python = root / "venv/bin/python"
    here = Path(sysconfig.get_path("purelib", vars={"base": str(root / "venv")}))
    (here / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files, the checkout's among them, do not count
    done = call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed", wheel, cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "venv/bin/glot"


@pytest.mark.slow
def test_the_wheel_trains_on_own_data_and_says_what_an_extra_brings(installed, tiny_bert, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"the cat {row} runs,{'yes' if row % 2 else 'no'}\n" for row in range(20)))
    words = ["--task=custom", "--train_file=a.csv", f"--model_name_or_path={tiny_bert}", "--max_length=16", "--pooling_method=glot"]
    done = call(installed, "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "epoch 2/2  loss" in done.stderr
    assert result["labels"]["classes"] == ["no", "yes"] and (tmp_path / result["run_dir"] / "model.safetensors").is_file()
    place = call(installed.with_name("python"), "-c", "import glot; print(glot.__file__)", cwd=tmp_path).stdout
    assert str(installed.parents[1]) in place  # the wheel's, not the checkout's
    assert call(installed, "--version", cwd=tmp_path).stdout.startswith("glot ")
    hidden = tmp_path / "hide" / "sitecustomize.py"
    hidden.parent.mkdir()
    hidden.write_text(
        "import importlib.util as u\nold = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in ('torch_geometric', 'mteb', 'wandb', 'peft') else old(name, *rest)\n"
    )
    bare = {"PYTHONPATH": str(hidden.parent)}
    for own, extra in (
        (
            ["--pooling_method=glot", "--gnn_type=gcn"],
            "--gnn_type=gcn: needs torch_geometric, which is not installed; pip install 'glot-toolkit[pyg]'",
        ),
        (["--finetune_backbone=lora"], "--finetune_backbone=lora: needs peft, which is not installed; pip install 'glot-toolkit[lora]'"),
        (["--report_to=wandb"], "--report_to=wandb: needs wandb, which is not installed; pip install 'glot-toolkit[wandb]'"),
    ):
        refused = call(installed, "run", *words, *own, cwd=tmp_path, env=bare)
        assert refused.returncode == 2 and extra in refused.stderr, refused.stderr
    refused = call(installed, "run", "--task=mteb", f"--model_name_or_path={tiny_bert}", cwd=tmp_path, env=bare)
    assert refused.returncode == 2 and "--task=mteb: needs mteb" in refused.stderr
