"""The command lines of `glot`'s commands beside `run`: what each takes."""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from glot.errors import ConfigError
from glot.locate import expand_user
from glot.settings.config import RunConfig
from glot.settings.flags import Parser, parse, parse_shared
from glot.settings.index import flag_facts


def given_path(text: str) -> Path:
    """A path as an argument; its `~` is the home folder, which a shell leaves alone behind `=`.

    Raises:
        ArgumentTypeError: no text, as where a variable of the shell is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return expand_user(text)


def _home(text: str) -> str:
    return str(given_path(text))


INPUT = "csv, tsv, jsonl, json or parquet, also .gz; - = one text or JSON object per line of standard input"


def parse_export(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot export`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    parser = Parser(prog="glot export", description="Write a run as a folder that SentenceTransformer(DIR, trust_remote_code=True) loads.")
    parser.add_argument("run", type=given_path, help="folder of a finished run")
    parser.add_argument("--to", type=given_path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--head_only", action="store_true", help="name the backbone instead of storing its weights (megabytes)")
    parser.add_argument("--exclude_prompt", action="store_true", help="leave a prompt's tokens out of the pooling")
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens a text is cut to [as in training]")
    _add_backbone(parser)
    _add_trust(parser)
    asked = parser.parse_args(argv)
    if asked.max_length is not None and asked.max_length < 1:
        raise ConfigError(f"--max_length={asked.max_length}: must be at least 1")
    return asked


def complete(names: list[str]) -> None:
    """Answer the shell's question for completions (`eval "$(register-python-argcomplete glot)"`), and leave.

    Args:
        names: of the commands.
    """
    import argcomplete

    parser = Parser(prog="glot", add_help=False)
    commands = parser.add_subparsers()
    for name in names:
        own = commands.add_parser(name, add_help=False)
        flags = flag_facts() if name in ("run", "stress", "graph", "doctor", "encode") else {}
        for flag, facts in flags.items():
            own.add_argument(f"--{flag}", choices=facts.choices or None)
    argcomplete.autocomplete(parser)


def parse_predict(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot predict`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    about = "Label new texts with a trained run: prediction, a score per class (or the cosine), and the input's own columns."
    parser = Parser(prog="glot predict", description=about)
    parser.add_argument("run", type=given_path, help="folder of a finished run")
    _add_streams(parser, "csv, jsonl or parquet; - = JSON lines on standard output [-]")
    return _checked(parser.parse_args(argv))


def parse_encode(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line of `glot encode`, and the words that are flags of `main.py` (a pooler without a run).

    Raises:
        ConfigError: a missing or malformed argument.
    """
    about = "Write the vectors of new texts, by a trained run or by a pooler without training (--pooling_method=mean ...)."
    parser = Parser(prog="glot encode", description=about, allow_abbrev=False)
    parser.add_argument("run", type=given_path, nargs="?", help="folder of a finished run; without one, flags of main.py say which pooler")
    _add_streams(parser, "npy, jsonl or parquet; - = JSON lines on standard output [-]")
    parser.add_argument("--normalize", type=int, choices=(0, 1), default=1, help="1 = vectors of length one [1]")
    asked, others = parser.parse_known_args(_with_values(argv))
    return _checked(asked), others


def _with_values(words: list[str]) -> list[str]:
    """`--tau 0.6` as `--tau=0.6` for flags of `main.py`, whose values would be taken for the run."""
    joined: list[str] = []
    for word in words:
        before = joined[-1] if joined else ""
        if before.startswith("--") and before.removeprefix("--") in flag_facts() and not word.startswith("--"):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def parse_new(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot new`."""
    parser = Parser(prog="glot new", description="Write a commented template, with a test of its own.")
    parser.add_argument("kind", choices=("pooler",))
    parser.add_argument("file", help="new file, e.g. my_pooler.py")
    return parser.parse_args(argv)


def parse_init(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot init`."""
    parser = Parser(prog="glot init", description="Write a commented study file.")
    parser.add_argument("file", help="new file, e.g. study.yaml")
    return parser.parse_args(argv)


def parse_runs(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot runs`."""
    parser = Parser(prog="glot runs", description="A table of finished runs: date, task, pooler, score, floor.")
    parser.add_argument("folder", type=given_path, nargs="?", default=Path("runs"), help="that holds run folders [runs]")
    parser.add_argument(
        "--sort", default="date", metavar="COLUMN", help="date, task, model, pooler, seed, metric, score, floor or folder [date]"
    )
    parser.add_argument("--csv", action="store_true", help="as CSV")
    return parser.parse_args(argv)


def parse_rerun(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot rerun`."""
    parser = Parser(prog="glot rerun", description="Do a finished run again, into a new folder.")
    parser.add_argument("run", type=given_path, help="folder of the finished run")
    parser.add_argument("--check", action="store_true", help="compare weights, predictions and scores; exit code 1 where they differ")
    parser.add_argument("--output_dir", type=_home, metavar="DIR", help="where the new folder is made [beside the old one]")
    _add_trust(parser)
    return parser.parse_args(argv)


def parse_store(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot store`."""
    parser = Parser(prog="glot store", description="Stores of token states: list them, verify their bytes, remove them.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="list|verify|gc|rm")
    verbs = {
        "list": "a table: model, layer, texts, size, which runs use it",
        "verify": "compare with the checksums; exit code 1 where a store is damaged",
        "gc": "remove stores that no run folder names and nobody is writing",
        "rm": "remove stores by name",
    }
    for name, text in verbs.items():
        own = commands.add_parser(name, help=text, description=text)
        own.add_argument(
            "--store_dir", type=given_path, default=Path(os.environ.get("GLOT_STORE_DIR") or "data/hidden"), help="[data/hidden]"
        )
        if name in ("verify", "rm"):
            own.add_argument("names", nargs="*", help="of the stores" + " [all]" * (name == "verify"))
        if name in ("list", "gc"):
            own.add_argument("--output_dir", type=given_path, default=Path("runs"), help="where run folders are looked for [runs]")
        if name == "verify":
            own.add_argument("--adopt", action="store_true", help="give stores of older versions the checksums of what they hold now")
        if name == "gc":
            own.add_argument("--dry_run", action="store_true", help="say what would be removed, and stop")
    return parser.parse_args(argv)


def parse_report(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot report`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    about = "Statistics of a study, or a table of the runs and seeds under any other folder."
    parser = Parser(prog="glot report", description=about)
    text = "a study's folder (it holds study.json), or one that holds run folders; several, and single runs, with --html"
    parser.add_argument("folders", type=given_path, nargs="+", metavar="folder", help=text)
    parser.add_argument("--html", type=given_path, metavar="FILE", help="write one page that stands alone")
    asked = parser.parse_args(argv)
    if asked.html is None and len(asked.folders) > 1:
        raise ConfigError("glot report: several folders need --html")
    return asked


def parse_compare(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot compare`."""
    about = "What two runs differ in: flags, versions, scores, and which rows got another answer."
    parser = Parser(prog="glot compare", description=about)
    parser.add_argument("first", type=given_path, help="folder of a finished run")
    parser.add_argument("second", type=given_path, help="folder of another one")
    parser.add_argument("--html", type=given_path, metavar="FILE", help="write a page that stands alone")
    return parser.parse_args(argv)


class CostAsked(NamedTuple):
    """The command line of `glot cost`: flags that all arms share, which of them were given, names of arms, and seeds to score with."""

    config: RunConfig
    explicit: frozenset[str]
    arms: str | None
    quality: bool


def parse_cost(argv: list[str]) -> CostAsked:
    """The command line of `glot cost`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    about = (
        "Measure what poolers on stored states cost, beside a backbone that is trained: weights, time, memory, inference by its parts. "
        "Flags of main.py say task, backbone and sizes."
    )
    parser = Parser(prog="glot cost", description=about, allow_abbrev=False)
    parser.add_argument(
        "--arms", metavar="NAMES", help="poolers, probe, lora or full, with commas [mean,probe,adapool,glot,crossglot,lora,full]"
    )
    parser.add_argument(
        "--quality", choices=("0", "1"), default="0", help="1 = also train every arm, tuned, over --seeds, and score it [0]"
    )
    asked, words = parser.parse_known_args(argv)
    config, explicit = parse_shared(words, "glot cost")
    if asked.quality == "1" and config.train.seeds is None:
        config = config.with_values(seeds=str(config.train.seed))
    return CostAsked(config, explicit, asked.arms, asked.quality == "1")


def parse_explain(argv: list[str]) -> argparse.Namespace:
    """The command line of `glot explain`.

    Raises:
        ConfigError: a missing or malformed argument.
    """
    about = "Show what a trained run weighs and joins in a text, and what its answer becomes without a token, a word, or the edges."
    parser = Parser(prog="glot explain", description=about, allow_abbrev=False)
    parser.add_argument("run", type=given_path, help="folder of a finished run")
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument("--pair", action="append", default=[], nargs=2, metavar="TEXT", help="both texts of a pair; repeatable")
    parser.add_argument("--rows", metavar="I,J", help="rows of the run's evaluation split, counted from 0, as in its predictions.csv")
    text = "over its evaluation split: where weight goes, and whether leaving out agrees; the name of the split, such as validation"
    parser.add_argument("--split", metavar="NAME", help=text)
    parser.add_argument("--limit", type=int, metavar="N", help="rows of --split [200]")
    parser.add_argument(
        "--figure5", action="store_true", help="the figure of --rows and --compare, as the paper's; --out names it [figure5.png]"
    )
    parser.add_argument("--compare", metavar="RUNS", help="further runs on the same texts, with commas between")
    parser.add_argument("--html", type=given_path, metavar="FILE", help="a page that stands alone")
    parser.add_argument("--out", type=given_path, metavar="FILE", help="png, pdf, svg (numbered with several texts) or json")
    parser.add_argument("--device", default="auto", help="as in main.py [auto]")
    _add_backbone(parser)
    _add_trust(parser)
    asked = parser.parse_args(argv)
    if not (asked.text or asked.pair or asked.rows or asked.split):
        raise ConfigError("glot explain: give --text, --pair, --rows or --split")
    if asked.split and (asked.text or asked.pair or asked.rows or asked.html):
        raise ConfigError("--split: is over many texts; leave --text, --pair, --rows and --html out")
    if asked.limit is not None and (asked.limit < 1 or not asked.split):
        why = "must be at least 1" if asked.limit < 1 else "has no effect without --split; leave it out"
        raise ConfigError(f"--limit={asked.limit}: {why}")
    asked.limit = asked.limit or 200
    if asked.figure5 and asked.out is not None and asked.out.suffix == ".json":
        raise ConfigError(f"--out={asked.out}: with --figure5 name a png, pdf or svg")
    if asked.figure5 and not asked.rows:
        raise ConfigError("--figure5: draws rows of the evaluation split; name them with --rows")
    if asked.text and asked.pair:
        raise ConfigError("--pair: a run takes either texts or pairs; leave one of --text and --pair out")
    return asked


def parse_plain_pooler(words: list[str]) -> RunConfig:
    """The configuration of a pooler without a run, from flags of `main.py`; `--max_length` is the length that counts here.

    Raises:
        ConfigError: see `parse`.
    """
    renamed = [word.replace("--max_length", "--mteb_max_length", 1) for word in words]
    parsed = parse(["--task=mteb", *renamed], "glot encode", {"pooling_method": "mean"})
    if parsed.inert:
        raise ConfigError(*(f"--{name}: has no effect without training; leave it out" for name in parsed.inert))
    return parsed.config


def _add_trust(parser: argparse.ArgumentParser) -> None:
    text = "1 = run the pooler's own code that the run carries, though it was never trained with here [0]"
    parser.add_argument("--trust_pooler", type=int, choices=(0, 1), default=0, help=text)
    text = "1 = run code that comes with the backbone; what the run's configuration says of it does not count [0]"
    parser.add_argument("--trust_remote_code", type=int, choices=(0, 1), default=0, help=text)


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="DIR", help="where the run's backbone is now, if it was moved; its files must be the same")


def _add_streams(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--input", required=True, metavar="FILE", help=INPUT)
    parser.add_argument("--output", type=_home, default="-", metavar="FILE", help=output)
    parser.add_argument("--text_columns", metavar="NAMES", help="one or two columns of texts [those of the run's training]")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="texts that pass the backbone together [32]")
    parser.add_argument("--device", default="auto", help="as in main.py [auto]")
    parser.add_argument("--overwrite", type=int, choices=(0, 1), default=0, help="1 = replace --output [0]")
    _add_backbone(parser)
    _add_trust(parser)


def _checked(asked: argparse.Namespace) -> argparse.Namespace:
    if asked.batch_size < 1:
        raise ConfigError(f"--batch_size={asked.batch_size}: must be at least 1")
    return asked
