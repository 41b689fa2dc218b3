"""The flag table: the command line and YAML files on one side, RunConfig on the other.

Names, types and defaults live in `glot.settings.config`; a row here adds the help group, the sentence and when the flag has an effect.
Order of precedence: default < YAML file (in the order given) < explicit flag.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from glot.errors import CheckpointError, ConfigError, nearest, unknown_name
from glot.settings.checks import check
from glot.settings.choices import CHOICES, EVALUATIONS
from glot.settings.config import RunConfig, kinds, read_saved

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
ENVIRONMENT = {"data_dir": "GLOT_DATA_DIR", "store_dir": "GLOT_STORE_DIR"}
STRESS_DEFAULTS: dict[str, Any] = {
    "task": "stress",
    "num_train_samples": "2000",
    "epochs": 3,
    "lr": 1e-4,
    "pooling_method": "mean",
    "scorer_hidden": 128,
    "decoder_cls_last_token": True,
}
"""What `diagnostic_stress_test.py` changes in main.py's defaults."""


class Flag(NamedTuple):
    """One row: where it stands in --help, what it means, and in which runs it does something (always, where `acts` is None)."""

    group: str
    name: str
    help: str
    acts: str | None = None
    ours: bool = False


CONDITIONS: dict[str, tuple[str, Callable[[RunConfig], bool]]] = {
    "cls": ("--pooling_method=cls", lambda c: c.pooler.pooling_method == "cls"),
    "adapool": ("--pooling_method=adapool", lambda c: c.pooler.pooling_method == "adapool"),
    "layers": ("--pooling_method=glot or mlp", lambda c: c.pooler.pooling_method in ("glot", "mlp")),
    "width": (
        "--pooling_method=latent, or glot or mlp with --num_layers above 0",
        lambda c: c.pooler.pooling_method == "latent" or (c.pooler.pooling_method in ("glot", "mlp") and c.pooler.num_layers > 0),
    ),
    "glot": ("--pooling_method=glot", lambda c: c.pooler.pooling_method == "glot"),
    "graph": (
        "--pooling_method=glot with --num_layers above 0",
        lambda c: c.pooler.pooling_method == "glot" and c.pooler.num_layers > 0,
    ),
    "tau": ("a threshold or random graph", lambda c: _has_graph(c, "threshold", "random")),
    "knn": ("--graph_adj=knn", lambda c: _has_graph(c, "knn")),
    "window": ("--graph_adj=window", lambda c: _has_graph(c, "window")),
    "stsb": ("--task=stsb", lambda c: c.data.task == "stsb"),
    "stress": ("--task=stress", lambda c: c.data.task == "stress"),
    "placed": (
        "--task=stress with --stress_variant=faithful or length_matched",
        lambda c: c.data.task == "stress" and c.stress.stress_variant in ("faithful", "length_matched"),
    ),
    "distance": (
        "--task=stress with a variant other than repeat",
        lambda c: c.data.task == "stress" and c.stress.stress_variant != "repeat",
    ),
    "hub": ("a task whose data is a table of the hub or a mirror", lambda c: c.data.task not in ("stress", "embedding")),
    "split": ("a task with named splits", lambda c: c.data.task not in ("stress", "embedding", "mteb")),
    "heldout": ("--selection=heldout or --task=embedding", lambda c: _trains(c) and _holds_out(c)),
    "data_seed": (
        "--task=stress or embedding, --selection=heldout or --graph_adj=random",
        lambda c: _has_graph(c, "random") or (_trains(c) and (c.data.task == "stress" or _holds_out(c))),
    ),
    "store": ("--precompute_hidden_states=1 in a task that trains", lambda c: _trains(c) and c.store.precompute_hidden_states),
    "live": ("--precompute_hidden_states=1 (live states use this process)", lambda c: _trains(c) and c.store.precompute_hidden_states),
    "finetune": ("--finetune_backbone=1", lambda c: c.backbone.finetune_backbone),
    "length": (
        "--task=stress, or --adaptive_length=0 in a task that trains (mteb: --mteb_max_length)",
        lambda c: c.data.task == "stress" or (_trains(c) and not c.backbone.adaptive_length),
    ),
    "embedding": ("--task=embedding", lambda c: c.data.task == "embedding"),
    "released": ("--task=embedding without --seeds", lambda c: c.data.task == "embedding" and c.train.seeds is None),
    "mteb": ("--task=mteb", lambda c: c.data.task == "mteb"),
    "trains": ("a task that trains", lambda c: _trains(c)),
    "seeds": ("--seeds", lambda c: _trains(c) and c.train.seeds is not None),
    "scored": ("a task that scores labelled rows, or mteb", lambda c: c.data.task != "embedding"),
}
"""Name -> (in words, predicate): when a flag has an effect."""


def _trains(config: RunConfig) -> bool:
    return config.data.task not in EVALUATIONS


def _holds_out(config: RunConfig) -> bool:
    return config.data.selection == "heldout" or config.data.task == "embedding"


def _has_graph(config: RunConfig, *names: str) -> bool:
    return CONDITIONS["graph"][1](config) and config.graph.graph_adj in names


B, P, D, S, T, OUT = "backbone", "pooler", "data", "store", "training", "output"
FLAGS: tuple[Flag, ...] = (
    Flag(B, "model_name_or_path", "minilm (embedded), smollm2, a local folder or a hub id"),
    Flag(B, "revision", "branch, tag or commit of a hub model (or name it as owner/name@revision); unset = its main branch", None, True),
    Flag(B, "prompts", "auto = the model's own (config_sentence_transformers.json), none, or a JSON file of name: text", None, True),
    Flag(B, "exclude_prompt", "1 = leave the prompt's tokens out of pooling", None, True),
    Flag(B, "max_length", "tokens a text is cut to; with --task=stress also the words generated", "length"),
    Flag(B, "adaptive_length", "1 = no cut but the model's own limit", "trains"),
    Flag(B, "backbone_dtype", "precision of the backbone; autocast = float32 weights, products in bfloat16", None, True),
    Flag(B, "hidden_layer", "which hidden states: -1 last, 0 embeddings, an index, or mean4 (mean of the last four)", None, True),
    Flag(B, "trust_remote_code", "1 = run code that comes with a hub model", None, True),
    Flag(B, "finetune_backbone", "1 = train the backbone too (implies --precompute_hidden_states=0)", "trains"),
    Flag(B, "backbone_lr", "learning rate of the backbone when it is fine-tuned", "finetune", True),
    Flag(B, "device", "auto, cpu, mps, cuda, cuda:N, or spread (a backbone larger than one card over all of them)", None, True),
    Flag(P, "pooling_method", "how token states become one vector"),
    Flag(P, "decoder_cls_last_token", "1 = cls takes the last real token of a decoder (stress: unset = 1 for decoders)", "cls"),
    Flag(P, "scorer_hidden", "width of AdaPool's scorer; GLOT's follows from D", "adapool"),
    Flag(P, "gnn_type", "convolution of GLOT", "graph"),
    Flag(P, "gat_hidden_dim", "h, width of the convolutions (glot) or layers (mlp); rows of the dictionary (latent)", "width"),
    Flag(P, "num_layers", "K, number of convolutions (glot; 0 = scored pooling of raw tokens) or layers (mlp)", "layers"),
    Flag(P, "jk_mode", "how the layers are joined; cat keeps the raw token", "glot"),
    Flag(P, "graph_adj", "which tokens are joined; none = self-loops only", "graph"),
    Flag(P, "tau", "cosine above which two tokens are joined, in [-1, 1)", "tau"),
    Flag(P, "knn_k", "neighbours of a token", "knn", True),
    Flag(P, "window_size", "distance in the text up to which tokens are joined", "window", True),
    Flag(D, "task", "what to train and score"),
    Flag(D, "data_dir", "local mirror of the hub's layout (or GLOT_DATA_DIR); unset = the hub", "hub", True),
    Flag(
        D,
        "num_train_samples",
        "subset (20,000 rows of qqp, qnli, mnli, embedding; 2,000 of stress; all of others), full, or a number",
        "trains",
    ),
    Flag(D, "eval_split", "another split to report on", "split", True),
    Flag(D, "label_scale", "target of the cosine: label/5, label/2.5 - 1, or the label", "stsb"),
    Flag(D, "selection", "which epoch is reported: best on the reported split, last, or best on held-out training rows", "trains", True),
    Flag(D, "heldout_fraction", "share of training rows held out (embedding: at most 2,000 rows)", "heldout", True),
    Flag(D, "data_seed", "seed of generated data, held-out rows and random graphs; unset = --seed", "data_seed", True),
    Flag(D, "train_file", "rows {query, pos, neg}, .jsonl or .jsonl.gz", "embedding"),
    Flag(D, "stress_variant", "which generator", "stress", True),
    Flag(D, "num_eval_samples", "generated evaluation rows", "stress", True),
    Flag(D, "distractor_ratio", "share of --max_length filled with noise words", "stress", True),
    Flag(D, "signal_position", "where the signal stands among the noise", "placed", True),
    Flag(D, "relational_distance", "noise words between modifier and noun", "distance", True),
    Flag(S, "precompute_hidden_states", "1 = encode once and keep the states on disk; 0 = encode in every epoch", "trains"),
    Flag(S, "override_precompute", "1 = build the store anew", "store"),
    Flag(S, "store_dir", "where stores live (or GLOT_STORE_DIR)", "store", True),
    Flag(S, "store_dtype", "precision on disk", "store", True),
    Flag(S, "resume", "0 = start a half-written store from the beginning", "store", True),
    Flag(T, "epochs", "passes over the training rows", "trains"),
    Flag(T, "batch_size", "sentences (or pairs) a step", "trains"),
    Flag(T, "eval_batch_size", "sentences (or pairs) in an evaluation batch", "scored"),
    Flag(T, "lr", "learning rate of Adam", "trains"),
    Flag(T, "weight_decay", "of Adam", "trains"),
    Flag(T, "seed", "initialisation and batch order (and --data_seed, where that is unset)"),
    Flag(T, "seeds", "several runs on one store: 0,1,2 or 0..9 (in place of --seed; --data_seed stays one for all)", "trains", True),
    Flag(T, "order_seed", "seed of the batch order; unset = --seed", "trains", True),
    Flag(T, "stack_seeds", "1 = the runs of --seeds train side by side in one pass, on one batch order", "seeds", True),
    Flag(T, "num_workers", "processes that read the store ahead; 0 = none", "live", True),
    Flag(T, "temperature", "of the contrastive loss", "embedding"),
    Flag(T, "contrastive_normalize", "1 = vectors of length one before the dot product", "embedding", True),
    Flag(T, "hard_negatives", "negatives of each row that join the batch", "embedding", True),
    Flag(D, "skip_bad_rows", "1 = count malformed rows of --train_file instead of stopping", "embedding", True),
    Flag(OUT, "output_dir", "one run folder a run is made under it", None, True),
    Flag(OUT, "run_name", "folder name; unset = task, pooler, seed and fingerprint", None, True),
    Flag(OUT, "overwrite", "1 = replace a run folder of the same name", None, True),
    Flag(OUT, "report_to", "auto = wandb when WANDB_MODE or WANDB_SWEEP_ID is set, else none", None, True),
    Flag(OUT, "log_every", "steps between two logged losses", "trains", True),
    Flag(OUT, "verbose", "0 = no bars and no line an epoch"),
    Flag(OUT, "estimate", "1 = print tokens, bytes and time of the store from a sample, and stop", "trains", True),
    Flag(OUT, "dry_run", "1 = read the data, look at the model's configuration, print the plan, and stop", "trains", True),
    Flag(OUT, "save_dir", "where embedding checkpoints go (with --seeds each stays in its run folder)", "released"),
    Flag(OUT, "proj_dim", "part of the embedding checkpoint's name", "embedding"),
    Flag(OUT, "checkpoint_path", "a run folder or a .pth file; standard = none", "mteb"),
    Flag(OUT, "mteb_task", "task name, comma list or benchmark", "mteb"),
    Flag(OUT, "mteb_max_length", "tokens a text is cut to in mteb", "mteb", True),
    Flag(OUT, "return_all_hidden_states", "must be 0; known to the release's sweep file alone", "mteb"),
)
SWITCHES = ("estimate", "dry_run")
"""Flags that may stand alone: `--dry_run` means 1."""


class Parsed(NamedTuple):
    """A resolved command line: the run, the names that were given explicitly, remarks for stderr, and whether only to print."""

    config: RunConfig
    explicit: frozenset[str]
    remarks: list[str]
    print_config: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(message)


def make_parser(program: str, defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """The parser behind both programs; every value stays text until `parse` converts it."""
    about = "Train a pooler on the token states of a frozen language model. In brackets: choices and default."
    parser = _Parser(prog=program, allow_abbrev=False, usage=f"{program} [--flag=value ...]", description=about)
    groups = {name: parser.add_argument_group(name) for name in (B, P, D, S, T, OUT)}
    for flag in FLAGS:
        allowed = f" {{{', '.join(CHOICES[flag.name])}}}" if flag.name in CHOICES else ""
        shown = "unset" if defaults[flag.name] is None else _as_text(defaults[flag.name])
        text = f"{flag.help}{allowed} [{shown}]".replace("%", "%%")
        optional: dict[str, Any] = {"nargs": "?", "const": "1"} if flag.name in SWITCHES else {}
        metavar = kinds()[flag.name].__name__.upper().replace("BOOL", "0|1")
        groups[flag.group].add_argument(f"--{flag.name}", metavar=metavar, help=text, default=argparse.SUPPRESS, **optional)
    files = parser.add_argument_group("configuration files")
    files.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML of flag: value, repeatable; default < YAML < flag"
    )
    files.add_argument("--print_config", action="store_true", help="print the resolved configuration as YAML and stop")
    return parser


def parse(argv: list[str], program: str = "main.py", defaults: dict[str, Any] | None = None) -> Parsed:
    """Resolve a command line.

    Raises:
        ConfigError: every mistake that can be found without reading data or a model, all in one.
    """
    base = RunConfig().with_values(**(defaults or {})).to_dict()
    spaces, unknown = make_parser(program, base).parse_known_args(argv)
    typed = vars(spaces)
    files, print_config = typed.pop("config"), typed.pop("print_config")
    problems = [_unknown_flag(word) for word in unknown]
    given = {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}
    explicit: dict[str, str] = {}
    for file in files:
        values, mistakes = read_yaml(Path(file))
        explicit.update(values)
        problems += mistakes
    explicit.update(typed)
    values = {}
    for name, raw in {**given, **explicit}.items():
        try:
            values[name] = convert(name, raw)
        except ValueError as error:
            problems.append(str(error))
    if values.get("finetune_backbone") and "precompute_hidden_states" not in explicit:
        values["precompute_hidden_states"] = False
    config = RunConfig.from_dict({**base, **values})
    if config.data.task == "mteb" and config.mteb.checkpoint is not None and not problems:
        config, problems = adopt_checkpoint(config, set(explicit))
    problems += check(config)
    if problems:
        raise ConfigError(*problems)
    remarks = effects(config, frozenset(explicit))
    return Parsed(config, frozenset(explicit), remarks, print_config)


TRAINED = (
    "pooling_method",
    "scorer_hidden",
    "gnn_type",
    "gat_hidden_dim",
    "num_layers",
    "jk_mode",
    "graph_adj",
    "tau",
    "knn_k",
    "window_size",
)
"""Flags that a pooler's weights belong to."""
ADOPTED = (
    *TRAINED,
    "model_name_or_path",
    "revision",
    "prompts",
    "exclude_prompt",
    "hidden_layer",
    "backbone_dtype",
    "data_seed",
    "trust_remote_code",
)
"""Flags that follow from a checkpoint's configuration where they are not given."""


def adopt_checkpoint(config: RunConfig, explicit: set[str]) -> tuple[RunConfig, list[str]]:
    """The configuration with what a checkpoint was trained with, and a line for every given flag that contradicts it.

    A bare `.pth` says nothing of itself: then all flags stay, and sizes are read off its shapes later.
    """
    path = config.mteb.checkpoint
    assert path is not None
    try:
        saved = read_saved(path)
    except CheckpointError as error:
        return config, [f"--checkpoint_path={error}"]
    if saved is None:
        return config, []
    trained = {**saved["flags"], "data_seed": RunConfig.from_dict(saved["flags"]).data_seed}
    adopted = config.with_values(**{name: trained[name] for name in ADOPTED if name not in explicit})
    flat, acting = config.to_dict(), {flag.name for flag in FLAGS if not flag.acts or CONDITIONS[flag.acts][1](adopted)}
    named = [name for name in (*TRAINED, "model_name_or_path", "data_seed") if name in explicit & acting and flat[name] != trained[name]]
    problems = [f"--{name}={_as_text(flat[name])}: {path} was trained with {_as_text(trained[name])}; leave the flag out" for name in named]
    return adopted.with_values(**{name: trained[name] for name in TRAINED if name not in acting}), problems


def effects(config: RunConfig, explicit: frozenset[str]) -> list[str]:
    """Remarks on inert flags of the release.

    Raises:
        ConfigError: a flag of ours was given that has no effect in this run.
    """
    inert = [flag for flag in FLAGS if flag.acts and flag.name in explicit and not CONDITIONS[flag.acts][1](config)]
    problems = [
        f"--{flag.name}: has no effect in this run, it needs {CONDITIONS[flag.acts or ''][0]}; leave it out" for flag in inert if flag.ours
    ]
    if problems:
        raise ConfigError(*problems)
    names = [f"--{flag.name}" for flag in inert if not flag.ours]
    return [f"no effect in this run: {', '.join(names)}"] if names else []


def _unknown_flag(word: str) -> str:
    if not word.startswith("--"):
        return f"{word}: not a flag; flags are written --name=value"
    name = word[2:].split("=")[0]
    return f"--{name}: no such flag{nearest(name, [flag.name for flag in FLAGS])}; see --help"


def convert(name: str, raw: Any) -> Any:
    """Text or a YAML scalar -> the flag's type.

    Raises:
        ValueError: the value is not of that type or not among the choices; the message is ready to print.
    """
    kind, text = kinds()[name], _as_text(raw)
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise ValueError(f"--{name}={text}: must be 0 or 1")
    if name in CHOICES and text not in CHOICES[name]:
        raise ValueError(unknown_name(text, CHOICES[name], name))
    try:
        return kind(text)
    except ValueError:
        word = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"--{name}={text}: must be {word}") from None


def read_yaml(path: Path) -> tuple[dict[str, str], list[str]]:
    """The flags that a YAML file sets, and its mistakes, each naming file and key."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # text only: YAML would read 0_1 as a number
    except OSError as error:
        return {}, [f"--config={path}: cannot be read ({error.strerror}); give a YAML file of flag: value"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return {}, [f"--config={path}: not YAML ({' '.join(str(error).split())})"]
    if not isinstance(loaded, dict):
        return {}, [f"--config={path}: must hold lines of flag: value"]
    known = {flag.name for flag in FLAGS}
    wrong = [name for name in loaded if name not in known]
    nested = [name for name in loaded if name in known and not isinstance(loaded[name], str)]
    mistakes = [f"--config={path}: {name}: no such flag{nearest(str(name), known)}" for name in wrong]
    mistakes += [f"--config={path}: {name}: must be a single value" for name in nested]
    unset = ("", "~", "null")
    usable = {name: value for name, value in loaded.items() if name in known and name not in nested and value not in unset}
    return usable, mistakes


def to_yaml(config: RunConfig) -> str:
    """A file that `--config` reads back to the same run: every flag that is set and has an effect in it."""
    acting = [flag.name for flag in FLAGS if flag.name not in SWITCHES and (not flag.acts or CONDITIONS[flag.acts][1](config))]
    flat = {name: config.to_dict()[name] for name in acting}
    plain = {name: int(value) if isinstance(value, bool) else value for name, value in flat.items() if value is not None}
    return yaml.safe_dump(plain, sort_keys=False)


def parse_export(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot export`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    parser = _Parser(prog="glot export", description="Write a run as a folder that SentenceTransformer(DIR, trust_remote_code=True) loads.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--head_only", action="store_true", help="name the backbone instead of storing its weights (megabytes)")
    parser.add_argument("--exclude_prompt", action="store_true", help="leave a prompt's tokens out of the pooling")
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens a text is cut to [as in training]")
    asked = parser.parse_args(argv)
    if asked.max_length is not None and asked.max_length < 1:
        raise ConfigError(f"--max_length={asked.max_length}: must be at least 1")
    return asked


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return str(value)
