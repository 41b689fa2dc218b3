"""Runs as sentence-transformers models: the same vectors, with or without this package."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator

import glot
import glot.integrations.export as export_module
from glot.cli import glot_main, main
from glot.errors import ConfigError
from glot.integrations.bundle import ROOT_MODULE, bundle, defined_names, modules_needed
from glot.integrations.export import requirements
from glot.nn.poolers import POOLERS as POOLER_TABLE
from glot.nn.poolers import build_pooler
from glot.settings.config import GraphConfig, PoolerConfig

pytestmark = pytest.mark.slow  # sentence-transformers takes seconds to import, and a second to load a model
TEXTS = ["red cat", "the big dog runs", "a", "not the small blue cat sleeps", "green"]
POOLERS = {
    "glot": ["--pooling_method=glot", "--gat_hidden_dim=8", "--tau=0.4"],
    "random graph": ["--pooling_method=glot", "--gat_hidden_dim=8", "--graph_adj=random", "--tau=0.4", "--data_seed=3"],
    "gcn max": ["--pooling_method=glot", "--gat_hidden_dim=8", "--gnn_type=gcn", "--jk_mode=max", "--tau=0.4"],
    "adapool": ["--pooling_method=adapool", "--scorer_hidden=8"],
    "pma": ["--pooling_method=pma"],
    "mean": ["--pooling_method=mean"],
    "last": ["--pooling_method=cls", "--decoder_cls_last_token=1"],
}


@pytest.fixture(scope="module")
def train(tmp_path_factory, mirror):
    """Train on tiny stsb and return the run folder: train(model, *flags)."""

    def run(model: Path, *flags: str) -> Path:
        root = tmp_path_factory.mktemp("runs")
        words = ["--task=stsb", "--epochs=1", "--lr=1e-2", "--max_length=7", "--verbose=0", f"--output_dir={root}", "--run_name=run"]
        words += [f"--model_name_or_path={model}", f"--data_dir={mirror}"]
        words += [] if any("finetune" in flag for flag in flags) else [f"--store_dir={root / 'hidden'}"]
        assert main([*words, *flags]) == 0
        return root / "run"

    return run


def export(run: Path, *flags: str) -> Path:
    folder = run.parent / f"export{'-'.join(flags)}"
    assert glot_main(["export", str(run), "--to", str(folder), *flags]) == 0
    return folder


PAIRS = [("tiny_llama", pooler) for pooler in POOLERS] + [("tiny_bert", pooler) for pooler in ("glot", "adapool", "mean", "last")]


@pytest.mark.parametrize(("backbone", "pooler"), PAIRS)
def test_an_export_gives_our_vectors(request, train, backbone, pooler):
    run = train(request.getfixturevalue(backbone), *POOLERS[pooler])
    expected = glot.load(run).encode(TEXTS)
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu")
    assert model.max_seq_length == 7 and model.get_embedding_dimension() == expected.shape[1]
    assert {parameter.dtype for parameter in model.parameters()} <= {torch.float32}
    for side in ("right", "left") if backbone == "tiny_llama" else ("right",):  # BERT counts positions from the left, padding included
        model.tokenizer.padding_side = side
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=3), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS, normalize_embeddings=True), expected, atol=1e-5)
    model.tokenizer.padding_side = "right"
    for empty in (["", "red cat"], [" "], ["red cat", "  ", ""]):  # alone, and among others
        np.testing.assert_allclose(model.encode(empty), glot.load(run).encode(empty), atol=1e-5)
    features = model.encode(TEXTS, output_value=None)
    assert all(("readout_weights" in item) == (pooler in ("glot", "random graph", "gcn max", "adapool")) for item in features)
    for item in features:
        if "readout_weights" in item:
            real = item["attention_mask"].bool()
            assert float(item["readout_weights"].sum()) == pytest.approx(1, abs=1e-5) and not item["readout_weights"][~real].any()


def test_head_only_names_its_backbone_and_refuses_another(train, tiny_bert, tmp_path, capsys):
    import shutil

    backbone = tmp_path / "backbone"
    shutil.copytree(tiny_bert, backbone)
    run = train(backbone, *POOLERS["glot"])
    capsys.readouterr()
    folder = export(run, "--head_only", "--max_length=5")
    captured = capsys.readouterr()
    assert "backbone by name" in captured.out and f".{folder.name}." not in captured.err  # the folder before it is renamed
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert sum(sizes.values()) < 200_000 and not [name for name in sizes if name.endswith(".safetensors")]
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert model.max_seq_length == 5
    np.testing.assert_allclose(model.encode(TEXTS), glot.load(run, max_length=5).encode(TEXTS), atol=1e-5)
    model.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    (backbone / "config.json").write_text((backbone / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="was trained on backbone"):
        SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert glot_main(["export", str(run), "--to", str(tmp_path / "new")]) == 2
    assert "was trained on another" in capsys.readouterr().err


@pytest.mark.parametrize("layer", ["0", "1"])
def test_other_layers_are_exported_as_such(train, tiny_llama, layer):
    run = train(tiny_llama, *POOLERS["adapool"], f"--hidden_layer={layer}")
    expected = glot.load(run).encode(TEXTS)
    for flags in ([], ["--head_only"]):
        model = SentenceTransformer(str(export(run, *flags)), trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_embedded_backbones_are_exported_as_they_were_trained(train, name, tmp_path):
    """SmolLM2's tokenizer has a chat template, which no text of ours may pass."""
    texts = [
        "The sailors rode the breeze.",
        "Go.",
        "The more people you say that right after would buy tickets, the fewer had to reserve.",
        "",
    ]
    run = train(name, *POOLERS["mean"], "--max_length=32")
    encoder = glot.load(run)
    expected = encoder.encode(texts, batch_size=1)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    for flags in (["--head_only"], []):
        model = SentenceTransformer(str(export(run, *flags)), trust_remote_code=True, device="cpu")
        for size in (1, 4):
            np.testing.assert_allclose(model.encode(texts, batch_size=size), expected, atol=1e-5)
    model.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["1", "lora"])
def test_a_trained_backbone_is_exported_with_its_head(kind, train, tiny_bert, capsys):
    run = train(tiny_bert, *POOLERS["mean"], f"--finetune_backbone={kind}", "--backbone_lr=1e-2")
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), glot.load(run).encode(TEXTS), atol=1e-5)
    plain = train(tiny_bert, *POOLERS["mean"])
    assert np.abs(glot.load(plain).encode(TEXTS) - glot.load(run).encode(TEXTS)).max() > 1e-3
    assert glot_main(["export", str(run), "--to", str(run.parent / "head"), "--head_only"]) == 2
    assert "has trained its backbone too" in capsys.readouterr().err


def test_prompts_of_a_loaded_model(train, tiny_bert):
    run = train(tiny_bert, *POOLERS["mean"])
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu")
    with_prompt = model.encode(TEXTS[:2], prompt="big green ")
    np.testing.assert_allclose(with_prompt, model.encode([f"big green {text}" for text in TEXTS[:2]]), atol=1e-6)
    model[1].include_prompt = False
    assert np.abs(model.encode(TEXTS[:2], prompt="big green ") - with_prompt).max() > 1e-3


def test_a_prompt_is_left_out_where_the_export_says_so(train, tiny_llama):
    run = train(tiny_llama, *POOLERS["mean"])
    model = SentenceTransformer(str(export(run, "--exclude_prompt")), trust_remote_code=True, device="cpu")
    text, prompt = "the red cat", "big green "
    tokens = model.encode(f"{prompt}{text}", output_value="token_embeddings")
    expected = torch.nn.functional.normalize(tokens[2:].mean(0), dim=0)  # a decoder without special tokens: the prompt has two
    np.testing.assert_allclose(model.encode(text, prompt=prompt), expected, atol=1e-5)
    assert "left out" in (Path(run.parent / "export--exclude_prompt") / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooler", ["glot", "adapool"])
def test_half_precision_pools_in_float32(train, tiny_bert, pooler, dtype):
    run = train(tiny_bert, *POOLERS[pooler])
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu", model_kwargs={"dtype": dtype})
    assert next(model[0].parameters()).dtype == dtype
    name = str(dtype).removeprefix("torch.")
    np.testing.assert_allclose(
        model.encode(TEXTS, batch_size=1), glot.load(run, backbone_dtype=name).encode(TEXTS, batch_size=1), atol=1e-5
    )


@pytest.mark.parametrize("step", ["_make_independent", "_check_export"])
def test_an_export_that_ends_before_its_last_step_leaves_nothing(step, train, tiny_bert, tmp_path, monkeypatch, capsys):
    run = train(tiny_bert, *POOLERS["mean"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"glot.integrations.export.{step}", full)
    assert glot_main(["export", str(run), f"--to={tmp_path / 'ex'}"]) == 2
    assert "ex: cannot be written (No space left on device); make room" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_that_gives_other_vectors_is_not_made(train, tiny_bert, tmp_path, monkeypatch, capsys):
    run = train(tiny_bert, *POOLERS["adapool"])

    def damage(folder, *_):
        (path,) = folder.glob("1_*/*.safetensors")
        save_file({name: tensor + 1 for name, tensor in load_file(path).items() if tensor.ndim} | load_scalars(path), path)

    real = export_module._make_independent
    monkeypatch.setattr(export_module, "_make_independent", lambda *given: (real(*given), damage(*given)))
    assert glot_main(["export", str(run), f"--to={tmp_path / 'ex'}"]) == 2
    assert "the export gives other vectors than the run" in capsys.readouterr().err and not list(tmp_path.iterdir())


def load_scalars(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if not tensor.ndim}


def test_a_run_in_half_precision_is_exported_as_such(train, tiny_bert):
    run = train(tiny_bert, *POOLERS["glot"], "--backbone_dtype=bfloat16")
    expected = glot.load(run).encode(TEXTS, batch_size=1)
    for flags in ([], ["--head_only"]):
        model = SentenceTransformer(str(export(run, *flags)), trust_remote_code=True, device="cpu")
        assert next(model[0].parameters()).dtype == torch.bfloat16
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=1), expected, atol=1e-5)


def test_a_run_with_autocast_is_exported_as_such(train, tiny_bert):
    run = train(tiny_bert, *POOLERS["glot"], "--backbone_dtype=autocast")
    folder = export(run)
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    own, plain = (glot.load(run, backbone_dtype=dtype).encode(TEXTS, batch_size=1) for dtype in ("autocast", "float32"))
    np.testing.assert_allclose(model.encode(TEXTS, batch_size=1), own, atol=1e-5)
    assert 1e-5 < np.abs(own - plain).max() < 3e-2
    assert "autocast" in (Path(folder) / "README.md").read_text()
    half = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").half()
    vectors = half.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(vectors, plain, atol=1e-2)
    half.save(str(run.parent / "half"))
    again = SentenceTransformer(str(run.parent / "half"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS, batch_size=1), vectors, atol=1e-5)


def test_several_processes_encode(train, tiny_bert):
    run = train(tiny_bert, *POOLERS["glot"])
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS, device=["cpu", "cpu"], chunk_size=2), glot.load(run).encode(TEXTS), atol=1e-5)


def test_the_joined_source_names_nothing_twice_and_needs_no_package_of_ours():
    tree = ast.parse(bundle())
    named = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    named += Counter(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    named += Counter(node.target.id for node in tree.body if isinstance(node, ast.AnnAssign))
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    named += Counter({alias.asname or alias.name for node in imported for alias in node.names})
    assert [name for name, count in named.items() if count > 1] == []
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in modules if name.split(".")[0] in ("glot", "torch_geometric", "fcntl", "pwd", "resource")}


def test_the_joined_source_holds_what_it_can_reach_and_what_is_asked_for():
    held, asked, everything = (defined_names(bundle(frozenset(names))) for names in ((), ("StoreError",), ("*",)))
    assert {"GlotPooling", "BackboneModule", "GlotPooler", "TokenBatch"} <= held <= everything and "StoreError" not in held
    assert asked - held == {"StoreError"} and {"StoreError", "Batch"} <= everything


def test_the_joined_source_has_every_module_it_needs_and_no_undefined_name(tmp_path):
    needed = modules_needed(ROOT_MODULE)
    poolers = {type(build_pooler(PoolerConfig(name, num_layers=1), GraphConfig(), 8)).__module__ for name in POOLER_TABLE}
    assert poolers <= set(needed) and needed[-1] == ROOT_MODULE and "glot.settings.config" not in needed
    (tmp_path / "joined.py").write_text(bundle())
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", str(tmp_path)], capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


@pytest.mark.parametrize("line", ["import glot.types", "from glot.types import Batch as B", "def f():\n    from glot.types import Batch"])
def test_an_import_that_cannot_be_joined_is_an_error(line, monkeypatch, tmp_path):
    import glot.integrations.bundle as module

    (tmp_path / "own.py").write_text(f"{line}\n")
    whole = module._file
    monkeypatch.setattr(module, "_file", lambda name: tmp_path / "own.py" if name == "glot.own" else whole(name))
    with pytest.raises(ConfigError, match=r"glot\.own, line \d: an export cannot carry"):
        modules_needed("glot.own")


def test_an_export_loads_without_this_package_and_without_torch_geometric(train, tiny_bert, tmp_path):
    run = train(tiny_bert, *POOLERS["glot"])
    np.save(tmp_path / "expected.npy", glot.load(run).encode(TEXTS))
    program = f"""
import sys
sys.modules.update(glot=None, torch_geometric=None)   # importing either fails
import numpy
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(export(run))!r}, trust_remote_code=True, device="cpu")
numpy.testing.assert_allclose(model.encode({TEXTS!r}), numpy.load({str(tmp_path / "expected.npy")!r}), atol=1e-5)
"""
    done = processes.run(["-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_requirements_name_torch_geometric_only_where_its_layers_are(train, tiny_bert):
    from glot.settings.config import RunConfig

    def needs(**flags) -> bool:
        return "torch-geometric" in requirements(RunConfig().with_values(**flags), {})

    assert not needs(pooling_method="glot") and not needs(pooling_method="adapool") and not needs(pooling_method="mean")
    assert needs(pooling_method="mlp") and needs(pooling_method="glot", jk_mode="lstm")
    assert all(needs(pooling_method="glot", gnn_type=name) for name in ("gcn", "gin", "gine"))
    settings = json.loads((export(train(tiny_bert, *POOLERS["mean"])) / "config_sentence_transformers.json").read_text())
    assert settings["requirements"] == {"sentence-transformers": ">=6.0"}


def test_the_librarys_evaluators_run_on_an_export(train, tiny_bert):
    run = train(tiny_bert, *POOLERS["glot"])
    model = SentenceTransformer(str(export(run)), trust_remote_code=True, device="cpu")
    vectors = glot.load(run).encode(TEXTS)
    cosines = (vectors[:4] * vectors[1:]).sum(1)
    similarity = EmbeddingSimilarityEvaluator(TEXTS[:4], TEXTS[1:], cosines.tolist())(model)
    assert similarity["pearson_cosine"] == pytest.approx(1, abs=1e-4)
    queries, corpus = {str(row): text for row, text in enumerate(TEXTS)}, {f"d{row}": text for row, text in enumerate(TEXTS)}
    found = InformationRetrievalEvaluator(queries, corpus, {str(row): {f"d{row}"} for row in range(5)})(model)
    assert found["cosine_mrr@10"] == 1.0


def test_what_an_export_cannot_do_is_refused(train, tiny_bert, tmp_path):
    folder = str(export(train(tiny_bert, *POOLERS["mean"])))
    for options in ({"backend": "onnx"}, {"model_kwargs": {"dtype": torch.float64}}):
        with pytest.raises(ValueError, match="this model is read by torch in float32, float16, bfloat16"):
            SentenceTransformer(folder, trust_remote_code=True, device="cpu", **options)
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    with pytest.raises(Exception, match="puts 2 tokens around a text; must be at least 3"):  # the export's own ConfigError
        model.max_seq_length = 2  # no text would be cut


def test_its_modules_work_inside_a_router(train, tiny_bert, tmp_path):
    model = SentenceTransformer(str(export(train(tiny_bert, *POOLERS["mean"]))), trust_remote_code=True, device="cpu")
    routed = SentenceTransformer(modules=[Router.for_query_document([model[0]], [model[0]]), *list(model)[1:]])
    routed.save(str(tmp_path / "routed"))
    again = SentenceTransformer(str(tmp_path / "routed"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_the_card_says_how_the_weights_came_about(train, tiny_bert):
    flags = {
        "fitted": (["--pooling_method=mean", "--head=probe"], "- a head fitted by scikit-learn (probe), seed 42"),
        "both": (
            ["--pooling_method=adapool", "--head=svm", "--optimizer=adamw", "--epochs=3", "--early_stop=2", "--selection=heldout"],
            "- at most 3 epochs, early stop after 2, batches of 32, AdamW at 0.01, then a head fitted by scikit-learn (svm), seed 42",
        ),
    }
    for words, line in flags.values():
        text = (export(train(tiny_bert, "--task=mrpc", *words)) / "README.md").read_text()
        assert line in text and "- states: hidden layer 2" in text and "a pooler over the frozen token states of" in text
    both = (export(train(tiny_bert, *POOLERS["mean"], "--finetune_backbone=lora")) / "README.md").read_text()
    assert "which was trained too" in both and "frozen" not in both


def test_mistakes(train, tiny_bert, tmp_path, capsys):
    run = train(tiny_bert, *POOLERS["mean"])
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    for words, complaint in {
        ("export",): "required: run, --to",
        ("export", str(run), "--to", str(tmp_path / "used")): "is there already; choose a new folder",
        ("export", str(run), "--to", str(tmp_path / "used/file/new")): "used/file is not a writable folder",
        ("export", str(tiny_bert), "--to", str(tmp_path / "new")): "is no configuration of a run of this toolkit",
        ("export", str(tmp_path / "none"), "--to", str(tmp_path / "new")): "no config.json; give the folder of a finished run",
        ("export", str(run), "--to", str(tmp_path / "new"), "--max_length=0"): "--max_length=0: must be at least 1",
        ("export", str(run), "--to", str(tmp_path / "new"), "--max_length=65"): "reads at most 64 tokens",
    }.items():
        assert glot_main(list(words)) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    text = (export(run) / "README.md").read_text()
    assert "24 rows; texts cut to 7 tokens" in text and "Trained for a classification task" not in text and "spearman" in text
