"""The command line and YAML files on one side, RunConfig on the other. What is known of a flag stands beside its field (`sections`).

Order of precedence: default < YAML file (in the order given) < explicit flag.
"""

import argparse
import glob
import os
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from glot.errors import CheckpointError, ConfigError, nearest, unknown_name
from glot.locate import expand_user
from glot.settings.checks import check
from glot.settings.choices import is_own_name
from glot.settings.config import RunConfig, read_config, read_saved
from glot.settings.effects import acting_flags, inert_flags
from glot.settings.facts import GROUPS, ORIGIN, WEIGHTS, refused_choice
from glot.settings.index import KIND_WORDS, flag_facts, kinds
from glot.settings.strict_yaml import joined, load_texts, yaml_reason
from glot.utf8 import is_utf8

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
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


class Parsed(NamedTuple):
    """A resolved command line.

    Attributes:
        config: the run.
        explicit: the flags that were given.
        inert: those of them that do nothing in this run (all of the release; one of ours is an error).
        print_config: whether only to print.
    """

    config: RunConfig
    explicit: frozenset[str]
    inert: tuple[str, ...]
    print_config: bool


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ours to print."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(f"{message}; see {self.prog} --help")


EXAMPLES = """examples:
  PROGRAM --task=stress --pooling_method=glot --tau=0.6 --epochs=3
  PROGRAM --task=cola --data_dir=MIRROR --pooling_method=adapool --seeds=0..4
  PROGRAM --task=custom --train_file=train.csv --text_columns=text --label_column=label
  PROGRAM --task=mteb --checkpoint_path=runs/my-run --mteb_task=STSBenchmark

Trains a pooler on the token states of a frozen language model. In braces: choices; in brackets: default. --help_all: rare flags too."""


ABOUT = {
    "glot demo": "Five poolers on the stress test: a table and a figure.\n\nexample:\n  glot demo --output_dir=runs",
    "glot graph": "How dense the token graph of a task is at each tau.\n\nexample:\n  glot graph --task=cola --data_dir=MIRROR --tau=0.8",
    "glot doctor": "What works on this machine.\n\nexample:\n  glot doctor --model_name_or_path=minilm",
}
"""Program -> its own description, in place of `EXAMPLES`."""
DEMO_FLAGS = {"model_name_or_path", "trust_remote_code", "device", "output_dir", "store_dir", "overwrite", "verbose"}
"""All that `glot demo` takes."""


def make_parser(program: str, defaults: dict[str, Any], show_all: bool = False) -> argparse.ArgumentParser:
    """The parser behind both programs; every value stays text until `parse` converts it. Rare flags are shown with `show_all` alone."""
    about, form = ABOUT.get(program, EXAMPLES.replace("PROGRAM", program)), argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program, allow_abbrev=False, usage=f"{program} [--flag=value ...]", description=about, formatter_class=form)
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for name, facts in flag_facts().items():
        allowed = f" {{{', '.join(facts.choices)}}}" if facts.choices else ""
        shown = "unset" if defaults[name] is None else _as_text(defaults[name])
        hidden = name not in DEMO_FLAGS if program == "glot demo" else facts.rare
        text = f"{facts.help}{allowed} [{shown}]".replace("%", "%%") if show_all or not hidden else argparse.SUPPRESS
        optional: dict[str, Any] = {"nargs": "?", "const": "1"} if facts.switch else {}
        metavar = kinds()[name].__name__.upper().replace("BOOL", "0|1")
        groups[facts.group].add_argument(f"--{name}", metavar=metavar, help=text, default=argparse.SUPPRESS, **optional)
    files = parser.add_argument_group("configuration files")
    files.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML of flag: value, repeatable; default < YAML < flag"
    )
    files.add_argument("--print_config", action="store_true", help="print the resolved configuration as YAML and stop")
    parser.add_argument("--help_all", action="store_true", help="show every flag and exit")
    return parser


def parse(argv: list[str], program: str = "main.py", defaults: dict[str, Any] | None = None) -> Parsed:
    """Resolve a command line.

    Raises:
        ConfigError: every mistake that can be found without reading data or a model, all in one.
    """
    config, explicit, problems, print_config, defaulted = _read_words(argv, program, defaults)
    if config.data.task == "mteb" and not problems:
        config, problems = adopt_checkpoints(config, set(explicit))
    told = {_flag_of(problem) for problem in problems}  # what the default of a flag that was mistaken lacks is no second mistake
    problems += [problem for problem in _check_paths_too(config) if _flag_of(problem) not in told]
    if problems:
        raise ConfigError(*problems)
    return Parsed(config, explicit, inert_flags(config, explicit - defaulted), print_config)


def _flag_of(problem: str) -> str:
    """What a mistake's line begins with: `--flag`, of `--flag=value: ...` too."""
    return problem.partition(":")[0].partition("=")[0]


def parse_shared(argv: list[str], program: str) -> tuple[RunConfig, frozenset[str]]:
    """The flags that several configurations are made of, and which of them were given: whether they act is for those to say.

    Raises:
        ConfigError: a flag that is unknown, or a value that it does not take.
    """
    config, explicit, problems, print_config, _ = _read_words(argv, program, None)
    if print_config:
        problems.append(f"--print_config: is for one run; {program} has several")
    if problems:
        raise ConfigError(*problems)
    return config, explicit


class Words(NamedTuple):
    """A command line as it was given.

    Attributes:
        config: what words and files make.
        explicit: the flags that were given.
        problems: mistakes in them.
        print_config: whether only to print.
        defaulted: those of `explicit` that a file gives with their default, which need not have an effect.
    """

    config: RunConfig
    explicit: frozenset[str]
    problems: list[str]
    print_config: bool
    defaulted: frozenset[str]


def _read_words(argv: list[str], program: str, defaults: dict[str, Any] | None) -> Words:
    """What words and files make."""
    _refuse_dashes(argv)
    base = RunConfig().with_values(**(defaults or {})).to_dict()
    spaces, unknown = make_parser(program, base).parse_known_args(argv)
    typed = vars(spaces)
    if typed.pop("help_all"):
        make_parser(program, base, show_all=True).print_help()
        raise SystemExit(0)
    files, print_config = typed.pop("config"), typed.pop("print_config")
    problems = [_unknown_flag(word) for word in unknown]
    variables = {name: facts.environment for name, facts in flag_facts().items() if facts.environment}
    given = {name: os.environ[variable] for name, variable in variables.items() if os.environ.get(variable)}
    explicit: dict[str, str] = {}
    for file in files:
        from_file, mistakes = read_yaml(expand_user(file))
        explicit.update(from_file)
        problems += mistakes
    explicit.update(typed)
    if is_task_file(explicit.get("task", "")):
        explicit = {**read_task_file(expand_user(explicit["task"]), problems), **explicit, "task": "custom"}
    values: dict[str, Any] = {}
    for name, raw in {**given, **explicit}.items():
        try:
            values[name] = convert(name, raw)
        except ValueError as error:
            problems.append(str(error))
    if values.get("finetune_backbone", "0") != "0" and "precompute_hidden_states" not in explicit:
        values["precompute_hidden_states"] = False
    if values.get("task") == "embedding" and "pooling_method" not in explicit:
        values["pooling_method"] = "glot"  # the release's default, max, has no weights to train
    config = RunConfig.from_dict({**base, **values})
    written = config.to_dict()  # a file that --print_config wrote holds every flag: there a default says nothing
    defaulted = frozenset(name for name in explicit if name not in typed and name in base and written[name] == base[name])
    return Words(config, frozenset(explicit), problems, print_config, defaulted)


def _refuse_dashes(argv: list[str]) -> None:
    """`--flag=--`, whose value argparse would take for its own sign."""
    for word in argv:
        if word.endswith("=--"):
            raise ConfigError(f"{word}: must have a value")


def _check_paths_too(config: RunConfig) -> list[str]:
    """The mistakes of a configuration, names that the file system refuses among them."""
    try:
        return check(config)
    except OSError as error:
        return [f"{error.filename}: cannot be looked up ({error.strerror}); choose another name"]


def brought(*kinds_of: str) -> list[str]:
    """The flags that a checkpoint brings, of the given kinds."""
    return [name for name, facts in flag_facts().items() if facts.brought in kinds_of]


def adopt_checkpoints(config: RunConfig, explicit: set[str]) -> tuple[RunConfig, list[str]]:
    """The configuration with what the first checkpoint was trained with, and the mistakes of all. The others bring their own later."""
    paths, given = config.mteb.checkpoints, f"--checkpoint_path={config.mteb.checkpoint_path}"
    parts = config.mteb.checkpoint_path.split(",")
    if 1 < len(parts) > len(paths) and not any("," in str(path) for path in paths):
        return config, [f"{given}: has nothing between two commas, or behind the last; leave the comma out"]
    adopted = [adopt_checkpoint(config, path, explicit) for path in paths]
    problems = [problem for _, wrong in adopted for problem in wrong]
    problems += [f"{given}: {path} is named twice" for place, path in enumerate(paths) if path in paths[:place]]
    bare = [path for path in paths if path.suffix == ".pth" and not path.with_name(f"{path.name}.json").exists()]
    if 0 < len(bare) < len(paths):
        problems.append(f"{given}: {bare[0]} says nothing of its pooler, the others do; score it apart from them")
    if config.mteb.mteb_poolers and adopted:
        own = sorted((explicit & set(brought(WEIGHTS))) - {"pooling_method"})
        problems += [
            f"--{name}: checkpoints bring their own, and --mteb_poolers beside them take the default; leave it out" for name in own
        ]
    if config.mteb.mteb_poolers and not adopted and "pooling_method" in explicit:
        problems.append("--pooling_method: --mteb_poolers says which poolers are scored; leave it out")
    return adopted[0][0] if adopted else config, problems


def adopt_checkpoint(config: RunConfig, path: Path, explicit: set[str]) -> tuple[RunConfig, list[str]]:
    """The configuration with what a checkpoint was trained with, and a line for every given flag that contradicts it.

    A bare `.pth` says nothing of itself: then all flags stay, and sizes are read off its shapes later.
    """
    try:
        saved = read_saved(path)
    except CheckpointError as error:
        return config, [f"--checkpoint_path={error}"]
    if saved is None:
        return config, []
    trained = {**saved["flags"], "data_seed": RunConfig.from_dict(saved["flags"]).data_seed}
    weights = brought(WEIGHTS)
    adopted = config.with_values(**{name: trained[name] for name in brought(WEIGHTS, ORIGIN) if name not in explicit and name in trained})
    flat, acting = config.to_dict(), set(acting_flags(adopted))
    fixed = [name for name in (*weights, "model_name_or_path", "data_seed") if name in explicit & acting & trained.keys()]
    named = [name for name in fixed if flat[name] != trained[name]]
    if "model_name_or_path" in named and expand_user(config.backbone.model_name_or_path).is_dir():
        named.remove("model_name_or_path")  # where the backbone is now; its files are compared when it is opened
    problems = [f"--{name}={_as_text(flat[name])}: {path} was trained with {_as_text(trained[name])}; leave the flag out" for name in named]
    return adopted.with_values(**{name: trained[name] for name in weights if name not in acting and name in trained}), problems


ELSEWHERE = {
    "dataset": "task",
    "dropout_rate": "dropout",
    "learning_rate": "lr",
    "max_seq_length": "max_length",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "pooler": "pooling_method",
    "pooling": "pooling_method",
    "pooling_mode": "pooling_method",
}
"""A flag's name in other libraries -> here, where spelling would suggest another."""


def _unknown_flag(word: str) -> str:
    if not word.startswith("--"):
        return f"{word}: not a flag; flags are written --name=value"
    name = word[2:].split("=")[0]
    meant = f" (did you mean {ELSEWHERE[name]!r}?)" if name in ELSEWHERE else nearest(name, flag_facts())
    return f"--{name}: no such flag{meant}; see --help"


FOLDERS = ("output_dir", "store_dir", "save_dir", "data_dir")
"""Flags whose `~` is the home folder; names of files and models are looked up with it where they are read."""


def convert(name: str, raw: Any) -> Any:
    """Text or a YAML scalar -> the flag's type.

    Raises:
        ValueError: the value is not of that type or not among the choices; the message is ready to print.
    """
    kind, text = kinds()[name], _as_text(raw)
    if "\0" in text or not is_utf8(text):
        raise ValueError(f"--{name}={ascii(text)[1:-1]}: is not UTF-8 text; choose another name")
    if not text and kind is str and not flag_facts()[name].choices and name != "checkpoint_path":  # the release takes that one empty
        raise ValueError(f"--{name}=: is empty; give a value, or leave the flag out")
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise ValueError(f"--{name}={text}: must be 0 or 1")
    facts = flag_facts()[name]
    text, choices = facts.aliases.get(text.lower(), text), facts.choices
    text = str(expand_user(text)) if name in FOLDERS else text  # a shell leaves the ~ of --flag=~/x alone
    refused = refused_choice(facts, text)
    if refused is not None and not (facts.own and is_own_name(text)):
        raise ValueError(unknown_name(refused, choices, name))
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{name}={text}: must be {KIND_WORDS[kind]}") from None


def read_yaml(path: Path) -> tuple[dict[str, str], list[str]]:
    """The flags that a YAML file sets, and its mistakes, each naming file and key."""
    try:
        loaded = load_texts(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"--config={path}: cannot be read ({error.strerror}); give a YAML file of flag: value"]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, [f"--config={path}: {yaml_reason(error)}"]
    if isinstance(loaded, dict) and {"flags", "resolved"} <= loaded.keys():
        return _read_run(path)
    if not isinstance(loaded, dict):
        return {}, [f"--config={path}: must hold lines of flag: value"]
    known = flag_facts().keys()
    loaded = {name: joined(value) if kinds().get(name) is str else value for name, value in loaded.items()}
    wrong = [name for name in loaded if name not in known]
    nested = [name for name in loaded if name in known and not isinstance(loaded[name], str)]
    mistakes = [f"--config={path}: {name}: no such flag{nearest(str(name), known)}" for name in wrong]
    mistakes += [f"--config={path}: {name}: must be a single value" for name in nested]
    unset = ("", "~", "null")
    usable = {name: value for name, value in loaded.items() if name in known and name not in nested and value not in unset}
    return usable, mistakes


def _read_run(path: Path) -> tuple[dict[str, str], list[str]]:
    """The flags of a run, from its `config.json`; whose code may run is for this command to say."""
    try:
        config = RunConfig.from_dict({**read_config(path)["flags"], "trust_remote_code": False, "trust_pooler": False})
    except (CheckpointError, ConfigError) as error:
        return {}, [f"--config={error}"]
    return {name: _as_text(value) for name, value in yaml.safe_load(to_yaml(config)).items()}, []


TASK_FILES = (".yaml", ".yml")
FILE_FLAGS = ("train_file", "eval_file")


def is_task_file(task: str) -> bool:
    """Whether a value of `--task` names a file with a custom task's flags."""
    return task.endswith(TASK_FILES)


def read_task_file(path: Path, problems: list[str]) -> dict[str, str]:
    """The flags of a custom task that is kept in a file.

    The task is called by the file's name. Its data are found from the current folder, or else beside the file.

    Raises:
        ConfigError: mistakes in the file, behind the `problems` so far: what is missing because of them is no second mistake.
    """
    values, mistakes = read_yaml(path)
    mistakes = [mistake.replace("--config=", "--task=", 1) for mistake in mistakes]
    if values.pop("task", "custom") != "custom":
        mistakes.append(f"--task={path}: task: must be custom, or left out")
    if mistakes:
        raise ConfigError(*problems, *mistakes)
    found = {flag: _beside(path.parent, values[flag]) for flag in FILE_FLAGS if flag in values}
    return {"task_name": path.stem, **values, **found}


def _beside(folder: Path, files: str) -> str:
    """Files, patterns or a comma list of them, each as it is where it leads to something, else beside the task file."""
    if _leads(files):
        return files
    if _leads(str(folder / files)):
        return str(folder / files)
    parts = [part.strip() for part in files.split(",")]
    return ",".join(str(folder / part) if not _leads(part) and _leads(str(folder / part)) else part for part in parts)


def _leads(file: str) -> bool:
    return Path(file).exists() or bool(glob.glob(file))  # noqa: PTH207 - Path.glob takes no absolute pattern


def to_yaml(config: RunConfig) -> str:
    """A file that `--config` reads back to the same run: every flag that is set and has an effect in it."""
    acting = [name for name in acting_flags(config) if not flag_facts()[name].switch]
    flat = {name: config.to_dict()[name] for name in acting}
    plain = {name: int(value) if isinstance(value, bool) else value for name, value in flat.items() if value is not None}
    return yaml.safe_dump(plain, sort_keys=False)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return str(value)
