"""What is wrong with a configuration: numbers, combinations, paths. Names are checked by the table that owns them."""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from glot.distributed import processes
from glot.errors import ConfigError, unknown_name
from glot.files import HUB, find_files
from glot.locate import expand_user, local_folder, split_revision
from glot.prompts import AUTO, NONE
from glot.settings.choices import (
    EMBEDDED_BACKBONES,
    EVALUATIONS,
    LONGEST_STACKED,
    METRICS,
    MTEB_CACHE,
    PAIR_POOLERS,
    POOLERS,
    is_own_name,
)
from glot.settings.effects import has_gradient, has_weights, reads_pairs, reads_several
from glot.settings.facts import refused_choice
from glot.settings.index import KIND_WORDS, flag_facts, kinds, optional_flags
from glot.settings.seeds import LARGEST_SEED, MOST_SEEDS, parse_seeds

if TYPE_CHECKING:
    from glot.settings.config import RunConfig

ROWS_WORDS = ("subset", "full")


def check(config: "RunConfig") -> list[str]:
    """Every mistake in numbers, combinations and paths, one line each; an empty list is a good configuration."""
    problems = _check_types(config)
    if problems:
        return problems  # what follows takes values of the right type for granted
    problems = _check_values(config)
    if not -1 <= config.graph.tau < 1:
        problems.append(f"--tau={config.graph.tau}: must be at least -1 and below 1 (an edge needs cosine > tau)")
    if not 0 < config.data.heldout_fraction < 1:
        problems.append(f"--heldout_fraction={config.data.heldout_fraction}: must be above 0 and below 1")
    rows, parts = (_check_rows, _check_folds, _check_files, _check_folders), (_check_pooler, _check_backbone, _check_head)
    for one in (*rows, *parts, _check_mteb, _check_trackers, _check_stress, _check_seeds, _check_processes):
        problems += one(config)
    return problems


def value_problems(config: "RunConfig") -> list[str]:
    """Mistakes of each value by itself: its type, or else its choices and bounds."""
    return _check_types(config) or _check_values(config)


def _check_types(config: "RunConfig") -> list[str]:
    problems = []
    for name, value in config.to_dict().items():
        kind = kinds()[name]
        unset = value is None and name in optional_flags()
        fits = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
        if not (unset or fits):
            problems.append(f"--{name}={value!r}: must be {KIND_WORDS[kind]}")
    return problems


def _check_values(config: "RunConfig") -> list[str]:
    """Each value by itself: its choices and its bounds."""
    problems = []
    for name, value in config.to_dict().items():
        facts = flag_facts()[name]
        refused = refused_choice(facts, value) if value is not None and facts.choices else None
        if refused is not None and not (facts.own and is_own_name(value)):
            problems.append(unknown_name(refused, facts.choices, name))
        elif value is not None and facts.bounds and not facts.bounds[0] <= value <= facts.bounds[1]:
            problems.append(f"--{name}={value}: must be between {facts.bounds[0]:.10g} and {facts.bounds[1]:.10g}")
    return problems


def _check_folds(config: "RunConfig") -> list[str]:
    data = config.data
    if data.folds == 1:
        return ["--folds=1: must be 0, or at least 2"]
    if data.folds and data.eval_split is not None:
        return [f"--folds={data.folds}: takes the task's own evaluation rows; leave out --eval_split"]
    if data.folds and data.fold is not None and data.fold >= data.folds:
        return [f"--fold={data.fold}: must be below --folds={data.folds}"]
    return []


def _check_rows(config: "RunConfig") -> list[str]:
    rows = config.data.num_train_samples
    if rows in ROWS_WORDS or (rows.isdecimal() and int(rows) > 0):
        return []
    return [f"--num_train_samples={rows}: must be subset, full or a number of rows above 0"]


def _check_files(config: "RunConfig") -> list[str]:
    """Files, columns and metrics of a custom task."""
    if config.data.task != "custom":
        return []
    files, problems = config.files, []
    texts = [name.strip() for name in files.text_columns.split(",") if name.strip()]
    if not 1 <= len(texts) <= 2 or len(set(texts)) < len(texts):
        problems.append(f"--text_columns={files.text_columns}: must name one column, or two different ones (premise,hypothesis)")
    if files.label_column in texts:
        problems.append(f"--label_column={files.label_column}: is one of --text_columns; name the column of the labels")
    metrics = [name.strip() for name in (files.metrics or "").split(",") if name.strip()]
    problems += [unknown_name(name, METRICS, "metrics") for name in metrics if name not in METRICS]
    if files.label_range is not None and not _is_range(files.label_range):
        problems.append(f"--label_range={files.label_range}: must be two rising numbers such as 0,5")
    return problems + _check_named_files(config)


def _check_named_files(config: "RunConfig") -> list[str]:
    named, problems = {"train_file": config.contrastive.train_file, "eval_file": config.files.eval_file}, []
    if not named["train_file"]:
        problems.append("--train_file: --task=custom needs it; csv, tsv, jsonl, json or parquet, also .gz, or hub:owner/name")
    source = named["eval_file"] or named["train_file"]  # of the evaluation rows
    if config.data.eval_split is not None and source and not source.startswith(HUB):
        problems.append(f"--eval_split={config.data.eval_split}: needs a hub: table, and evaluation rows come from {source}; leave it out")
    if config.files.train_split is not None and named["train_file"] and not named["train_file"].startswith(HUB):
        problems.append(f"--train_split={config.files.train_split}: needs --train_file=hub:owner/name; leave it out")
    for flag, text in named.items():
        try:
            if text and not text.startswith(HUB):
                find_files(flag, text)
        except ConfigError as error:
            problems += error.problems
    return problems


def _is_range(text: str) -> bool:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        return False
    return math.isfinite(low) and math.isfinite(high) and low < high


def _check_pooler(config: "RunConfig") -> list[str]:
    pooler = config.pooler
    if pooler.pooling_method in PAIR_POOLERS and not reads_pairs(config):
        task = config.data.task
        why = "it gives no sentence vector" if task in EVALUATIONS else f"--task={task} has none"
        method = f"--pooling_method={pooler.pooling_method}"
        if task == "mteb" and config.mteb.checkpoints:
            return [f"--checkpoint_path={config.mteb.checkpoint_path}: its {method} scores pairs of texts, and {why}; name another run"]
        return [f"{method}: scores pairs of texts, and {why}; name another pooler"]
    if pooler.pooling_method == "glot" and pooler.num_layers == 0 and pooler.jk_mode != "cat":
        return [f"--jk_mode={pooler.jk_mode}: with --num_layers=0 there is nothing to join; use cat, or at least one layer"]
    if config.data.task == "embedding" and not has_weights(config) and not config.backbone.is_trained:
        return [f"--pooling_method={pooler.pooling_method}: has no weights, so there is nothing to train; use it with --task=mteb as it is"]
    if config.data.task == "embedding" and config.train.batch_size < 2:
        return [f"--batch_size={config.train.batch_size}: a row is told apart from the others of its batch; use at least 2"]
    if pooler.pooling_method in ("mlp", "crossglot") and pooler.num_layers == 0:
        return [f"--num_layers=0: the {pooler.pooling_method} pooler needs at least one layer"]
    return []


def _check_backbone(config: "RunConfig") -> list[str]:
    backbone, problems = config.backbone, []
    if not re.fullmatch(r"-?[0-9]+(,-?[0-9]+)*|mean4|all|every:0*[1-9][0-9]*", backbone.hidden_layer):
        form = "an index (0 = embeddings, -1 = last), mean4, all, a list such as 0,3,6, or every:5"
        problems.append(f"--hidden_layer={backbone.hidden_layer}: must be {form}")
    if not re.fullmatch(r"auto|spread|cpu|mps|cuda(:\d+)?", backbone.device):
        problems.append(f"--device={backbone.device}: must be auto, cpu, mps, cuda, cuda:N or spread")
    if backbone.is_trained and backbone.device == "spread":
        problems.append("--device=spread: is for frozen backbones; leave out --finetune_backbone")
    if config.mteb.return_all_hidden_states:
        problems.append("--return_all_hidden_states=1: must be 0; choose layers with --hidden_layer")
    given = f"--finetune_backbone={backbone.finetune_backbone}"
    if backbone.is_trained and config.store.precompute_hidden_states:
        problems.append(f"--precompute_hidden_states=1: stored states cannot train the backbone; with {given} use 0")
    if backbone.is_trained and backbone.backbone_dtype not in ("float32", "autocast", "auto"):
        problems.append(f"--backbone_dtype={backbone.backbone_dtype}: would round small updates away; with {given} use float32 or autocast")
    if backbone.finetune_backbone == "lora" and not all(word.strip() for word in backbone.lora_targets.split(",")):
        problems.append(f"--lora_targets={backbone.lora_targets}: must be auto, or names of linear layers such as query,value")
    if backbone.prompts not in (AUTO, NONE) and not expand_user(backbone.prompts).is_file():
        problems.append(f"--prompts={backbone.prompts}: must be auto, none, or a JSON file that is there")
    if backbone.exclude_prompt and backbone.prompts == NONE:
        problems.append("--exclude_prompt=1: has no effect with --prompts=none; leave it out")
    return problems + _check_model_name(backbone.model_name_or_path, backbone.revision)


def _check_mteb(config: "RunConfig") -> list[str]:
    if config.data.task == "mteb" and not config.mteb.checkpoints and reads_several(config):
        layer = config.backbone.hidden_layer
        return [f"--hidden_layer={layer}: several layers are standardised by training rows; name one, or give --checkpoint_path"]
    if config.mteb.mteb_poolers is None:
        return []
    given = f"--mteb_poolers={config.mteb.mteb_poolers}"
    names = [name.strip() for name in config.mteb.mteb_poolers.split(",")]
    wrong = [name for name in names if name not in POOLERS and not is_own_name(name)]
    problems = [unknown_name(name, POOLERS, "mteb_poolers") for name in wrong]
    problems += [f"{given}: {name} scores pairs of texts and gives no sentence vector" for name in names if name in PAIR_POOLERS]
    problems += [f"{given}: {name} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    return problems


def _check_trackers(config: "RunConfig") -> list[str]:
    """Words that stand for themselves, and a tracker that is named twice."""
    given = config.output.report_to
    names = [name.strip() for name in given.split(",")]
    alone = next((name for name in ("auto", "none") if name in names and len(names) > 1), None)
    twice = next((name for name in names if names.count(name) > 1), None)
    if alone is not None:
        return [f"--report_to={given}: {alone} stands alone; leave it out, or the others"]
    return [] if twice is None else [f"--report_to={given}: {twice} is named twice"]


def _check_stress(config: "RunConfig") -> list[str]:
    if config.stress.stress_variant == "relational" and config.stress.relational_distance < 1:
        return ["--relational_distance=0: the relational variant needs at least 1, or two neighbouring words would tell the label"]
    return []


def _check_model_name(name: str, revision: str | None) -> list[str]:
    if name in EMBEDDED_BACKBONES:
        return [] if revision is None else [f"--revision={revision}: {name} is no repository of the hub; leave the flag out"]
    try:
        if local_folder(name) is None:
            split_revision(name, revision)
        elif revision is not None:
            return [f"--revision={revision}: {name} is a local folder; leave the flag out"]
    except ConfigError as error:
        return error.problems
    return []


def _check_head(config: "RunConfig") -> list[str]:
    head, train, problems = config.head, config.train, []
    if head.head != "trained" and config.data.task == "embedding":
        problems.append(f"--head={head.head}: needs labels, and --task=embedding has none; use trained")
    if head.threshold == "heldout" and config.data.selection != "heldout":
        problems.append("--threshold=heldout: needs rows that are held out; add --selection=heldout")
    watched = ("heldout", "best") if config.data.task == "embedding" else ("heldout",)  # which ranks a slice that it holds out anyway
    if train.early_stop and has_gradient(config) and config.data.selection not in watched:
        problems.append(f"--early_stop={train.early_stop}: stops by rows that are held out of training; add --selection=heldout")
    return problems


def _check_seeds(config: "RunConfig") -> list[str]:
    if config.train.seeds is None:
        return []
    if os.environ.get("WANDB_SWEEP_ID"):
        return [
            f"--seeds={config.train.seeds}: a wandb agent counts one run for one process; put seed: {{values: [...]}} into the sweep file"
        ]
    try:
        parse_seeds(config.train.seeds)
    except ValueError:
        return [
            f"--seeds={config.train.seeds}: must be different numbers such as 0,1,2 or 0..9, "
            f"up to {LARGEST_SEED}, and at most {MOST_SEEDS:,} in a range"
        ]
    return stack_problems(config) if config.train.stack_seeds else []


def stack_problems(config: "RunConfig") -> list[str]:
    """Why the seeds of a configuration cannot train side by side; an empty list where they can."""
    pooler, backbone = config.pooler, config.backbone
    is_glot = pooler.pooling_method in ("glot", "crossglot") and pooler.num_layers > 0
    longest = max(backbone.max_length, LONGEST_STACKED + backbone.adaptive_length)
    reasons = {
        "--task=embedding: the learning rate follows each run's own loss": config.data.task == "embedding",
        "--task=mteb: it trains nothing": config.data.task == "mteb",
        f"--finetune_backbone={backbone.finetune_backbone}: there is one backbone": backbone.is_trained,
        "--pooling_method=mlp: has batch norm": pooler.pooling_method == "mlp",
        f"--pooling_method={pooler.pooling_method}: is your own code": pooler.pooling_method not in POOLERS,
        "--layer_mix=scalar: each run has its own sum of the layers": reads_several(config) and pooler.layer_mix == "scalar",
        f"--gnn_type={pooler.gnn_type}: only gat": is_glot and pooler.gnn_type != "gat",
        "--grad_clip: it is taken of one model's weights": config.train.grad_clip > 0,
        "--train_dtype=bfloat16: losses are stacked in float32": config.train.train_dtype != "float32",
        "--dropout: each run drops others": config.head.dropout > 0,
        f"--head={config.head.head}: a solver fits it, and {pooler.pooling_method} has no weights": not has_gradient(config),
        "--jk_mode=lstm: only cat, max, mean and none": is_glot and pooler.jk_mode == "lstm",
        f"--max_length above {LONGEST_STACKED} or --adaptive_length=1: too long for glot's layers": is_glot and longest > LONGEST_STACKED,
        "torchrun: several processes share single runs": processes().count > 1,
    }
    return [f"--stack_seeds=1 cannot go with {reason}; leave it out" for reason, holds in reasons.items() if holds]


def _check_processes(config: "RunConfig") -> list[str]:
    """What several processes (torchrun) cannot share."""
    count = processes().count
    if count == 1:
        return []
    problems = []
    if config.data.task == "mteb":
        problems.append("--task=mteb: runs in one process; start it without torchrun, or one process a task")
    if config.backbone.is_trained:
        given = f"--finetune_backbone={config.backbone.finetune_backbone}"
        problems.append(f"{given}: {count} processes would train {count} backbones apart; start it without torchrun")
    if config.backbone.backbone_dtype == "auto":
        problems.append("--backbone_dtype=auto: each process would try by itself; name a precision")
    if config.pooler.pooling_method == "mlp":
        problems.append("--pooling_method=mlp: its batch norm would see one process's share of a batch; start it without torchrun")
    if config.pooler.pooling_method == "glot" and config.pooler.gnn_type in ("gin", "gine"):
        problems.append(f"--gnn_type={config.pooler.gnn_type}: its batch norm would see one process's share of a batch; use gat or gcn")
    return problems


LONGEST_NAME = 200
"""Bytes of a folder's name: systems take 255, and runs put numbers behind it."""


def is_folder_name(name: str) -> bool:
    """Whether a name is one folder and leads nowhere else."""
    plain = name.strip(". ") != "" and "/" not in name and "\0" not in name and not any(ord(sign) < 32 for sign in name)
    return plain and len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME


def _check_folders(config: "RunConfig") -> list[str]:
    problems = []
    if config.data.data_dir is not None and not Path(config.data.data_dir).is_dir():
        problems.append(
            f"--data_dir={config.data.data_dir}: no such folder (the flag's, or GLOT_DATA_DIR's); "
            "it should hold e.g. nyu-mll/glue/cola/train.jsonl"
        )
    folders = {"output_dir": config.output.output_dir, "store_dir": config.store.store_dir}
    if config.data.task == "embedding":
        folders["save_dir"] = config.contrastive.save_dir
        if not Path(config.contrastive.pairs_file).is_file():
            problems.append(
                f"--train_file={config.contrastive.pairs_file}: no such file; JSON lines {{query, pos, neg}}, .jsonl or .jsonl.gz"
            )
    for flag, folder in folders.items():
        path = Path(folder).absolute()
        while not path.exists():
            path = path.parent
        complete_stores = flag == "store_dir" and Path(folder).is_dir()  # they are read where nothing may be written
        if not path.is_dir() or not (os.access(path, os.W_OK) or complete_stores):
            problems.append(f"--{flag}={folder}: cannot be written ({path} is not a writable folder)")
    task = config.files.task_name
    if task is not None and not is_folder_name(task):
        problems.append(f"--task_name={task}: must be a folder name without slashes, of at most {LONGEST_NAME} bytes")
    name = config.output.run_name
    if name is not None and (not is_folder_name(name) or name == MTEB_CACHE):
        problems.append(f"--run_name={name}: must be a folder name without slashes, and not {MTEB_CACHE}")
    return problems
