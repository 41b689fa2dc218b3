"""Command lines: parse, call a recipe, turn errors into lines and exit codes. The only place that prints results or catches GlotError.

Exit codes: 0 done, 1 what was checked is not so, 2 a mistake in what was asked for, 130 stopped by the user, 143 by the system.
"""

import errno
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from glot import __version__
from glot.distributed import processes
from glot.errors import ConfigError, GlotError, nearest, need
from glot.progress import AboveBars, log
from glot.report.tables import csv_text, markdown, run_summary
from glot.settings.commands import (
    complete,
    parse_encode,
    parse_export,
    parse_init,
    parse_new,
    parse_plain_pooler,
    parse_predict,
    parse_report,
    parse_rerun,
    parse_runs,
    parse_store,
)
from glot.settings.config import RunConfig
from glot.settings.flags import STRESS_DEFAULTS, Parsed, parse, to_yaml
from glot.trust import Trust

FIRST_STEPS = """Nothing was asked for. Without a network, on the embedded backbone:

  PROGRAM --task=stress --pooling_method=glot --tau=0.6                  the distractor stress test, under a minute
  PROGRAM --task=custom --train_file=train.csv --text_columns=text       your own rows (csv, tsv, jsonl, json, parquet)
  PROGRAM --task=cola --data_dir=MIRROR                                  a task from a local mirror; without the flag from the hub
  PROGRAM --help                                                         every flag
"""


def main(argv: list[str] | None = None, program: str = "main.py") -> int:
    """`main.py ...` and `glot run ...`."""
    words = _words(argv)
    if not words:
        print(FIRST_STEPS.replace("PROGRAM", "glot run" if program == "glot run" else "python main.py"))
        return 0
    return _guarded(lambda: _run(parse(words, program)))


def stress_main(argv: list[str] | None = None, program: str = "diagnostic_stress_test.py") -> int:
    """`diagnostic_stress_test.py ...` and `glot stress ...`."""
    return _guarded(lambda: _run(parse(_words(argv), program, STRESS_DEFAULTS)))


def demo_main(argv: list[str] | None = None, program: str = "glot demo") -> int:
    """`glot demo`: five poolers, one table, one figure."""
    return _guarded(lambda: _demo(parse(_words(argv), program)))


def graph_main(argv: list[str] | None = None, program: str = "glot graph") -> int:
    """`glot graph --task=...`: how dense the token graph is at each tau."""
    return _guarded(lambda: _graph(parse(_words(argv), program, {"pooling_method": "glot"})))


def sweep_main(argv: list[str] | None = None, program: str = "glot sweep") -> int:
    """`glot sweep FILE`: the runs of a wandb sweep file or a study file."""
    return _guarded(lambda: _sweep(_words(argv)))


def report_main(argv: list[str] | None = None, program: str = "glot report") -> int:
    """`glot report DIR`: statistics of a study's runs."""
    return _guarded(lambda: _report(_words(argv)))


def export_main(argv: list[str] | None = None, program: str = "glot export") -> int:
    """`glot export RUN --to DIR`: a run as a sentence-transformers model."""
    return _guarded(lambda: _export(_words(argv)))


def predict_main(argv: list[str] | None = None, program: str = "glot predict") -> int:
    """`glot predict RUN --input FILE --output FILE`: a trained run on new texts."""
    return _guarded(lambda: _predict(_words(argv)))


def encode_main(argv: list[str] | None = None, program: str = "glot encode") -> int:
    """`glot encode [RUN] --input FILE --output FILE`: vectors of new texts."""
    return _guarded(lambda: _encode(_words(argv)))


def runs_main(argv: list[str] | None = None, program: str = "glot runs") -> int:
    """`glot runs [DIR]`: a table of finished runs."""
    return _guarded(lambda: _runs(_words(argv)))


def rerun_main(argv: list[str] | None = None, program: str = "glot rerun") -> int:
    """`glot rerun RUN [--check]`: the same run again."""
    return _guarded(lambda: _rerun(_words(argv)))


def doctor_main(argv: list[str] | None = None, program: str = "glot doctor") -> int:
    """`glot doctor`: versions, devices, folders."""
    return _guarded(lambda: _doctor(parse(_words(argv), program)))


def store_main(argv: list[str] | None = None, program: str = "glot store") -> int:
    """`glot store list|verify|gc|rm`: the stores of token states."""
    return _guarded(lambda: _store(_words(argv)))


def new_main(argv: list[str] | None = None, program: str = "glot new") -> int:
    """`glot new pooler FILE`: a template with its test."""
    return _guarded(lambda: _write_starter("pooler", parse_new(_words(argv)).file))


def init_main(argv: list[str] | None = None, program: str = "glot init") -> int:
    """`glot init FILE`: a study to begin with."""
    return _guarded(lambda: _write_starter("study", parse_init(_words(argv)).file))


COMMANDS: dict[str, tuple[Callable[[list[str], str], int], str]] = {
    "run": (main, "train and score one pooler (main.py)"),
    "stress": (stress_main, "the distractor stress test (diagnostic_stress_test.py)"),
    "demo": (demo_main, "five poolers on the stress test, a table and a figure"),
    "graph": (graph_main, "how dense the token graph of a task is at each tau"),
    "sweep": (sweep_main, "many runs from a wandb sweep file or a study file"),
    "predict": (predict_main, "label new texts with a trained run"),
    "encode": (encode_main, "write the vectors of new texts"),
    "export": (export_main, "a run as a folder that SentenceTransformer loads"),
    "report": (report_main, "what a study's runs say: intervals, paired tests, floors, published figures"),
    "runs": (runs_main, "a table of finished runs"),
    "rerun": (rerun_main, "do a finished run again, and compare"),
    "store": (store_main, "stores of token states: list, verify, gc, rm"),
    "new": (new_main, "a template of your own pooler, with its test"),
    "init": (init_main, "a study file to begin with"),
    "doctor": (doctor_main, "versions, devices, folders: what works here"),
}
SHARED = ("run", "stress")
"""Commands that several processes can share."""


def glot_main(argv: list[str] | None = None) -> int:
    """`glot <command> ...`."""
    words = _words(argv)
    if "_ARGCOMPLETE" in os.environ:
        complete(list(COMMANDS))
    if words[:1] == ["--version"]:
        print(f"glot {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print("usage: glot <command> [--flags]   (glot <command> --help)\n")
        print("\n".join(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()))
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"glot: {words[0]}: no such command{nearest(words[0], COMMANDS)}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if processes().count > 1 and words[0] not in SHARED:
        print(f"glot {words[0]}: works in one process; start it without torchrun", file=sys.stderr)
        return 2
    return COMMANDS[words[0]][0](words[1:], f"glot {words[0]}")


def _speak() -> None:
    """Print what the package logs on stderr, one line per message."""
    if not any(isinstance(handler, AboveBars) for handler in log.handlers):
        log.addHandler(AboveBars())
        log.setLevel(logging.INFO)
        log.propagate = False


def _words(argv: list[str] | None) -> list[str]:
    return sys.argv[1:] if argv is None else argv


def _guarded(work: Callable[[], int | None]) -> int:
    """Run a command; its exit code is what it returns, 0 for nothing."""
    _speak()
    try:
        with _ended_by_terminate():
            code = work()
    except GlotError as error:
        who = "" if processes().is_first else f"process {processes().rank}: "
        for problem in error.problems:
            print(f"{who}error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}cannot be written ({error.strerror}); make room, or name other folders", file=sys.stderr)
        return 2
    except Terminated:
        print(f"told to end; {GOES_ON}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"stopped; {GOES_ON}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone; nobody is left to tell
        code = 0
    return code or 0


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a full disk, a quota or a read-only file system say."""
GOES_ON = "stores, sweeps and predictions go on where they were when the same command is given again; a training begins anew"


class Terminated(BaseException):
    """The system or a scheduler asked this process to end."""


@contextmanager
def _ended_by_terminate() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: files are closed, locks and temporary folders go."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(parsed: Parsed) -> None:
    config = parsed.config
    if parsed.print_config:
        print(to_yaml(config), end="")
        return
    team = processes()
    if parsed.inert and team.is_first:
        print(f"no effect in this run: {', '.join(f'--{name}' for name in parsed.inert)}", file=sys.stderr)
    recipes = _load_recipes()

    if config.output.dry_run:
        print(recipes.plan(config))
        return
    with nullcontext(config) if team.is_first else _as_helper(config) as config:
        result = recipes.choose_recipe(config)(config)
    team.leave()
    if team.is_first:
        if config.output.verbose and not config.output.estimate:
            print(run_summary(result), file=sys.stderr)
        print(json.dumps(result, indent=1, allow_nan=False))


def _load_recipes() -> ModuleType:
    """The recipes, with the bars and log lines of the libraries below switched off: this process is ours."""
    from glot import recipes

    recipes.quiet_libraries()
    return recipes


@contextmanager
def _as_helper(config: RunConfig) -> Iterator[RunConfig]:
    """What the further processes of a run do: all of it, silently and into a folder that goes away. The first one keeps what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        yield config.with_values(output_dir=folder, save_dir=folder, report_to="none", verbose=False)


DEMO_FLAGS = {"model_name_or_path", "trust_remote_code", "device", "output_dir", "store_dir", "overwrite", "verbose"}


def _demo(parsed: Parsed) -> None:
    fixed = sorted(parsed.explicit - DEMO_FLAGS)
    if fixed or parsed.print_config:
        names = fixed or ["print_config"]
        raise ConfigError(*(f"--{name}: the demo is always the same; it takes --{', --'.join(sorted(DEMO_FLAGS))}" for name in names))
    _load_recipes()
    from glot.study.demo import run_demo

    print(run_demo(parsed.config))


def _graph(parsed: Parsed) -> None:
    if parsed.config.graph.graph_adj not in ("threshold", "random"):
        raise ConfigError(f"--graph_adj={parsed.config.graph.graph_adj}: has no tau to look at; use threshold")
    recipes = _load_recipes()

    table, warning = recipes.run_graph(parsed.config)
    print(table)
    if warning:
        print(warning, file=sys.stderr)


def _sweep(words: list[str]) -> int:
    from glot.study import sweep

    asked = sweep.parse_sweep(words)
    seeds = sweep.sweep_seeds(asked.seeds)
    if asked.dry_run:
        print("\n".join(sweep.list_runs(asked.file, seeds)))
        return 0
    if asked.jobs < 1:
        raise ConfigError(f"--jobs={asked.jobs}: must be at least 1")
    _load_recipes()
    folder = sweep.run_study(asked.file, asked.output_dir, seeds, asked.jobs, sweep.SweepOptions(asked.retry, asked.overwrite))
    _report([str(folder)])
    failed = sweep.failed_runs(folder)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _report(words: list[str]) -> None:
    folder = parse_report(words).folder
    if (folder / "study.json").is_file():
        from glot.study import report as study

        print(study.write_report(folder))
        return
    from glot.study.runs import report_runs

    print(report_runs(folder))


def _runs(words: list[str]) -> None:
    asked = parse_runs(words)
    from glot.study.runs import COLUMNS, list_runs

    rows = [list(row) for row in list_runs(asked.folder, asked.sort)]
    if not rows:
        raise ConfigError(f"{asked.folder}: holds no finished run")
    print(csv_text(list(COLUMNS), rows) if asked.csv else markdown(list(COLUMNS), rows))


def _rerun(words: list[str]) -> int:
    asked = parse_rerun(words)
    _load_recipes()
    from glot.study.runs import rerun

    text, equal = rerun(asked.run, asked.output_dir, asked.check, _trust(asked))
    print(text)
    return 0 if equal else 1


def _store(words: list[str]) -> int:
    asked = parse_store(words)
    from glot.study import stores

    if asked.what == "list":
        rows = [list(row) for row in stores.list_stores(asked.store_dir, asked.output_dir)]
        print(markdown(list(stores.COLUMNS), rows))
    elif asked.what == "verify":
        lines, fine = stores.verify_stores(asked.store_dir, asked.names, asked.adopt)
        print("\n".join(lines))
        return 0 if fine else 1
    elif asked.what == "gc":
        print("\n".join(stores.collect_garbage(asked.store_dir, asked.output_dir, asked.dry_run)))
    else:
        print("\n".join(stores.remove_stores(asked.store_dir, asked.names)))
    return 0


def _doctor(parsed: Parsed) -> int:
    from glot.doctor import examine

    _load_recipes()
    broken = 0
    for finding in examine(parsed.config):
        print(f"{'BROKEN ' if finding.broken else '       '}{finding.what:22} {finding.found}")
        broken += finding.broken
    return 1 if broken else 0


def _write_starter(kind: str, file: str) -> None:
    from glot.starters import write_starter

    print(write_starter(kind, file))


def _predict(words: list[str]) -> None:
    asked = parse_predict(words)
    _load_recipes()
    from glot.new_texts import Streams, predict_file

    streams = Streams(asked.input, asked.output, asked.text_columns, asked.batch_size, bool(asked.overwrite))
    _done(predict_file(asked.run, streams, asked.device, _trust(asked)))


def _encode(words: list[str]) -> None:
    asked, others = parse_encode(words)
    if asked.run is not None and others:
        raise ConfigError(*(f"{word}: the run says which pooler and backbone; leave it out" for word in others))
    config = None if asked.run is not None else parse_plain_pooler([*others, f"--device={asked.device}"])
    _load_recipes()
    from glot import new_texts

    streams = new_texts.Streams(asked.input, asked.output, asked.text_columns, asked.batch_size, bool(asked.overwrite))
    streams.check(new_texts.ENCODED)
    if config is not None:
        encoder, column = new_texts.open_plain_encoder(config)
    else:
        encoder, column = new_texts.open_run_encoder(asked.run, asked.device, _trust(asked))
    names = (asked.text_columns or column).split(",")
    if len(names) > 1:
        raise ConfigError(f"--text_columns={asked.text_columns}: one column at a time has vectors; name one")
    _done(new_texts.encode_file(encoder, names[0], streams, bool(asked.normalize)))


def _trust(asked: Any) -> Trust:
    return Trust(bool(asked.trust_remote_code), bool(asked.trust_pooler))


def _done(line: str) -> None:
    """What was done, on stderr: standard output is for rows."""
    print(line, file=sys.stderr)


def _export(words: list[str]) -> None:
    asked = parse_export(words)
    need("sentence_transformers", "st", "glot export")
    _load_recipes()
    from glot.integrations.export import export_run

    print(export_run(asked.run, asked.to, asked.head_only, asked.max_length, asked.exclude_prompt, _trust(asked)))
