"""Command lines: parse, call a recipe, turn errors into lines and exit codes. The only place that prints results or catches GlotError.

Exit codes: 0 done, 1 what was checked is not so, 2 a mistake in what was asked for, 130 stopped by the user, 143 by the system.
"""

import errno
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from glot import __version__, subcommands
from glot.distributed import processes
from glot.errors import DISK, GlotError, lacks_memory, memory_line, nearest
from glot.interrupts import Terminated, ended_by_terminate
from glot.progress import AboveBars, log
from glot.report.tables import run_summary
from glot.settings.commands import complete
from glot.settings.config import RunConfig
from glot.settings.flags import STRESS_DEFAULTS, Parsed, parse, to_yaml
from glot.subcommands import load_recipes

FIRST_STEPS = """Nothing was asked for. Without a network, on the embedded backbone:

  PROGRAM --task=stress --pooling_method=glot --tau=0.6                  the distractor stress test, under a minute
  PROGRAM --task=custom --train_file=train.csv --text_columns=text       your own rows (csv, tsv, jsonl, json, parquet)
  PROGRAM --task=cola --data_dir=MIRROR                                  a task from a local mirror; without the flag from the hub
  PROGRAM --help                                                         the common flags; --help_all lists all
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
    return _guarded(lambda: subcommands.do_demo(_words(argv), program))


COMMANDS: dict[str, tuple[Callable[[list[str], str], int | None], str]] = {
    "run": (main, "train and score one pooler (main.py)"),
    "stress": (stress_main, "the distractor stress test (diagnostic_stress_test.py)"),
    "demo": (demo_main, "five poolers on the stress test, a table and a figure"),
    "graph": (subcommands.do_graph, "how dense the token graph of a task is at each tau"),
    "cost": (subcommands.do_cost, "what poolers cost, beside LoRA and full fine-tuning: weights, time, memory"),
    "sweep": (subcommands.do_sweep, "many runs from a wandb sweep file or a study file"),
    "predict": (subcommands.do_predict, "label new texts with a trained run"),
    "encode": (subcommands.do_encode, "write the vectors of new texts"),
    "export": (subcommands.do_export, "a run as a folder that SentenceTransformer loads"),
    "explain": (subcommands.do_explain, "what a trained run weighs in a text, and what its answer depends on"),
    "report": (subcommands.do_report, "what a study's runs say: intervals, paired tests, floors, published figures"),
    "compare": (subcommands.do_compare, "what two runs differ in: flags, versions, scores, rows"),
    "runs": (subcommands.do_runs, "a table of finished runs"),
    "rerun": (subcommands.do_rerun, "do a finished run again, and compare"),
    "store": (subcommands.do_store, "stores of token states: list, verify, gc, rm"),
    "new": (subcommands.do_new, "a template of your own pooler, with its test"),
    "init": (subcommands.do_init, "a study file to begin with"),
    "doctor": (subcommands.do_doctor, "versions, devices, folders: what works here"),
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
    command = COMMANDS[words[0]][0]
    return _guarded(lambda: command(words[1:], f"glot {words[0]}"))


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
    try:
        _speak()
        with ended_by_terminate():
            code = work()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone; nobody is left to tell
        code = 0
    except Terminated:
        print(f"told to end; {GOES_ON}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"stopped; {GOES_ON}", file=sys.stderr)
        return 130
    except (GlotError, MemoryError, OSError, RuntimeError) as error:
        problems = _problems(error)
        if not problems:
            raise
        who = "" if processes().is_first else f"process {processes().rank}: "
        for problem in problems:
            print(f"{who}error: {_one_line(problem)}", file=sys.stderr)
        return 2
    return code or 0


LONGEST_NAME = 400
"""Characters of a word of a message; a longer one loses its middle. Paths of real files are shorter."""


def _one_line(problem: str) -> str:
    """A message as a terminal can show it: line breaks and other control characters escaped, endless names shortened."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in problem)
    return re.sub(rf"\S{{{LONGEST_NAME},}}", lambda found: f"{found[0][:120]}[..]{found[0][-80:]}", shown)


def _problems(error: Exception) -> list[str]:
    """What the user can mend, a line each; nothing where the error is a bug."""
    if isinstance(error, GlotError):
        return error.problems
    if lacks_memory(error):
        return [memory_line(error)]
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return [f"{error.filename}: is too long a name; choose a shorter one"]
    if isinstance(error, OSError) and error.errno in DISK:
        where = f"{error.filename}: " if error.filename else ""
        return [f"{where}cannot be written ({error.strerror}); make room, or name other folders"]
    return []


GOES_ON = "the same command, given again, goes on from what was saved"


def _run(parsed: Parsed) -> None:
    config = parsed.config
    if parsed.print_config:
        print(to_yaml(config), end="")
        return
    team = processes()
    if parsed.inert and team.is_first:
        print(f"no effect in this run: {', '.join(f'--{name}' for name in parsed.inert)}", file=sys.stderr)
    recipes = load_recipes()

    if config.output.dry_run:
        from glot.surveys import plan

        print(plan(config))
        return
    with nullcontext(config) if team.is_first else _as_helper(config) as config:
        result = recipes.choose_recipe(config)(config)
    team.leave()
    if team.is_first:
        if config.output.verbose and not config.output.estimate:
            print(run_summary(result), file=sys.stderr)
        print(json.dumps(result, indent=1, allow_nan=False))


@contextmanager
def _as_helper(config: RunConfig) -> Iterator[RunConfig]:
    """What the further processes of a run do: all of it, silently and into a folder that goes away. The first one keeps what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        yield config.with_values(output_dir=folder, save_dir=folder, report_to="none", verbose=False)
