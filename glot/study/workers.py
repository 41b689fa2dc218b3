"""RunPool: the runs of a study on a pool of workers, in this process or in several that share the cores equally."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from glot.errors import GlotError
from glot.interrupts import leaving
from glot.settings.checks import stack_problems
from glot.settings.config import RunConfig


class RunPool:
    """Runs configurations on a pool of workers; equal configurations run once.

    Examples:
        >>> with open_pool(jobs=2) as pool:
        ...     outcomes = RunPool(pool, "runs").run(configs, "tau: runs")
    """

    def __init__(self, pool: Executor, runs_dir: str, anew: bool = False) -> None:
        self._pool, self._runs_dir, self._anew = pool, runs_dir, anew

    def run(self, configs: list[RunConfig], title: str, stack: bool = False) -> list[dict[str, Any]]:
        """Per configuration, its run folder or the error that stopped it.

        With `stack`, configurations that differ only in their seed are trained as one stacked model, where their pooler allows it.
        """
        from glot.progress import counter, warn

        groups: dict[RunConfig, dict[RunConfig, None]] = {}
        for config in configs:
            alone = not stack or stack_problems(config)
            groups.setdefault(config if alone else config.with_values(seed=0), {})[config] = None
        futures: dict[RunConfig, tuple[Future[list[str]], int]] = {}
        with counter(title, "run", len(set(configs)), enabled=True) as bar:
            for members in groups.values():
                future = self._pool.submit(_run_group, list(members), self._runs_dir, self._anew)
                future.add_done_callback(partial(lambda count, _: bar.update(count), len(members)))
                futures |= {config: (future, place) for place, config in enumerate(members)}
            for config, (future, _) in futures.items():
                error = future.exception()
                if error is not None:
                    warn(f"failed: {config.data.task}, {config.pooler.pooling_method}, seed {config.train.seed}: {_in_words(error)}")
        outcomes = [futures[config] for config in configs]
        return [
            {"run_dir": None, "error": _in_words(future.exception())} if future.exception() else {"run_dir": future.result()[place]}
            for future, place in outcomes
        ]


def _in_words(error: BaseException | None) -> str:
    return str(error) if isinstance(error, GlotError) else f"{type(error).__name__}: {error}"


def _run_group(configs: list[RunConfig], runs_dir: str, anew: bool = False) -> list[str]:
    from glot import recipes, reuse

    if parent_process() is not None:  # only in worker processes: settings of the caller's process stay as they are
        recipes.quiet_libraries()
    if len(configs) == 1:
        return [reuse.run_or_reuse(configs[0], Path(runs_dir), anew)]
    return reuse.stack_or_reuse(configs, Path(runs_dir), anew)


@contextmanager
def open_pool(jobs: int, cluster: Callable[[], Executor] | None = None) -> Iterator[Executor]:
    """A pool of workers. A future holds the error that stopped its run. When the study is interrupted, runs not yet begun are cancelled.

    Args:
        jobs: at a time.
        cluster: makes a pool of its own; None = this process, or `jobs` of this machine.
    """
    pool: Executor = ThreadPoolExecutor(1) if cluster is None else cluster()
    if jobs > 1 and cluster is None:
        context = get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, initializer=_share_machine, initargs=(jobs, context.Value("i", 0)))
    done = False
    try:
        yield pool
        done = True
    finally:
        if not done:
            leaving.set()  # a run in this process saves its state after its step; those in others are told by a signal
            for worker in active_children():
                worker.terminate()
        pool.shutdown(cancel_futures=True)
        leaving.clear()


def _share_machine(jobs: int, begun: Any) -> None:
    """Initialise a worker: limit its threads to its share of the cores, give it its turn of the cards, and let it exit with its parent.

    Without the last, a worker would wait for ever after the study is killed.

    Args:
        jobs: workers in all.
        begun: a shared number of workers that have begun.
    """
    import torch

    with begun.get_lock():
        place, begun.value = begun.value, begun.value + 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(place % torch.accelerator.device_count())
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        """Exit when the parent process ends."""
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
