"""Files of studies and of wandb sweeps: what they expand to, and the mistakes in them."""

import pytest
from conftest import ROOT, write_rows

from glot.errors import ConfigError
from glot.study.files import read_study
from glot.study.resolution import resolve_cells

WANDB = """
program: main.py
method: grid
metric: {name: metrics/acc, goal: maximize}
command: ["${env}", python, "${program}", "${args}"]
name: tiny
parameters:
  task: {value: cola}
  pooling_method: {values: [mean, adapool]}
  lr: {values: [2e-05, 1e-2]}
  epochs: {value: 1}
"""
BAYES = (
    WANDB.replace("method: grid", "method: bayes\nrun_cap: 6")
    .replace(
        "lr: {values: [2e-05, 1e-2]}",
        "lr: {min: 1e-4, max: 1e-1, distribution: log_uniform_values}\n  scorer_hidden: {min: 2, max: 9}\n"
        "  weight_decay: {min: 0.0, max: 0.5}",
    )
    .replace("[mean, adapool]", "[adapool, gated]")
)
STUDY = """
kind: study
name: tiny
runs_with: {epochs: 2, selection: heldout, heldout_fraction: 0.3, gat_hidden_dim: 8, max_length: 16}
grid: {task: [cola, mrpc]}
arms:
  glot: {pooling_method: glot, tau: 0.5}
  no graph: {pooling_method: glot, graph_adj: none}
  mean: {pooling_method: mean}
tune: {lr: [1e-4, 3e-2], seeds: [100, 101]}
seeds: [0, 1, 2]
baseline: no graph
published: table 1
"""


PROBES = STUDY[: STUDY.index("  glot:")] + "  mean: {pooling_method: mean, head: probe}\n"


def problems(tmp_path, text: str) -> list[str]:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve_cells(path, read_study(path))
    return [problem.replace(str(path), "F") for problem in caught.value.problems]


def test_a_wandb_grid_is_expanded(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(WANDB)
    study = read_study(path)
    configs = resolve_cells(path, study)
    assert [(cell.grid["pooling_method"], cell.grid["lr"]) for cell in study.cells] == [
        ("mean", "2e-05"), ("mean", "1e-2"), ("adapool", "2e-05"), ("adapool", "1e-2")
    ]  # fmt: skip
    assert [config.train.lr for config in configs] == [2e-5, 1e-2, 2e-5, 1e-2]
    assert {config.data_seed for config in configs} == {0}
    path.write_text(WANDB.replace("method: grid", "method: random\nrun_cap: 3"))
    drawn = read_study(path).cells
    assert len(drawn) == 3 and drawn == read_study(path).cells
    path.write_text(WANDB.replace("method: grid", "method: random\nrun_cap: 40"))
    drawn = resolve_cells(path, read_study(path))  # a point that was drawn is not drawn again
    assert sorted((one.pooler.pooling_method, one.train.lr) for one in drawn) == sorted(
        (p, lr) for p in ("mean", "adapool") for lr in (2e-5, 1e-2)
    )


def test_values_are_drawn_from_ranges(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(BAYES.replace("method: bayes", "method: random").replace("run_cap: 6", "run_cap: 200"))
    cells = read_study(path).cells
    assert cells == read_study(path).cells and len({cell.flags["lr"] for cell in cells}) == 200
    rates, widths = [float(cell.flags["lr"]) for cell in cells], [int(cell.flags["scorer_hidden"]) for cell in cells]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-1 and 60 < sum(rate < 10**-2.5 for rate in rates) < 140  # even on a logarithmic scale
    assert set(widths) == set(range(2, 10)) and set(cells[0].grid) == {"pooling_method", "lr", "scorer_hidden", "weight_decay"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WANDB.replace("method: grid", "method: hyperband"), "F: method: hyperband cannot be run here; allowed: grid, random, bayes"),
        (WANDB.replace("method: grid", "method: bayes"), "F: run_cap: missing; with method bayes it says how many runs to draw"),
        (BAYES.replace("goal: maximize", "goal: most"), "F: metric.goal: most; allowed: maximize, minimize"),
        (BAYES.replace("metric: {name: metrics/acc, goal: maximize}\n", ""), "F: metric: must be {name: metrics/mcc, goal: maximize}"),
        (BAYES.replace("min: 1e-4", "min: 1"), "F: parameters.lr: must hold value, or values with at least one entry, or min below max"),
        (BAYES.replace("min: 1e-4", "min: 0"), "F: parameters.lr: must hold value"),
        (BAYES.replace("log_uniform_values", "q_normal"), "F: parameters.lr: must hold value"),
        (BAYES.replace("method: bayes", "method: grid"), "F: parameters.lr: a range needs method random or bayes; with grid give values"),
        (WANDB.replace("parameters:", "parametres:"), "F: parametres: no such key (did you mean 'parameters'?); allowed: program"),
        (WANDB.replace("values: [mean, adapool]", "values: []"), "F: parameters.pooling_method: must hold value, or values with"),
        (WANDB.replace("lr: {", "learning: {"), "F: pooling_method=mean, learning=2e-05: --learning: no such flag"),
        (WANDB.replace("2e-05", "fast"), "F: pooling_method=mean, lr=fast: --lr=fast: must be a number"),
        (WANDB.replace("program: main.py", "program: other.py"), "F: program: other.py is none of main.py, diagnostic_stress_test.py"),
        (WANDB.replace("method: grid", "method: random"), "F: run_cap: missing; with method random"),
        (WANDB.replace("[mean, adapool]", "[mean, max], probabilities: [0, 1]"), "F: parameters.pooling_method: probabilities has no"),
        (WANDB.replace("values: [mean", "value: max, values: [mean"), "F: parameters.pooling_method: values has no effect here"),
        (BAYES.replace("log_uniform_values", "int_uniform"), "F: parameters.lr: must hold value"),
        (BAYES.replace("name: metrics/acc", "name: metrics/mcq"), "F: metric.name: metrics/mcq: no such metric (did you mean 'mcc'?)"),
        (STUDY.replace("mean}\n", "mean, hidden_layer: {a: b}}\n"), "F: arms.mean.hidden_layer: must be a single value"),
        (STUDY.replace("epochs: 2", "epochs: [[2]]"), "F: runs_with.epochs: must be a single value"),
        ("- a", "F: must hold keys such as"),
        ("a: [", "F: not YAML (line 1: "),
        ("kind: study\narms:\n\ta: {}\n", "F: not YAML (line 3: found character '\\t' that cannot start any token; indent with spaces)"),
        (STUDY.replace("  mean: {pooling", "  glot: {pooling"), "F: line 9: glot is set twice; keep one"),
        (STUDY.replace("kind: study\n", ""), "F: kind: must be study, because arms and runs_with are keys of a study file"),
        (STUDY.replace("kind: study", "kind: studdy"), "F: kind: must be study"),
        (STUDY.replace("[cola, mrpc]", "[cola, mrpc], lr: [1e-4, 1e-3]"), "F: tune: lr is in the grid too; leave one out"),
        (STUDY.replace("[cola, mrpc]", "[cola, mrpc], pooling_method: [mean, max]"), "F: arms.mean: pooling_method is fixed, and the grid"),
        (STUDY.replace("mean}\n", "mean, lr: 0.5}\n"), "F: arms.mean: lr is fixed and tuned; leave one out, or give the arm a tune"),
        (STUDY.replace("[cola, mrpc]", "[cola, cola]"), "F: task: names cola twice; keep one"),
        (STUDY.replace("seeds: [0, 1, 2]", "seeds: [0, 1, 0]"), "F: seeds: names 0 twice; keep one"),
        (STUDY.replace("seeds: [0, 1, 2]", "seeds: []"), "F: seeds: must name at least one"),
        (STUDY.replace("runs_with: {", "runs_with: {seeds: 0..3, "), "F: runs_with: seeds has no effect there; write seeds: at the top"),
        (STUDY.replace("runs_with: {", "runs_with: {seed: 3, "), "F: runs_with: seed has no effect there; seeds: names them"),
        (STUDY.replace("mean}\n", "mean, output_dir: x}\n"), "F: arms: output_dir has no effect there; give --output_dir to glot sweep"),
        (STUDY.replace("published: table 1", "published: table 99"), "F: published: table 99: no such table (did you mean"),
        (WANDB.replace("method: grid", "method: grid\nrun_cap: 0"), "F: run_cap: 0; must be a number from 1"),
        (WANDB.replace("[mean, adapool]", "[mean, mean]"), "F: parameters.pooling_method: names mean twice; keep one"),
        (STUDY.replace("{task: [cola, mrpc]}", "[[a]]"), "F: grid: must map names to values"),
        (STUDY.replace("[cola, mrpc]", "[]"), "F: grid.task: must be a list with at least one entry"),
        (STUDY.replace("arms:", "amrs:"), "F: amrs: no such key (did you mean 'arms'?)"),
        (STUDY.replace("baseline: no graph", "baseline: none"), "F: baseline: none is no arm"),
        (STUDY.replace("seeds: [0, 1, 2]", "seeds: [a]"), "F: seeds: a: must be a list of whole numbers from 0"),
        (STUDY.replace("seeds: [0, 1, 2]", "seeds: [-1]"), "F: seeds: -1: must be a list of whole numbers from 0"),
        (STUDY.replace("  mean:", "  'mean ':"), "F: arms: 'mean ' must be a name, without blanks around it"),
        (STUDY.replace("  mean:", "  '':"), "F: arms: '' must be a name, without blanks around it"),
        (STUDY.replace("{task: [cola, mrpc]}", "[{task: [cola]}, {task: [mrpc, cola]}]"), "F: grid: task: cola stands in it twice"),
        (STUDY.replace("mean}\n", "mean, <<: [a]}\n"), "F: line 9: << must name a mapping, or a list of them"),
        (STUDY.replace("mean}\n", "mean, tau: 0.5}\n"), "F: mean, task=cola: --tau has no effect in this arm"),
        (STUDY.replace("  mean: ", "  b: {pooling_method: mean}\n  c: "), "F: arms b and c cannot differ"),
        (STUDY.replace("tau: 0.5", "knn_k: 2"), "F: glot, task=cola: --knn_k: has no effect in this run"),
        (STUDY.replace("mean}\n", "mean, only: {tsak: [cola]}}\n"), "F: arms.mean.only: tsak is not in the grid (did you mean 'task'?)"),
        (STUDY.replace("mean}\n", "mean, only: cola}\n"), "F: arms.mean.only: must map flags of the grid to lists of values"),
        (STUDY.replace("mean}\n", "mean, only: {task: [rte]}}\n"), "F: arms.mean.only: task: rte is no value of the grid"),
        (STUDY.replace("tune: {", "tune: {fold: first, "), "F: tune.fold: first: must be the number of a fold"),
        (STUDY.replace("tune: {", "tune: {fold: 0, "), "F: tune.fold: 0; add folds, such as folds: 5"),
        (STUDY.replace("tune: {", "tune: {fold: 3, ").replace("runs_with: {", "runs_with: {folds: 3, "), "F: tune.fold: 3; must be below"),
        (STUDY.replace("mean}\n", "mean, only: {task: [cola, mrcp]}}\n"), "F: arms.mean.only: task: mrcp is no value of the grid"),
        (STUDY.replace("3e-2]", "oops]"), "F: glot, task=cola: --lr=oops: must be a number"),
        (STUDY.replace("tune: {lr: [1e-4, 3e-2]", "tune: {lr: [1e-4], gat_hidden_dim: [8, 0]"), "F: glot, task=cola: --gat_hidden_dim=0"),
        (STUDY + "compare: [[glot, glot]]\n", "F: compare: [glot, glot] is one arm twice"),
        (STUDY + "compare: [[glot, mean], [mean, glot]]\n", "F: compare: [mean, glot] is named twice"),
        (STUDY + "margins: {mcc: 0.1}\n", "F: margins: have no effect without compare"),
        (PROBES + "tune: {seeds: [7]}\n", "F: tune.seeds: there is no flag to tune; add one"),
        (PROBES + "tune: {lr: [1e-4]}\n", "F: tune: lr has no effect in any arm"),
        (STUDY.replace("mean}\n", "mean, tune: {knn_k: [2]}}\n"), "F: mean, task=cola: --knn_k: has no effect in this run"),
        (STUDY.replace("mean}\n", "mean, tune: {lr: [1e-3], seeds: [7]}}\n"), "F: arms.mean.tune.seeds: holds for all arms; put it under"),
        (PROBES.replace("probe}\n", "probe, tune: {}}\n") + "tune: {lr: [1e-4]}\n", "F: tune: has no effect: every arm has"),
        (STUDY.replace("mean}\n", "mean, head: probe, tune: {lr: [1e-4, 3e-2]}}\n"), "F: tune: lr has no effect in mean; leave it out"),
        (STUDY.replace("mean}\n", "mean, tune: {lr: 1e-3}}\n"), "F: arms.mean.tune: must map flags to lists of values"),
        (STUDY.replace("mean}\n", "mean, tune: {lr: [fast]}}\n"), "F: mean, task=cola: --lr=fast: must be a number"),
        (STUDY.replace("mean}\n", "mean, lr: 1e-3, tune: {lr: [1e-4]}}\n"), "F: arms.mean: lr is fixed and tuned; leave one out"),
        (
            STUDY.replace("mean}\n", "mean, only: {task: [cola]}}\n").replace("tau: 0.5}", "tau: 0.5, only: {task: [mrpc]}}")
            + "compare: [[glot, mean]]\n",
            "F: compare: glot and mean stand at no common point of the grid",
        ),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_key(tmp_path, text, expected):
    found = problems(tmp_path, text)
    assert any(problem.startswith(expected) for problem in found), found


def test_arms_that_differ_in_what_is_tuned_are_two_arms(tmp_path):
    text = STUDY.replace("mean}\n", "mean, tune: {lr: [1e-3]}}\n  untuned: {pooling_method: mean, tune: }\n")
    (tmp_path / "study.yaml").write_text(text)
    study = read_study(tmp_path / "study.yaml")
    assert len(resolve_cells(tmp_path / "study.yaml", study)) == 8 and [cell.tune for cell in study.cells[2:4]] == [{"lr": ["1e-3"]}, {}]


def test_a_list_under_an_arm_is_a_comma_list(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace("mean}\n", "mean, hidden_layer: [0, 2]}\n"))
    cells = {cell.arm: cell for cell in read_study(tmp_path / "study.yaml").cells}
    assert cells["mean"].flags["hidden_layer"] == "0,2"


def test_merge_keys_do_what_yaml_says(tmp_path):
    arms = """arms:
  glot: &glot {pooling_method: glot, tau: 0.3, num_layers: 1}
  tau: {<<: *glot, tau: 0.5}
  both: {tau: 0.6, <<: [{num_layers: 2}, *glot]}
"""
    (tmp_path / "study.yaml").write_text(f"kind: study\nruns_with: {{task: cola}}\n{arms}")
    first, second, third = [{**cell.flags, "task": ""} for cell in read_study(tmp_path / "study.yaml").cells]
    assert second == {**first, "tau": "0.5"} and third == {**first, "tau": "0.6", "num_layers": "2"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_resolves(path, tmp_path, monkeypatch):
    study = read_study(path)
    monkeypatch.chdir(tmp_path)
    for name in {cell.flags.get(flag) for cell in study.cells for flag in ("train_file", "eval_file")} - {None}:
        write_rows(tmp_path / name, [])  # a file of one's own, which the study's header says how to make
    assert len(resolve_cells(path, study)) == len(study.cells) > 0
    assert path.read_text().startswith("#") and "command:" in path.read_text()
