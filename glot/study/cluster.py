"""Runs of a study as jobs of a cluster: `glot sweep --executor=slurm`, by submitit. Another machine needs the same folders."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from glot.errors import ConfigError, GlotError, TrainingError, library_door, need, reason

EXECUTORS = ("processes", "slurm", "local")
"""`--executor`: processes of this machine, jobs of slurm, or submitit's own processes, as jobs without a cluster."""
JOBS = "jobs"
"""Folder under a study's: what submitit keeps of its jobs, their output among it."""
ASKED_EVERY = 2.0


class ClusterPool(Executor):
    """Work as jobs of a cluster, as a pool of workers.

    Args:
        cluster: slurm, or local.
        folder: for the jobs' files; every machine must see it.
        jobs: at a time.
        options: of `submitit.AutoExecutor.update_parameters`, such as `timeout_min` or `slurm_partition`.

    Raises:
        ConfigError: submitit is not installed, there is no such cluster, or it takes no such option.

    Examples:
        >>> with ClusterPool("slurm", Path("runs/my-study/jobs"), 8, {"timeout_min": 60}) as pool:
        ...     pool.submit(work, 1).result()
    """

    def __init__(self, cluster: str, folder: Path, jobs: int, options: dict[str, Any]) -> None:
        need("submitit", "cluster", f"--executor={cluster}")
        import submitit

        self._folder = folder
        self._free, self._leaving = threading.Semaphore(jobs), threading.Event()
        self._submitted: list[Any] = []
        self._waiting: list[threading.Thread] = []
        door = library_door(ConfigError, lambda error: f"--executor={cluster}: {reason(error)}; see --executor_options")
        with door:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**{"name": "glot", "timeout_min": 24 * 60, **options})

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """A future of the job's result; it begins when fewer than `jobs` are at work."""
        future: Future[Any] = Future()
        thread = threading.Thread(target=self._follow, args=(future, work, arguments, named), daemon=True)
        self._waiting.append(thread)
        thread.start()
        return future

    def _follow(self, future: Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        with self._free:
            if self._leaving.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():  # which tells those who wait for it
                return
            try:
                with library_door(TrainingError, lambda error: f"its job failed ({reason(error)}); see {self._folder}"):
                    job = self._executor.submit(_outcome, work, *arguments, **named)
                    self._submitted.append(job)
                    while not job.done() and not self._leaving.wait(ASKED_EVERY):
                        pass
                    result, problem = job.result()
                if problem is not None:
                    raise TrainingError(problem)
                future.set_result(result)
            except GlotError as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs; where futures are cancelled, end those at work: the runs save their state and go on another time."""
        if cancel_futures:
            self._leaving.set()
            for job in self._submitted:
                if not job.done():
                    job.cancel(check=False)
        for thread in self._waiting if wait and not cancel_futures else []:
            thread.join()


def _outcome(work: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, str | None]:
    """What a job gives back: its result, or a user's mistake in words, which would else arrive as a traceback's text."""
    try:
        return work(*arguments, **named), None
    except GlotError as error:
        return None, str(error)


def read_options(text: str | None) -> dict[str, Any]:
    """The value of `--executor_options`: `timeout_min=60,slurm_partition=gpu`.

    Raises:
        ConfigError: a part without a name.
    """
    found: dict[str, Any] = {}
    for part in (text or "").split(","):
        name, sign, value = part.partition("=")
        if part.strip() and not (sign and name.strip()):
            raise ConfigError(
                f"--executor_options={text}: must be name=value with commas between, such as timeout_min=60,slurm_partition=gpu"
            )
        if part.strip():
            found[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return found
