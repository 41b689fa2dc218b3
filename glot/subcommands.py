"""The commands beside `run` and `stress`: what each parses, calls and prints. `glot.cli` turns their errors into lines and exit codes."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from glot.errors import ConfigError, need
from glot.given import split_paths
from glot.report.tables import csv_text, markdown
from glot.settings.choices import EVALUATIONS
from glot.settings.commands import (
    parse_compare,
    parse_cost,
    parse_encode,
    parse_explain,
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
from glot.settings.flags import DEMO_FLAGS, parse
from glot.settings.seeds import parse_seeds
from glot.trust import Trust


def load_recipes() -> ModuleType:
    """The recipes, with the bars and log lines of the libraries below switched off: this process is ours."""
    from glot import recipes

    recipes.quiet_libraries()
    return recipes


def do_demo(words: list[str], program: str) -> None:
    """`glot demo`: five poolers, one table, one figure."""
    parsed = parse(words, program)
    fixed = sorted(parsed.explicit - DEMO_FLAGS)
    if fixed or parsed.print_config:
        names = fixed or ["print_config"]
        raise ConfigError(*(f"--{name}: the demo is always the same; it takes --{', --'.join(sorted(DEMO_FLAGS))}" for name in names))
    load_recipes()
    from glot.study.demo import run_demo

    print(run_demo(parsed.config))


def do_graph(words: list[str], program: str) -> None:
    """`glot graph --task=...`: how dense the token graph is at each tau."""
    parsed = parse(words, program, {"pooling_method": "glot"})
    if parsed.config.data.task in EVALUATIONS:
        raise ConfigError(f"--task={parsed.config.data.task}: has no texts of its own to look at; name a task that trains")
    if parsed.config.graph.graph_adj not in ("threshold", "random"):
        raise ConfigError(f"--graph_adj={parsed.config.graph.graph_adj}: has no tau to look at; use threshold")
    load_recipes()
    from glot.surveys import run_graph

    table, warning = run_graph(parsed.config)
    print(table)
    if warning:
        print(warning, file=sys.stderr)


def do_cost(words: list[str], program: str) -> None:
    """`glot cost --task=...`: what poolers cost, beside a backbone that is trained."""
    asked = parse_cost(words)
    load_recipes()
    from glot.study.cost import run_cost
    from glot.study.cost_arms import make_arms

    arms = make_arms(asked.config, asked.explicit, asked.arms, asked.quality)
    seeds = parse_seeds(asked.config.train.seeds or "") if asked.quality else None
    print(run_cost(arms, seeds, asked.explicit, asked.arms is None))


def do_sweep(words: list[str], program: str) -> int:
    """`glot sweep FILE`: the runs of a wandb sweep file or a study file."""
    from glot.study import sweep
    from glot.study.cluster import read_options

    asked = sweep.parse_sweep(words)
    seeds = sweep.sweep_seeds(asked.seeds)
    if asked.dry_run:
        print("\n".join(sweep.list_runs(asked.file, seeds)))
        return 0
    if asked.jobs < 1:
        raise ConfigError(f"--jobs={asked.jobs}: must be at least 1")
    options = read_options(asked.executor_options)
    if options and asked.executor == "processes":
        raise ConfigError(f"--executor_options={asked.executor_options}: has no effect without --executor=slurm; leave it out")
    load_recipes()
    how = sweep.SweepOptions(asked.retry, asked.overwrite, asked.executor, options)
    folder = sweep.run_study(asked.file, asked.output_dir, seeds, asked.jobs, how)
    do_report([str(folder)], "glot report")
    failed = sweep.failed_runs(folder)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    sweep.track_report(folder)
    return 1 if failed else 0


def do_explain(words: list[str], program: str) -> None:
    """`glot explain RUN --text ...`: what a run weighs, and what its answer depends on."""
    asked = parse_explain(words)
    load_recipes()
    from glot.explain.recipe import Asked, run_explain, texts_of_rows

    runs = [asked.run, *(split_paths(asked.compare) if asked.compare else [])]
    for place, run in enumerate(runs):
        if run.resolve() in [other.resolve() for other in runs[:place]]:
            raise ConfigError(f"--compare={asked.compare}: {run} is the same run twice; name others")
    if asked.split:
        from glot.explain.recipe import explain_split

        print(explain_split(Asked(runs, [], None, asked.out, _opening(asked)), asked.split, asked.limit))
        return
    texts = [(text,) for text in asked.text] + [tuple(pair) for pair in asked.pair]
    texts += texts_of_rows(asked.run, asked.rows) if asked.rows else []
    out = asked.out or (Path("figure5.png") if asked.figure5 else None)
    print(run_explain(Asked(runs, texts, asked.html, out, _opening(asked))))


def do_report(words: list[str], program: str) -> None:
    """`glot report DIR`: statistics of a study's runs, or a table of any other runs."""
    asked = parse_report(words)
    if asked.html is not None:
        from glot.study.pages import write_html

        print(write_html(asked.folders, asked.html))
        return
    (folder,) = asked.folders
    if (folder / "study.json").is_file():
        from glot.study import report as study

        print(study.write_report(folder))
        return
    from glot.study.runs import report_runs

    print(report_runs(folder))


def do_compare(words: list[str], program: str) -> None:
    """`glot compare RUN1 RUN2`: what two runs differ in."""
    asked = parse_compare(words)
    from glot.study import compare

    found = compare.compare_runs(asked.first, asked.second)
    if asked.html is not None:
        compare.write_comparison(found, asked.html)
    print(compare.in_words(found))


def do_runs(words: list[str], program: str) -> None:
    """`glot runs [DIR]`: a table of finished runs."""
    asked = parse_runs(words)
    from glot.study.runs import COLUMNS, list_runs

    rows = [list(row) for row in list_runs(asked.folder, asked.sort)]
    if not rows:
        raise ConfigError(f"{asked.folder}: holds no finished run")
    print(csv_text(list(COLUMNS), rows) if asked.csv else markdown(list(COLUMNS), rows))


def do_rerun(words: list[str], program: str) -> int:
    """`glot rerun RUN [--check]`: the same run again."""
    asked = parse_rerun(words)
    load_recipes()
    from glot.study.rerun import rerun

    text, equal = rerun(asked.run, asked.output_dir, asked.check, _trust(asked))
    print(text)
    return 0 if equal else 1


def do_store(words: list[str], program: str) -> int:
    """`glot store list|verify|gc|rm`: the stores of token states."""
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
        print(f"kept: stores of the runs under {asked.output_dir}; runs in other folders are not looked at", file=sys.stderr)
        print("\n".join(stores.collect_garbage(asked.store_dir, asked.output_dir, asked.dry_run)))
    else:
        print("\n".join(stores.remove_stores(asked.store_dir, asked.names)))
    return 0


def do_doctor(words: list[str], program: str) -> int:
    """`glot doctor`: versions, devices, folders."""
    parsed = parse(words, program)
    from glot.doctor import examine

    load_recipes()
    broken = 0
    for finding in examine(parsed.config):
        print(f"{'BROKEN ' if finding.broken else '       '}{finding.what:22} {finding.found}")
        broken += finding.broken
    return 1 if broken else 0


def do_new(words: list[str], program: str) -> None:
    """`glot new pooler FILE`: a template with its test."""
    from glot.starters import write_starter

    print(write_starter("pooler", parse_new(words).file))


def do_init(words: list[str], program: str) -> None:
    """`glot init FILE`: a study to begin with."""
    from glot.starters import write_starter

    print(write_starter("study", parse_init(words).file))


def do_predict(words: list[str], program: str) -> None:
    """`glot predict RUN --input FILE --output FILE`: a trained run on new texts."""
    asked = parse_predict(words)
    load_recipes()
    from glot.new_texts import Streams, predict_file

    streams = Streams(asked.input, asked.output, asked.text_columns, asked.batch_size, bool(asked.overwrite))
    _done(predict_file(asked.run, streams, _opening(asked)))


def do_encode(words: list[str], program: str) -> None:
    """`glot encode [RUN] --input FILE --output FILE`: vectors of new texts."""
    asked, others = parse_encode(words)
    if asked.run is not None and others:
        raise ConfigError(*(f"{word}: the run says which pooler and backbone; leave it out" for word in others))
    if asked.run is None and asked.backbone is not None:
        raise ConfigError(f"--backbone={asked.backbone}: is for a run; without one, --model_name_or_path says which backbone")
    config = None if asked.run is not None else parse_plain_pooler([*others, f"--device={asked.device}"])
    load_recipes()
    from glot import new_texts
    from glot.opening import load_encoder

    streams = new_texts.Streams(asked.input, asked.output, asked.text_columns, asked.batch_size, bool(asked.overwrite))
    name = new_texts.column_of(asked.run, streams)
    streams.check(new_texts.ENCODED, (name,))
    encoder = load_encoder(asked.run, **_opening(asked)) if config is None else new_texts.open_plain_encoder(config)
    _done(new_texts.encode_file(encoder, name, streams, bool(asked.normalize)))


def _opening(asked: Any) -> dict[str, Any]:
    """How a run is opened: options of `load_encoder`."""
    trust = _trust(asked)
    return {"device": asked.device, "trust_pooler": trust.pooler, "trust_remote_code": trust.remote_code, "backbone": asked.backbone}


def _trust(asked: Any) -> Trust:
    return Trust(bool(asked.trust_remote_code), bool(asked.trust_pooler))


def _done(line: str) -> None:
    """What was done, on stderr: standard output is for rows."""
    print(line, file=sys.stderr)


def do_export(words: list[str], program: str) -> None:
    """`glot export RUN --to DIR`: a run as a sentence-transformers model."""
    asked = parse_export(words)
    need("sentence_transformers", "st", "glot export")
    load_recipes()
    from glot.integrations.export import export_run

    print(export_run(asked.run, asked.to, asked.head_only, asked.max_length, asked.exclude_prompt, _trust(asked), asked.backbone))
