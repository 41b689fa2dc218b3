"""What the commands do, a straight line each. Start reading here.

run_task       text -> hidden states on disk -> pooler and head trained on them -> scores in a run folder
run_seeds      the same for several seeds on one store, with mean and spread
run_stack      several seeds in one pass
run_folds      a run per fold, with scores over all rows
run_stress     run_task on the stress test, with what shortcuts score and a heat map
run_embedding  run_task on pairs, with a checkpoint as the release knows it
run_mteb       a pooler, trained or not, on MTEB
run_estimate   tokens, bytes and hours of a store, before there is one
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from glot.data.tasks import training_loss
from glot.encoders import SharedPass, open_encoders, open_text_states
from glot.errors import DataError, GlotError, library_door, need, reason
from glot.nn.layers import LayeredPooler
from glot.nn.pooler import Pooler
from glot.nn.stack import StackedModel
from glot.progress import Clock, say, warn
from glot.report.graph_density import sample_density
from glot.report.signal import stress_facts
from glot.settings.choices import MTEB_CACHE
from glot.settings.config import RunConfig
from glot.settings.seeds import parse_seeds
from glot.states.backbone import quiet_library as quiet_models
from glot.states.tokens import estimate_store, find_source, settle_dtype
from glot.training.finish import finish_head
from glot.training.folders import RESULT, open_run_folder, write_somewhere
from glot.training.folds import fold_configs, join_folds
from glot.training.optimizer import fit_options, make_optimizer, moved_tensors
from glot.training.record import ModelRecord, StackRecord
from glot.training.released import check_released_file, released_name, save_released_file
from glot.training.result import Result, summarise
from glot.training.result_file import PREDICTIONS, SIDE_BY_SIDE, write_json, write_result
from glot.training.run import (
    close_run,
    find_finished,
    find_finished_stack,
    fingerprint_of,
    keep_epochs,
    load_inputs,
    make_loaders,
    make_model,
    make_state,
    open_run,
    own_device,
    read_labelled,
    read_texts,
    resolve,
    run_name,
    trained,
    trained_as,
)
from glot.training.splits import Loaders
from glot.training.switches import run_switches
from glot.training.tracking import resolve_report_to
from glot.training.train import fit
from glot.types import TokenSource


@run_switches()
def run_task(config: RunConfig, further: Callable[[Result], None] | None = None) -> Result:
    """Encode once, train a pooler, score it; writes the run folder and returns the result object of its `result.json`.

    `further` adds to the run folder and to the result before `result.json`, which is written last.
    """
    inputs = load_inputs(config)
    config, task = inputs.config, inputs.task
    run = open_run(config, inputs)
    batches = make_loaders(inputs)
    optimizer, train = make_optimizer(config, run.model, inputs.tokens), batches.train
    loss, options = training_loss(task, config.to_dict()), fit_options(config, task, optimizer, len(train))
    moved = moved_tensors(run.model, optimizer)
    keeper = keep_epochs(run, task, moved)
    record = ModelRecord(keeper, partial(batches.watch, run.model))
    state = make_state([run], inputs, moved, optimizer, options, record, train)

    def finish(found: Result, folder: Path) -> Result:
        """Predictions, scores and weights into a folder; a full disk brings another one."""
        with inputs.clock.phase("evaluate"):
            scores = batches.report(run.model, folder / PREDICTIONS)
        facts = task_facts(config, inputs.tokens, run.model.pooler) | found
        return close_run(replace(run, folder=folder), inputs, keeper.result, scores, facts, further)

    with trained(run):
        fit(inputs.team.wrap(trained_as(run.model, config, inputs.device)), train, loss, optimizer, record, options, state)
        found = finish_head(config, run.model, batches, inputs.clock)
        result = write_somewhere(run.folder, partial(finish, found), config.output.verbose and inputs.team.is_first)
    state.remove()
    return result


@run_switches()
def run_stack(configs: list[RunConfig]) -> list[Result]:
    """`run_task` for configurations that differ in their seed and name alone, in one pass over the batches of the first one's order.

    Each is written down as the single run that it equals: with its own seed, and the first one's order seed.
    """
    inputs = load_inputs(configs[0])
    config, task = inputs.config, inputs.task
    own = [{"seed": one.train.seed, "run_name": one.output.run_name, "output_dir": one.output.output_dir} for one in configs]
    runs = [open_run(config.with_values(**values, order_seed=config.order_seed), inputs) for values in own]
    stack = StackedModel([run.model for run in runs])
    batches = make_loaders(inputs)
    assert isinstance(batches, Loaders)
    optimizer = make_optimizer(config, stack, inputs.tokens)
    loss, train = torch.vmap(training_loss(task, config.to_dict()), (0, None)), batches.train
    options = fit_options(config, task, optimizer, len(train))
    moved = moved_tensors(stack, optimizer)
    keepers = [keep_epochs(run, task, [tensor[place] for tensor in moved]) for place, run in enumerate(runs)]
    record = StackRecord(keepers, partial(batches.watch_stack, stack))
    state = make_state(runs, inputs, moved, optimizer, options, record, train)
    with trained(*runs):
        with stack.unstacked([run.model for run in runs]):
            fit(stack, train, loss, optimizer, record, options, state)
        found = [finish_head(run.config, run.model, batches, inputs.clock) for run in runs]
        with inputs.clock.phase("evaluate"):
            if any(found):  # heads of another kind than the stack's
                scores = [batches.report(run.model, run.folder / PREDICTIONS) for run in runs]
            else:
                scores = batches.report_stack(stack, [run.folder / PREDICTIONS for run in runs])
        inputs.notes.append(f"{SIDE_BY_SIDE} with {len(runs) - 1} other seeds: seconds are those of all {len(runs)}")
        facts = task_facts(config, inputs.tokens, runs[0].model.pooler)
        parts = reversed(list(zip(runs, keepers, scores, found, strict=True)))  # the first one last: the state is in its folder
        results = [close_run(run, inputs, keeper.result, score, facts | own) for run, keeper, score, own in parts]
    state.remove()
    return results[::-1]


def quiet_libraries() -> None:
    """Switch off the bars and log lines of the libraries below. Only the command line does this: it is not ours to do for a caller."""
    quiet_models()
    logging.getLogger("mteb").setLevel(logging.CRITICAL)  # imported late: it takes seconds
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DATASETS_VERBOSITY": "critical"}  # read when `datasets` is imported, late too


def choose_recipe(config: RunConfig) -> Callable[[RunConfig], Result]:
    """What `main.py` does for a configuration."""
    if config.output.estimate:
        return run_estimate
    if config.train.seeds is not None:
        return run_seeds
    return {"stress": run_stress, "mteb": run_mteb}.get(config.data.task, choose_training(config))


def choose_training(config: RunConfig) -> Callable[[RunConfig], Result]:
    """What trains one model for a configuration."""
    if is_cross_validated(config):
        return lambda one: run_folds([one])[0]
    return run_embedding if config.data.task == "embedding" else run_task


def run_seeds(config: RunConfig) -> Result:
    """`run_task` for each of `--seeds`, in folders `seed-<n>` under one, stacked if asked for; mean, sd and n of every metric."""
    config = config.checked()
    config, picked = settle_dtype(config, find_source(config.backbone), own_device(config))
    for line in picked:
        say(line, config.output.verbose)
    fingerprint_of(config.with_values(seeds=None, stack_seeds=False))  # what is wrong with rows or lengths is said before a folder is made
    root, name, asked = Path(config.output.output_dir), run_name(config, config.fingerprint()), config.fingerprint(config.train.seeds or "")
    folder, lock = open_run_folder(root, name, config.output.overwrite, asked, config.store.resume)
    shared = config.with_values(
        seeds=None, stack_seeds=False, data_seed=config.data_seed, output_dir=str(folder)
    )  # one data seed: one store
    seeds = parse_seeds(config.train.seeds or "")
    configs = [shared.with_values(seed=seed, run_name=f"seed-{seed}", save_dir=str(folder / f"seed-{seed}")) for seed in seeds]
    if config.data.task == "stress":
        say_shortcuts(configs[0])
    if config.train.stack_seeds:
        configs = [one.with_values(order_seed=configs[0].order_seed) for one in configs]
    runs = finish_runs(configs, config.train.stack_seeds)
    if config.data.task == "stress":
        add_heat_map(configs[0], runs[0])
    result = {"runs": runs, "summary": summarise(runs), "run_dir": str(folder)}
    write_json(folder / RESULT, result)
    lock.release()
    return result


def finish_runs(configs: list[RunConfig], stacked: bool) -> list[Result]:
    """The results of runs whose folders are named: an earlier process may have finished some, the others are done now."""
    known = [fingerprint_of(one) for one in configs]
    found = find_finished_stack(configs, known) if stacked else [find_finished(one, name) for one, name in zip(configs, known, strict=True)]
    missing = [one.with_values(overwrite=True) for one, result in zip(configs, found, strict=True) if result is None]
    missing[1:] = [one.with_values(override_precompute=False) for one in missing[1:]]  # built anew once is enough
    fresh = iter(train_stack(missing) if stacked and missing else [choose_training(one)(one) for one in missing])
    return [result or next(fresh) for result in found]


def train_stack(configs: list[RunConfig]) -> list[Result]:
    """Configurations that differ in their seed alone, side by side: `run_stack`, or a stack for each fold."""
    return run_folds(configs) if is_cross_validated(configs[0]) else run_stack(configs)


def is_cross_validated(config: RunConfig) -> bool:
    """Whether a configuration stands for a run per fold."""
    return config.data.folds > 0 and config.data.fold is None


def run_folds(configs: list[RunConfig]) -> list[Result]:
    """Cross-validation: `run_task` for each fold in a folder of its own, several seeds side by side; scores over the rows of all folds."""
    known = [fingerprint_of(config.checked()) for config in configs]
    opened = [
        open_run_folder(Path(one.output.output_dir), run_name(one, print_), one.output.overwrite, print_, one.store.resume)
        for one, print_ in zip(configs, known, strict=True)
    ]
    parts = [fold_configs(one, folder) for one, (folder, _) in zip(configs, opened, strict=True)]
    by_fold = []
    for fold, seeds in enumerate(zip(*parts, strict=True)):
        anew = [one.with_values(override_precompute=False) for one in seeds] if fold else list(seeds)  # one store serves all folds
        by_fold.append(finish_runs(anew, len(configs) > 1))
    data, _ = read_labelled(configs[0], find_source(configs[0].backbone))
    results = []
    for one, print_, (folder, lock), folds in zip(configs, known, opened, zip(*by_fold, strict=True), strict=True):
        results.append(join_folds(one, folder, print_, data, list(folds)))
        lock.release()
    return results


def run_stress(config: RunConfig) -> Result:
    """`run_task` on the stress test, with what shortcuts score on its data and a heat map of one sentence."""
    say_shortcuts(config.checked())
    result = run_task(config)
    add_heat_map(config, result)
    return result


def say_shortcuts(config: RunConfig) -> None:
    """A line per rule that understands nothing, and the share of texts that keep their signal; wrong flags are found before."""
    own_device(config)
    resolve(config, find_source(config.backbone))
    facts = stress_facts(config)
    for name, accuracy in facts["shortcuts"].items():
        say(f"{name}: {100 * accuracy:.1f} % accuracy without understanding", config.output.verbose)
    kept = f"{100 * facts['signal_kept']:.1f} % of the evaluation texts keep their signal when cut to the backbone's tokens"
    say(kept, config.output.verbose)


def add_heat_map(config: RunConfig, result: Result) -> None:
    """The heat map of a finished stress run, into its folder; where it fails, a note in its result."""
    from glot.report.heatmap import draw_heat_map  # matplotlib, which other runs do not need

    folder, (data, _) = Path(result["run_dir"]), read_labelled(config, find_source(config.backbone))
    try:
        with library_door(DataError, lambda error: f"no heat map ({reason(error)})"):
            draw_heat_map(folder, data.reported[0].columns[0][0], config.backbone.trust_remote_code)
    except GlotError as error:  # the result is written; its picture is an extra
        warn(str(error))
        result["notes"].append(str(error))
        write_result(folder, result)


def task_facts(config: RunConfig, tokens: TokenSource, pooler: Pooler) -> Result:
    """What belongs into the result of a task beside its scores: shortcuts of the stress test, density of a graph that has a tau."""
    facts = stress_facts(config) if config.data.task == "stress" else {}
    if config.pooler.pooling_method != "glot" or config.pooler.num_layers == 0 or config.graph.graph_adj not in ("threshold", "random"):
        return facts
    if tokens.store is None:  # states that are computed would have to be computed once more
        return facts
    found = sample_density(tokens, config.graph.tau, pooler.mixed if isinstance(pooler, LayeredPooler) else None)
    line = f"at tau = {found.tau:g} the graph joins {100 * found.density:.1f} % of the pairs of tokens"
    if found.verdict:
        warn(f"{line}: it is {found.verdict}; see glot graph")
    else:
        say(line, config.output.verbose)
    return facts | {"graph": found._asdict()}


def run_embedding(config: RunConfig) -> Result:
    """`run_task` on pairs; beside it what mean pooling without training scores, and the pooler as a `.pth` that the release could read."""
    config = config.checked()
    target = released_name(config)
    check_released_file(target, config)

    def add(result: Result) -> None:
        """The untrained mean's scores and the `.pth`."""
        if config.store.precompute_hidden_states:
            result["mean_untrained"] = score_untrained_mean(config)
            found = "  ".join(f"{name} {value:.4f}" for name, value in result["mean_untrained"].items())
            say(f"mean pooling, untrained: {found}", config.output.verbose)
        result["checkpoint"] = str(save_released_file(target, Path(result["run_dir"]), config))

    return run_task(config, add)


@run_switches()
def score_untrained_mean(config: RunConfig) -> dict[str, float]:
    """Metrics of mean pooling on the held-out slice of a contrastive run whose states are stored: what training has to beat."""
    inputs = load_inputs(config.with_values(override_precompute=False))
    untrained = make_model(inputs.config.with_values(pooling_method="mean"), inputs)
    return make_loaders(inputs).report(untrained)


@run_switches()
def run_mteb(config: RunConfig, anew: bool = False) -> Result:
    """Score poolers, trained (`--checkpoint_path`) or as they are, on MTEB tasks: a run folder with results and a table for each.

    Finished tasks are found in mteb's cache, unless they are asked for `anew`.
    """
    config = config.checked()
    need("mteb", "mteb", "--task=mteb")
    from glot.integrations import mteb
    from glot.integrations.mteb_runs import MtebRun, open_mteb_runs

    clock = Clock("load", "evaluate")
    report_to = resolve_report_to(config.output.report_to)
    data_dir = None if config.data.data_dir is None else Path(config.data.data_dir)
    cache = Path(config.output.output_dir) / MTEB_CACHE
    tasks = mteb.find_tasks(config.mteb.mteb_task, data_dir, cache)
    with clock.phase("load"):
        opened = open_encoders(config)
        states = open_text_states(config, opened[0].encoder) if config.mteb.mteb_store else None
    options = {"batch_size": config.train.eval_batch_size, "show_progress_bar": config.output.verbose}
    shared = SharedPass([one.encoder for one in opened], states) if len(opened) > 1 or states is not None else None
    runs: list[MtebRun] = open_mteb_runs(opened, tasks, report_to, shared)
    with clock.phase("evaluate"):
        for task in tasks:
            with mteb.kept_loaded(task):
                for run in runs:
                    run.add(mteb.evaluate_task(run.model, task, cache, options, anew))
            if shared is not None:
                shared.forget()
    results = [run.close(clock.seconds) for run in runs]
    if not any(result["scores"] for result in results):
        first = runs[0].scores[0]
        raise DataError(f"--mteb_task={config.mteb.mteb_task}: no task could be run; the first: {first.task}: {first.error}")
    return results[0] if len(results) == 1 else {"task": "mteb", "runs": results, "run_dir": str(Path(config.output.output_dir))}


def run_estimate(config: RunConfig) -> Result:
    """Size and time of the store that a run would write, from a sample (`--estimate`)."""
    config = config.checked()
    source = find_source(config.backbone)
    config, _ = resolve(config, source)
    return estimate_store(config, source, read_texts(config, source)[1], own_device(config))
