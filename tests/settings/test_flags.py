"""The command line: what parses, what it means, and what is said about mistakes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glot.cli import glot_main, main
from glot.errors import ConfigError
from glot.settings.choices import CROSS_GRAPHS, GRAPHS
from glot.settings.commands import parse_encode, parse_export
from glot.settings.config import RunConfig
from glot.settings.effects import CONDITIONS
from glot.settings.flags import ABOUT, DEMO_FLAGS, STRESS_DEFAULTS, parse, to_yaml
from glot.settings.index import flag_facts
from glot.settings.seeds import parse_seeds
from glot.training.released import released_name

ROOT = Path(__file__).parents[2]
GLUE = (
    "--model_name_or_path='bert-base-uncased' --decoder_cls_last_token=0 --task=cola --max_length=128 --adaptive_length=0 --epochs=3 "
    "--batch_size=32 --eval_batch_size=64 --lr=2e-4 --weight_decay=0.0 --seed=42 --verbose=1 --pooling_method=glot --gnn_type=gat "
    "--scorer_hidden=128 --gat_hidden_dim=256 --num_layers=2 --jk_mode=cat --graph_adj=threshold --tau=0.8 --proj_dim=256 "
    "--precompute_hidden_states=1 --override_precompute=0 --finetune_backbone=0"
)
EMBEDDING = (
    '--model_name_or_path="mistralai/Mistral-7B-v0.1" --decoder_cls_last_token=1 --task=embedding --num_train_samples=full '
    "--max_length=128 --adaptive_length=0 --epochs=3 --batch_size=32 --eval_batch_size=64 --lr=2e-5 --weight_decay=0.0 --seed=42 "
    "--verbose=1 --pooling_method=glot --gnn_type=gat --scorer_hidden=128 --gat_hidden_dim=256 --num_layers=4 --jk_mode=cat "
    "--graph_adj=threshold --tau=0.3 --proj_dim=512 --precompute_hidden_states=1 --override_precompute=0 --finetune_backbone=0"
)
STRESS = (
    "--batch_size=32 --distractor_ratio=0.5 --epochs=3 --eval_batch_size=32 --gat_hidden_dim=64 --tau=0.6 --lr=0.0001 "
    "--model_name_or_path=mistralai/Mistral-7B-v0.1 --num_layers=4 --pooling_method=glot --scorer_hidden=256 --seed=0"
)
MTEB = (
    "--task=mteb --model_name_or_path=mistralai/Mistral-7B-v0.1 --mteb_task=SciFact --return_all_hidden_states=0 --temperature=0.1 "
    "--checkpoint_path=standard --pooling_method=glot --num_layers=4 --lr=2e-05 --weight_decay=1e-05"
)


def problems(*words: str, defaults=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(list(words), defaults=defaults)
    return caught.value.problems


def test_the_release_glue_and_imdb_lines():
    parsed = parse(shlex.split(GLUE))
    config = parsed.config
    assert (config.data.task, config.backbone.model_name_or_path, config.train.epochs, config.train.lr) == (
        "cola",
        "bert-base-uncased",
        3,
        2e-4,
    )
    assert (config.pooler.pooling_method, config.pooler.gat_hidden_dim, config.graph.tau) == ("glot", 256, 0.8)
    assert config.store.precompute_hidden_states and not config.backbone.is_trained
    assert parsed.inert == ("decoder_cls_last_token", "scorer_hidden", "proj_dim")
    imdb = parse([*shlex.split(GLUE), "--task=imdb", "--max_length=512"]).config
    assert (imdb.data.task, imdb.backbone.max_length) == ("imdb", 512)


def test_the_release_embedding_stress_and_sweep_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems(*shlex.split(EMBEDDING))[0].startswith("--train_file=./data/msmarco-triplets.jsonl: no such file")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/msmarco-triplets.jsonl").touch()
    config = parse(shlex.split(EMBEDDING)).config
    assert (config.data.num_train_samples, config.pooler.num_layers, config.contrastive.proj_dim, config.train.lr) == ("full", 4, 512, 2e-5)
    sweep = yaml.safe_load((ROOT / "mteb_eval_config.yaml").read_text())["parameters"]
    assert str(released_name(config)) == str(Path(sweep["checkpoint_path"]["value"]))  # what is trained is what the sweep looks for
    stress = parse(shlex.split(STRESS), defaults=STRESS_DEFAULTS).config
    assert (stress.data.task, stress.data.num_train_samples, stress.stress.distractor_ratio, stress.train.lr) == (
        "stress",
        "2000",
        0.5,
        1e-4,
    )
    assert (stress.determining()["num_eval_samples"], stress.backbone.max_length, stress.graph.tau, stress.train.epochs) == (
        500,
        128,
        0.6,
        3,
    )
    mteb = parse(shlex.split(MTEB))
    assert (mteb.config.data.task, mteb.config.train.weight_decay) == ("mteb", 1e-5)
    assert {"lr", "temperature"} <= set(mteb.inert)


def test_defaults_of_the_release():
    flat = RunConfig().to_dict()
    expected = {
        "task": "stsb", "num_train_samples": "subset", "checkpoint_path": "standard",
        "mteb_task": "SciFact", "save_dir": "./saved_models/", "max_length": 128, "adaptive_length": False, "epochs": 2, "batch_size": 32,
        "eval_batch_size": 64, "lr": 2e-4, "weight_decay": 0.0, "seed": 42, "verbose": True, "pooling_method": "max", "gnn_type": "gat",
        "scorer_hidden": 256, "gat_hidden_dim": 128, "num_layers": 2, "jk_mode": "cat", "graph_adj": "threshold", "tau": 0.3,
        "proj_dim": 256, "label_scale": "0_1", "override_precompute": False, "finetune_backbone": "0", "decoder_cls_last_token": False,
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected
    assert RunConfig().contrastive.pairs_file == "./data/msmarco-triplets.jsonl"


def test_both_spellings_and_booleans_of_a_sweep_agent():
    assert (
        parse(["--task", "rte", "--override_precompute=True", "--verbose", "False"]).config
        == parse(["--task=rte", "--override_precompute=1", "--verbose=0"]).config
    )


def test_yaml_layers_and_round_trip(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("lr: 2e-05\nepochs: 5\ntask: rte\n")
    second.write_text("epochs: 7\nverbose: false\ndata_dir:\n")
    config = parse([f"--config={first}", f"--config={second}", "--task=cola"]).config
    assert (config.train.lr, config.train.epochs, config.data.task, config.output.verbose, config.data.data_dir) == (
        2e-5,
        7,
        "cola",
        False,
        None,
    )
    third = tmp_path / "c.yaml"
    third.write_text(to_yaml(config))
    again = parse([f"--config={third}"])
    assert again.config == config and again.inert == ()
    first.write_text("label_scale: 0_1\nseed: null\n")
    assert parse([f"--config={first}"]).config == RunConfig()


def test_environment_is_the_weakest(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "s"))
    config = parse([]).config
    assert (config.data.data_dir, config.store.store_dir) == (str(tmp_path), str(tmp_path / "s"))
    assert parse([f"--store_dir={tmp_path / 't'}"]).config.store.store_dir == str(tmp_path / "t")


def test_yaml_mistakes_name_file_and_key(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("taus: 0.3\nepochs: [1, 2]\nlr: fast\n")
    found = problems(f"--config={file}")
    assert f"--config={file}: taus: no such flag (did you mean 'tau'?)" in found
    assert f"--config={file}: epochs: must be a single value" in found
    assert "--lr=fast: must be a number" in found
    file.write_text("- a\n")
    assert problems(f"--config={file}") == [f"--config={file}: must hold lines of flag: value"]
    file.write_text("a: [")
    assert "not YAML" in problems(f"--config={file}")[0]
    assert "cannot be read (No such file" in problems("--config=/no/such.yaml")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=colaa"], "--task=colaa: unknown (did you mean 'cola'?); allowed: cola, sst2"),
        (["--pooling_method=glott"], "--pooling_method=glott: unknown (did you mean 'glot'?); allowed: cls, adapool"),
        (["--gnn_type=gatt"], "--gnn_type=gatt: unknown (did you mean 'gat'?); allowed: gat, gcn, gin, gine"),
        (["--jk_mode=concat"], "--jk_mode=concat: unknown (did you mean 'cat'?); allowed: cat, lstm, max, mean"),
        (["--tau=1"], "--tau=1.0: must be at least -1 and below 1"),
        (["--tau=-1.01"], "--tau=-1.01: must be at least -1"),
        (["--num_layers=-1"], "--num_layers=-1: must be between 0 and 64"),
        (["--batch_size=0"], "--batch_size=0: must be between 1 and"),
        (["--gat_hidden_dim=-4"], "--gat_hidden_dim=-4: must be between 1 and"),
        (["--lr=nan"], "--lr=nan: must be between 0 and 1000"),
        (["--epochs=2.5"], "--epochs=2.5: must be a whole number"),
        (["--verbose=maybe"], "--verbose=maybe: must be 0 or 1"),
        (["--num_train_samples=some"], "--num_train_samples=some: must be subset, full or a number of rows above 0"),
        (["--pooling_method=glot", "--num_layers=0", "--jk_mode=max"], "--jk_mode=max: with --num_layers=0 there is nothing to join"),
        (["--pooling_method=mlp", "--num_layers=0"], "--num_layers=0: the mlp pooler needs at least one layer"),
        (["--data_dir=/no/such/folder"], "--data_dir=/no/such/folder: no such folder"),
        (["--model_name_or_path=./nowhere"], "--model_name_or_path=./nowhere: no model folder there"),
        (["--model_name_or_path=a b"], "--model_name_or_path=a b: must be minilm, smollm2, a local folder or a hub id"),
        (["--finetune_backbone=1", "--precompute_hidden_states=1"], "--precompute_hidden_states=1: stored states cannot train"),
        (["--finetune_backbone=1", "--backbone_dtype=float16"], "--backbone_dtype=float16: would round small updates away"),
        (["--data_dir="], "--data_dir=: is empty; give a value, or leave the flag out"),
        (["--store_dir", ""], "--store_dir=: is empty"),
        (["--output_dir=/etc/passwd/x"], "--output_dir=/etc/passwd/x: cannot be written (/etc/passwd is not a writable folder)"),
        (["--run_name=a/b"], "--run_name=a/b: must be a folder name"),
        (["--hidden_layer=top"], "--hidden_layer=top: must be an index"),
        (["--hidden_layer=0,,3"], "--hidden_layer=0,,3: must be an index"),
        (["--hidden_layer=every:0"], "--hidden_layer=every:0: must be an index"),
        (["--hidden_layer=0,mean4"], "--hidden_layer=0,mean4: must be an index"),
        (["--layer_mix=stack"], "--layer_mix: has no effect in this run, it needs several hidden layers"),
        (["--hidden_layer=all", "--layer_mix=sum"], "--layer_mix=sum: unknown; allowed: concat, scalar, stack"),
        (["--task=cola", "--pooling_method=crossglot"], "--pooling_method=crossglot: scores pairs of texts, and --task=cola has none"),
        (["--task=mteb", "--pooling_method=alignment"], "--pooling_method=alignment: scores pairs of texts, and it gives no"),
        (["--task=rte", "--pooling_method=crossglot", "--num_layers=0"], "--num_layers=0: the crossglot pooler needs at least one layer"),
        (["--task=rte", "--pooling_method=alignment", "--cross_adj=knn"], "--cross_adj: has no effect in this run, it needs --pooling"),
        (["--task=rte", "--pooling_method=alignment", "--pair_features=full"], "--pair_features: has no effect in this run"),
        (["--task=rte", "--pooling_method=crossglot", "--graph_adj=knn", "--knn_k=2"], "--knn_k: has no effect in this run"),
        (["--device=gpu"], "--device=gpu: must be auto, cpu"),
        (["--return_all_hidden_states=1"], "--return_all_hidden_states=1: must be 0; choose layers with --hidden_layer"),
        (["--seeds=0,99999999999999999999"], "--seeds=0,99999999999999999999: must be different numbers"),
        (["--seed=5000000000"], "--seed=5000000000: must be between 0 and"),
        (["--pooling_method=mean", "--graph_adj=random", "--data_seed=3"], "--data_seed: has no effect in this run"),
        (["--seeds=1,1"], "--seeds=1,1: must be different numbers"),
        (["--selection=heldout", "--heldout_fraction=1"], "--heldout_fraction=1.0: must be above 0 and below 1"),
        (["--learning_rate=1"], "--learning_rate: no such flag"),
        (["cola"], "cola: not a flag; flags are written --name=value"),
        (["--task"], "argument --task: expected one argument"),
        (["--knn_k=3"], "--knn_k: has no effect in this run, it needs --graph_adj=knn, or --cross_adj=knn; leave it out"),
        (["--distractor_ratio=0.5"], "--distractor_ratio: has no effect in this run, it needs --task=stress; leave it out"),
        (["--backbone_lr=1e-5"], "--backbone_lr: has no effect in this run, it needs --finetune_backbone=full or lora; leave it out"),
        (["--finetune_backbone=1", "--lora_r=4"], "--lora_r: has no effect in this run, it needs --finetune_backbone=lora; leave it out"),
        (["--finetune_backbone=lora", "--lora_targets=query,"], "--lora_targets=query,: must be auto, or names of linear layers"),
        (["--finetune_backbone=lora", "--lora_r=0"], "--lora_r=0: must be between 1 and"),
        (["--task=custom", "--task_name=a/../b"], "--task_name=a/../b: must be a folder name without slashes"),
        (["--finetune_backbone=2"], "--finetune_backbone=2: unknown; allowed: 0, full, lora"),
        (["--finetune_backbone=lora", "--backbone_dtype=bfloat16"], "--backbone_dtype=bfloat16: would round small updates away"),
        (["--finetune_backbone=lora", "--seeds=0,1", "--stack_seeds=1"], "--stack_seeds=1 cannot go with --finetune_backbone=lora"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes(words, message):
    assert any(problem.startswith(message) for problem in problems(*words)), problems(*words)


def test_a_message_is_one_line_that_names_the_whole_file(tmp_path, capsys):
    deep = tmp_path.joinpath(*["folder"] * 30)
    deep.mkdir(parents=True)
    (deep / "a.yaml").write_text("tau: [")
    assert main([f"--config={deep / 'a.yaml'}"]) == 2
    assert str(deep / "a.yaml") in capsys.readouterr().err
    for value in ("a/" * 3000, "a\nb\x1b[31m", "a\r"):  # names that no file has
        assert main([f"--task={value}.yaml"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.isprintable() and len(line) < 600 and line.startswith("error: --task=a")


def test_all_mistakes_come_together():
    assert len(problems("--task=x", "--tau=2", "--batch_size=-1", "--nope=1")) == 4


def test_one_mistake_is_told_once():
    assert len(problems("--task=custom", "--train_file=")) == 1
    assert len(problems("--task=custom", "--train_file=", "--lr=x")) == 2


def test_a_runs_configuration_trusts_nobody(tmp_path):
    flags = RunConfig().with_values(task="mteb", trust_pooler=True, trust_remote_code=True).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"flags": flags, "resolved": {"hidden_size": 16}}))
    backbone = parse([f"--config={tmp_path / 'config.json'}"]).config.backbone
    assert not backbone.trust_pooler and not backbone.trust_remote_code


def test_a_printed_configuration_can_be_varied_by_one_flag(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(parse(["--selection=heldout", "--pooling_method=glot"]).config))
    assert parse([f"--config={path}", "--selection=best"]).config.data.selection == "best"
    assert parse([f"--config={path}", "--pooling_method=mean"]).config.pooler.pooling_method == "mean"
    path.write_text(to_yaml(parse(["--selection=heldout", "--heldout_fraction=0.2"]).config))
    with pytest.raises(ConfigError, match="--heldout_fraction: has no effect in this run"):
        parse([f"--config={path}", "--selection=best"])
    with pytest.raises(ConfigError, match="--heldout_fraction: has no effect in this run"):
        parse(["--heldout_fraction=0.1"])


def test_a_flag_in_a_file_counts_as_given_though_it_is_the_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 2\nbackbone_dtype: float32\n")
    assert {"epochs", "backbone_dtype"} <= parse([f"--config={path}"]).explicit


def test_the_home_folder_is_known_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse(["--output_dir=~/runs", "--store_dir=~/hidden", "--data_dir=~"]).config
    assert config.output.output_dir == f"{tmp_path}/runs" and config.store.store_dir == f"{tmp_path}/hidden"
    assert config.data.data_dir == str(tmp_path)
    assert str(parse_export(["run", "--to=~/x"]).to) == f"{tmp_path}/x"


def test_seeds():
    for text in ("5..3", "0..", "..3", "0,0", "-1"):
        with pytest.raises(ValueError):
            parse_seeds(text)
    assert parse_seeds("0,1,5") == [0, 1, 5] and parse_seeds("0..3,9") == [0, 1, 2, 3, 9]
    assert parse(["--seeds=0..2"]).config.train.seeds == "0..2"


def test_finetuning_turns_the_store_off_by_itself():
    for word, kind, lr in (("1", "full", 2e-5), ("True", "full", 2e-5), ("full", "full", 2e-5), ("lora", "lora", 2e-4)):
        config = parse([f"--finetune_backbone={word}"]).config
        assert not config.store.precompute_hidden_states
        assert (config.backbone.finetune_backbone, config.backbone.trained_lr) == (kind, lr)
    assert parse(["--finetune_backbone=no"]).config.store.precompute_hidden_states


def test_every_condition_is_used_and_is_true_in_one_run_and_false_in_another():
    used = {facts.acts for facts in flag_facts().values() if facts.acts}
    assert used == set(CONDITIONS)
    base = RunConfig()
    runs = [base.with_values(task=task, adaptive_length=True) for task in ("stress", "embedding", "mteb", "stsb")]
    runs += [base.with_values(pooling_method=name, num_layers=layers) for name in ("cls", "adapool", "mlp", "latent") for layers in (0, 1)]
    runs += [base.with_values(pooling_method="glot", graph_adj=kind, num_layers=1) for kind in GRAPHS]
    runs += [base.with_values(task="stress", stress_variant="repeat"), base.with_values(selection="heldout")]
    runs += [base.with_values(precompute_hidden_states=False, finetune_backbone=kind) for kind in ("full", "lora")]
    runs += [base.with_values(seeds="0,1"), base]
    runs += [base.with_values(task="custom", train_file=file, text_columns="a,b") for file in ("x.csv", "hub:owner/name")]
    runs += [base.with_values(pooling_method="mine.py:Mine"), base.with_values(folds=3)]
    runs += [base.with_values(task="rte", pooling_method="crossglot", cross_adj=kind, cross_inside=True) for kind in CROSS_GRAPHS]
    runs += [base.with_values(hidden_layer="all"), base.with_values(long_texts="windows")]
    for name, (_, predicate) in CONDITIONS.items():
        assert {predicate(run) for run in runs} == {True, False}, name


def test_fingerprint_follows_what_matters():
    base = RunConfig()
    assert base.fingerprint() == base.with_values(output_dir="x", verbose=False, num_workers=2, store_dir="y").fingerprint()
    for change in ({"seed": 1}, {"tau": 0.1}, {"lr": 1.0}, {"task": "cola"}, {"hidden_layer": "0"}, {"data_seed": 3}, {"order_seed": 3}):
        assert base.with_values(**change).fingerprint() != base.fingerprint()
    assert base.fingerprint("data") != base.fingerprint()


def test_the_makefile_has_the_readme_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_commands_of_their_own_have_examples_that_they_take(mirror, capsys):
    for program, about in ABOUT.items():
        *_, example = about.splitlines()
        words = example.replace("MIRROR", str(mirror)).split()
        assert words[:2] == program.split()
        explicit = parse(words[2:], program).explicit
        assert program != "glot demo" or explicit <= DEMO_FLAGS
    assert glot_main(["graph", "--task=mteb"]) == 2
    assert capsys.readouterr().err == "error: --task=mteb: has no texts of its own to look at; name a task that trains\n"


@pytest.mark.parametrize("words", [["main.py", "--help"], ["main.py", "--task=colaa"], ["-m", "glot"], ["main.py", "--print_config"]])
def test_cheap_answers_need_no_heavy_import(words):
    """torch alone takes more than a second to import; what is counted here is modules, not time."""
    code = f"import sys, runpy; sys.argv = {words[-2:]!r}\ntry:\n    "
    code += "from glot.cli import main, glot_main\n    "
    code += f"code = {'glot_main([])' if words[0] == '-m' else f'main({words[1:]!r})'}\n"
    code += "except SystemExit as stop:\n    code = stop.code\n"
    code += (
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy\nprint('code', code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert f"code {0 if words[-1] in ('--help', '--print_config') else 2}" in done.stdout


def test_values_may_stand_behind_a_space():
    _, words = parse_encode(["--pooling_method", "glot", "--tau", "0.6", "--input", "a.csv", "--gat_hidden_dim=8"])
    assert words == ["--pooling_method=glot", "--tau=0.6", "--gat_hidden_dim=8"]
    asked, words = parse_encode(["run", "--input", "a.csv"])
    assert asked.run == Path("run") and not words
