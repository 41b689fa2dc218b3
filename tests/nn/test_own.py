"""Poolers and graph rules of a user's own: trained, compared, loaded, exported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
from sentence_transformers import SentenceTransformer

import glot
from glot.cli import glot_main, main
from glot.errors import CheckpointError, ConfigError
from glot.integrations.export import export_run
from glot.nn.own import find_code

CODE = '''"""Mine. The line at the end must never run."""
import math
import somewhere_else_entirely
from glot import Pooler, TokenBatch, segment_softmax, segment_sum
from glot.errors import DataError
from torch import nn

SCALE = 2.0


def scaled(x):
    """Doubled."""
    if x.isnan().any():
        raise DataError("not a number")
    return SCALE * x


class Gated(Pooler):
    """Attention with a gate."""

    def __init__(self, in_dim: int, heads: int = 1) -> None:
        super().__init__(in_dim, in_dim * heads)
        self.heads = heads
        self.score, self.gate = nn.Linear(in_dim, 1), nn.Linear(in_dim, in_dim * heads)

    def readout(self, batch: TokenBatch):
        weights = segment_softmax(scaled(self.score(batch.tokens)).squeeze(1), batch)
        return segment_sum(batch.tokens.repeat(1, self.heads) * self.gate(batch.tokens).sigmoid(), batch, weights), weights

    def forward(self, batch: TokenBatch):
        return self.readout(batch)[0]


class Plain(nn.Module):
    def __init__(self, in_dim):
        super().__init__()
        self.out_dim, self.linear = 5, nn.Linear(in_dim, 5)

    def forward(self, batch):
        return self.linear(batch.tokens[batch.ptr[:-1]])


class Leaky(nn.Module):
    def __init__(self, in_dim):
        super().__init__()
        self.out_dim = in_dim

    def forward(self, batch):
        return batch.tokens.mean(0, keepdim=True).expand(len(batch), -1)


class Wide(Leaky):
    def forward(self, batch):
        return batch.tokens


class Silent(nn.Module):
    pass


def near(states):
    return (states @ states.T) > 0


def odd(states):
    return states @ states.T


raise SystemExit("this file is a script")
'''


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "code" / "mine.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_an_own_pooler_trains_loads_predicts_and_is_scored_alike(mine, tiny_flags, tmp_path, capsys):
    words = [*tiny_flags, f"--pooling_method={mine}:Gated", '--pooler_options={"heads": 2}', "--epochs=2"]
    result = run(capsys, words)
    folder = Path(result["run_dir"])
    assert folder.parent == tmp_path / "runs" and folder.name.startswith("cola-Gated-")
    mine.unlink()  # the run carries what it needs
    loaded = glot.load(folder)
    assert loaded.dim == 32 and loaded.predict(["the cat"])[0] in loaded.classes
    assert loaded.pooler.readout(loaded.backbone.encode(loaded.backbone.tokenise(["the red cat"])))[1].sum().item() == pytest.approx(1)


def test_the_fingerprint_follows_the_code_and_neither_comments_nor_the_path(mine, tiny_flags, capsys):
    words = [*tiny_flags, "--epochs=1"]
    first = run(capsys, [*words, f"--pooling_method={mine}:Gated"])["fingerprint"]
    moved = mine.with_name("moved.py")
    moved.write_text(
        "# a comment\n" + CODE.replace('"""Attention with a gate."""', '"""Another word."""').replace("class Silent", "class Loud")
    )
    assert run(capsys, [*words, f"--pooling_method={moved}:Gated"])["fingerprint"] == first
    moved.write_text(CODE.replace("SCALE = 2.0", "SCALE = 3.0"))  # only referred to
    assert run(capsys, [*words, f"--pooling_method={moved}:Gated"])["fingerprint"] != first
    assert run(capsys, [*words, f"--pooling_method={mine}:Gated", "--pooler_options=heads: 2"])["fingerprint"] != first


def test_a_package_offers_poolers_by_name_and_cannot_take_one_of_ours(tiny_flags, tmp_path, monkeypatch, capsys):
    before = run(capsys, [*tiny_flags, "--pooling_method=mean", "--epochs=1"])
    package = tmp_path / "site" / "offered.py"
    facts = package.with_name("offered-1.0.dist-info")
    facts.mkdir(parents=True)
    package.write_text(CODE.replace("import somewhere_else_entirely\n", "").partition("\nraise")[0])
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[glot.poolers]\ngated_twice = offered:Gated\nmean = offered:Gated\n")
    monkeypatch.syspath_prepend(package.parent)
    assert glot.load(run(capsys, [*tiny_flags, "--pooling_method=gated_twice", "--epochs=1"])["run_dir"]).predict(["the cat"])
    again = run(capsys, [*tiny_flags, "--pooling_method=mean", "--epochs=1"])
    assert again["fingerprint"] == before["fingerprint"] and again["best"] == before["best"]


def test_an_own_graph_rule(mine, tiny_flags, capsys):
    result = run(capsys, [*tiny_flags, "--pooling_method=glot", "--gat_hidden_dim=8", f"--graph_adj={mine}:near", "--epochs=1"])
    assert glot.load(result["run_dir"]).predict(["the cat"])
    assert main([*tiny_flags, "--pooling_method=glot", f"--graph_adj={mine}:odd"]) == 2
    assert "odd: gives torch.float32 (5, 5) for 5 tokens, not bool (5, 5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Gatet", "mine.py defines no Gatet (did you mean 'Gated'?)"),
        ("Leaky", "makes a sentence's vector depend on the other sentences of its batch"),
        ("Wide", "gives (9, 16) for 3 sentences, not (3, 16)"),
        ("Silent", "cannot be made for d = 16 (TypeError: "),
        ("near", "must be a class of torch.nn.Module"),
        ("no-name", "must be file.py:Name or package.module:Name"),
    ],
)
def test_what_is_wrong_with_own_code_is_said_before_anything_slow(name, complaint, mine, tiny_flags, tmp_path, capsys):
    assert main([*tiny_flags, f"--pooling_method={mine}:{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line and not (tmp_path / "hidden").exists()


ODD = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, in_dim):
        super().__init__()
        self.out_dim, self.linear = in_dim, nn.Linear(in_dim, in_dim)
    def first(self, batch):
        return self.linear(batch.tokens[batch.ptr[:-1]])

class Changing(Base):
    def forward(self, batch):
        batch.tokens.add_(1)
        return self.first(batch)

class Random(Base):
    def forward(self, batch):
        return self.first(batch) * torch.rand(1)

class Forgetful(Base):
    def __init__(self, in_dim):
        super().__init__(in_dim)
        self.scale = torch.rand(in_dim) + 1
    def forward(self, batch):
        return self.first(batch) * self.scale

class Lazy(Base):
    def __init__(self, in_dim):
        super().__init__(in_dim)
        self.linear = nn.LazyLinear(in_dim)
    def forward(self, batch):
        return self.first(batch)

class Whole(Base):
    def forward(self, batch):
        return self.first(batch).long()

class Infinite(Base):
    def forward(self, batch):
        return self.first(batch) / 0
"""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Changing", "changes the token states that it is given"),
        ("Random", "gives other vectors for the same batch in evaluation mode"),
        ("Forgetful", "keeps numbers that a checkpoint does not hold"),
        ("Lazy", "has lazy layers, whose widths are not known"),
        ("Whole", "gives torch.int64, not floating-point numbers"),
        ("Infinite", "gives numbers that are not finite"),
    ],
)
def test_a_pooler_whose_numbers_could_not_be_trusted_is_refused(name, complaint, mine, tiny_flags, capsys):
    mine.write_text(ODD)
    assert main([*tiny_flags, f"--pooling_method={mine}:{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_a_class_at_hand_that_differs_from_its_source_is_refused(tiny_bert, mirror, tmp_path, monkeypatch):
    (tmp_path / "twin_of_mine.py").write_text(
        CODE.replace('raise SystemExit("this file is a script")', "globals()['SCALE'] = 5.0").replace("import somewhere_else_entirely", "")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from twin_of_mine import Gated

    with pytest.raises(ConfigError, match=r"twin_of_mine\.py:Gated: gives other vectors than its source, as far as it could be cut out"):
        glot.train(pooler=Gated, task="stsb", model_name_or_path=tiny_bert, data_dir=mirror, output_dir=tmp_path, max_length=16)


def test_a_run_is_done_again_though_its_poolers_file_is_gone(mine, tiny_flags, capsys):
    folder = run(capsys, [*tiny_flags, f"--pooling_method={mine}:Gated", "--epochs=1"])["run_dir"]
    mine.unlink()
    done = processes.run(["-m", "glot", "rerun", folder, "--check"])
    assert done.returncode == 0, done.stderr


def test_files_beside_cannot_be_carried(mine, tiny_flags, capsys):
    (mine.parent / "helpers.py").write_text("def f(x):\n    return x\n")
    mine.write_text(
        "from helpers import f\nfrom torch import nn\n\n\nclass A(nn.Module):\n    def forward(self, x):\n        return f(x)\n"
    )
    assert main([*tiny_flags, f"--pooling_method={mine}:A"]) == 2
    assert "line 1 of mine.py imports helpers, a file beside it" in capsys.readouterr().err
    assert main([*tiny_flags, f"--pooling_method={mine.parent / 'mien.py'}:A"]) == 2
    assert "no such file (did you mean 'mine.py'?)" in capsys.readouterr().err
    mine.write_text("class A(:\n")
    assert main([*tiny_flags, f"--pooling_method={mine}:A"]) == 2
    assert "is not Python (SyntaxError" in capsys.readouterr().err


def test_code_of_a_run_that_was_never_trained_with_here_needs_a_word(mine, tiny_flags, tmp_path, capsys, monkeypatch):
    result = run(capsys, [*tiny_flags, f"--pooling_method={mine}:Plain", "--epochs=1"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another user"))
    with pytest.raises(CheckpointError, match=r"holds code of its own .* --trust_pooler=1"):
        glot.load(result["run_dir"])
    assert glot.load(result["run_dir"], trust_pooler=True).dim == 5
    assert glot_main(["export", result["run_dir"], f"--to={tmp_path / 'ex'}"]) == 2
    assert glot_main(["export", result["run_dir"], f"--to={tmp_path / 'ex'}", "--trust_pooler=1"]) == 0


def test_a_rule_that_a_run_does_not_take_is_no_code_of_it(mine, tiny_flags, capsys):
    result = run(capsys, [*tiny_flags, "--pooling_method=mean", f"--graph_adj={mine}:near", "--epochs=1"])
    assert glot.load(result["run_dir"]).predict(["the cat"])  # the flag is without effect there


def test_a_run_folder_cannot_name_code_that_it_does_not_carry(mine, tiny_flags, tmp_path, capsys, monkeypatch):
    """A downloaded folder with a pool.py in it: a command that reads the folder must not run that file."""
    folder = Path(run(capsys, [*tiny_flags, f"--pooling_method={mine}:Plain", "--epochs=1", "--run_name=run"])["run_dir"])
    (folder / "pool.py").write_text("raise SystemExit('ran')\n" + CODE.partition("\nraise")[0])
    package = tmp_path / "site/offered.py"
    package.parent.mkdir()
    package.write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.chdir(folder)
    saved = json.loads(Path("config.json").read_text())
    del saved["resolved"]["sources"]
    for name, complaint in (
        ("pool.py:Plain", "names code that it does not carry"),
        ("offered:Plain", "installed package .* --trust_pooler=1"),
    ):
        for flag in ("pooling_method", "graph_adj"):
            flags = {**saved["flags"], "pooling_method": "glot", flag: name}
            Path("config.json").write_text(json.dumps({**saved, "flags": flags}))
            for path in (Path("result.json"), Path("weights.json")):
                path.unlink(missing_ok=True)
            with pytest.raises(CheckpointError, match=complaint):
                glot.load(folder)
    assert glot_main(["predict", ".", "--input=x.csv", "--output=y.csv"]) == 2
    assert glot_main(["explain", ".", "--text=a"]) == 2
    assert "ran" not in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_carries_the_source_and_loads_without_this_package(mine, tiny_flags, tmp_path, capsys):
    result = run(capsys, [*tiny_flags, f"--pooling_method={mine}:Gated", "--pooler_options={heads: 2}", "--epochs=1"])
    rule = run(capsys, [*tiny_flags, "--pooling_method=glot", "--gat_hidden_dim=8", f"--graph_adj={mine}:near", "--epochs=1"])
    mine.write_text("from glot import *\n" + CODE.replace("from glot import Pooler, TokenBatch, segment_softmax, segment_sum\n", ""))
    starred = run(capsys, [*tiny_flags, f"--pooling_method={mine}:Gated", "--epochs=1"])
    mine.unlink()
    for place, one in (("a", result), ("b", rule), ("c", starred)):
        export_run(Path(one["run_dir"]), tmp_path / place)
        expected = glot.load(one["run_dir"]).encode(["the red cat", "a dog"])
        whole = SentenceTransformer(str(tmp_path / place), trust_remote_code=True)
        np.testing.assert_allclose(whole.encode(["the red cat", "a dog"]), expected, atol=1e-5)
        code = f"""
import sys
sys.modules["glot"] = None
from sentence_transformers import SentenceTransformer
print(SentenceTransformer({str(tmp_path / place)!r}, trust_remote_code=True).encode(["the red cat", "a dog"]).tolist())
"""
        alone = processes.run(["-c", code])
        np.testing.assert_allclose(json.loads(alone.stdout), expected, atol=1e-5)


def test_what_an_export_cannot_carry_is_named(mine, tiny_flags, tmp_path, capsys):
    mine.write_text(
        CODE.replace("import math\n", "from glot.study.statistics import holm\n").replace("return SCALE * x", "holm([0.5]); return x")
    )
    result = run(capsys, [*tiny_flags, f"--pooling_method={mine}:Gated", "--epochs=1"])
    with pytest.raises(ConfigError, match="imports holm from glot, which an export cannot carry"):
        export_run(Path(result["run_dir"]), tmp_path / "ex")


def test_seeds_and_a_class_from_python(mine, tiny_bert, mirror, tmp_path):
    (tmp_path / "pool_of_mine.py").write_text(CODE.replace('raise SystemExit("this file is a script")', ""))
    (tmp_path / "somewhere_else_entirely.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    try:
        from pool_of_mine import Plain

        flags = {"model_name_or_path": tiny_bert, "data_dir": mirror, "output_dir": tmp_path / "runs", "store_dir": tmp_path / "hidden"}
        trained = glot.train(task="cola", pooler=Plain, seeds=[0, 1], max_length=16, epochs=1, verbose=False, **flags)
        assert len(trained.runs) == 2 and trained.encode(["a"]).shape == (1, 5)

        class Inside(Plain):
            pass

        with pytest.raises(ConfigError, match="must stand at the top of a file"):
            glot.train(task="cola", pooler=Inside, **flags)
    finally:
        sys.path.remove(str(tmp_path))


def test_a_package_is_named_by_its_module():
    code = find_code("glot.nn.poolers.fixed:MeanPooler", "pooling_method")
    assert code.module == "glot.nn.poolers.fixed" and code.attribute == "MeanPooler"


def test_the_template_holds_its_own_test_and_trains(tmp_path, tiny_flags, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert glot_main(["new", "pooler", "my_pooler.py"]) == 0
    done = subprocess.run([sys.executable, "my_pooler.py"], capture_output=True, text=True, check=True)
    assert "MyPooler: padding, batch-mates and gradient are as they must be" in done.stdout
    capsys.readouterr()
    result = run(capsys, [*tiny_flags, "--pooling_method=my_pooler.py:MyPooler", "--pooler_options={hidden: 8}", "--epochs=1"])
    assert result["pooler"] == "my_pooler.py:MyPooler"
    assert glot_main(["new", "pooler", "my_pooler.py"]) == 2
    assert "is there already" in capsys.readouterr().err
