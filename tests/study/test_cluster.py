"""Runs of a study as jobs, by submitit's own processes: the same results, mistakes in words, what is missing said."""

import threading
import time
from concurrent.futures import wait
from threading import Event

import pytest

from glot.cli import glot_main
from glot.errors import ConfigError, GlotError
from glot.study.cluster import ClusterPool, read_options

FILE = """
kind: study
name: {name}
runs_with: {{task: cola, data_dir: {mirror}, model_name_or_path: {bert}, store_dir: {root}/hidden, max_length: 16, epochs: 1, lr: 1e-2}}
arms:
  mean: {{pooling_method: mean}}
  ada: {{pooling_method: adapool, scorer_hidden: 4}}
seeds: [0]
"""


@pytest.mark.slow
def test_jobs_give_what_this_process_gives(mirror, tiny_bert, tmp_path, capsys):
    for name in ("here", "jobs"):
        (tmp_path / f"{name}.yaml").write_text(FILE.format(name=name, mirror=mirror, bert=tiny_bert, root=tmp_path))
    words = ["sweep", str(tmp_path / "here.yaml"), "--output_dir", str(tmp_path / "runs")]
    assert glot_main(words) == 0
    words[1] = str(tmp_path / "jobs.yaml")
    assert glot_main([*words, "--executor=local", "--jobs=2", "--executor_options=timeout_min=5"]) == 0
    tables = [(tmp_path / f"runs/{name}/seeds.csv").read_text() for name in ("here", "jobs")]
    assert tables[0] == tables[1] and tables[0].count("\n") == 3
    assert list((tmp_path / "runs/jobs/jobs").glob("*.out")) and not (tmp_path / "runs/here/jobs").exists()
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/jobs/runs").glob("*/result.json")}
    assert glot_main([*words, "--executor=local"]) == 0
    assert {path: path.stat().st_mtime_ns for path in dates} == dates
    capsys.readouterr()


class Job:
    """A job of submitit that runs in a thread."""

    def __init__(self, work, arguments):
        self.cancelled = False
        self._thread = threading.Thread(target=self._run, args=(work, arguments))
        self._thread.start()

    def _run(self, work, arguments):
        self._result = work(*arguments)

    def done(self):
        return not self._thread.is_alive()

    def result(self):
        return self._result

    def cancel(self, check):
        self.cancelled = True


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr("glot.study.cluster.ASKED_EVERY", 0.01)
    made = ClusterPool("local", tmp_path, 2, {})
    made._executor.submit = lambda work, *arguments: Job(work, arguments)
    return made


def refuse(_: int) -> None:
    raise ConfigError("--tau=2: too much")


def test_no_more_jobs_than_asked_and_a_mistake_in_words(pool):
    at_work, most = [], []

    def work(number: int) -> int:
        at_work.append(number)
        most.append(len(at_work))
        time.sleep(0.03)
        at_work.remove(number)
        return number * number

    futures = [pool.submit(work, number) for number in range(7)]
    assert [future.result(10) for future in futures] == [number * number for number in range(7)] and max(most) == 2
    assert str(pool.submit(refuse, 1).exception(10)) == "--tau=2: too much"
    broken = pool.submit(lambda number: 1 // number, 0).exception(10)
    assert isinstance(broken, GlotError) and "its job failed" in str(broken)
    pool.shutdown()


def test_what_is_left_is_cancelled(pool):
    go = Event()
    futures = [pool.submit(go.wait, 30) for _ in range(4)]
    until = time.monotonic() + 30
    while len(pool._submitted) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    pool.shutdown(cancel_futures=True)
    go.set()
    assert sum(job.cancelled for job in pool._submitted) == 2
    done, waiting = wait(futures, 10)
    assert not waiting and sum(future.cancelled() for future in done) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor_options=timeout_min=5"], "--executor_options=timeout_min=5: has no effect without --executor=slurm"),
        (["--executor=slurm", "--executor_options=5"], "--executor_options=5: must be name=value with commas between"),
        (["--executor=local", "--executor_options=colour=blue"], "--executor=local: "),
        (["--executor=slurm"], "--executor=slurm: "),
    ],
)
def test_mistakes(words, said, mirror, tiny_bert, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(FILE.format(name="x", mirror=mirror, bert=tiny_bert, root=tmp_path))
    assert glot_main(["sweep", str(tmp_path / "x.yaml"), "--output_dir", str(tmp_path / "runs"), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err


def test_options():
    assert read_options("timeout_min=60, slurm_partition=gpu") == {"timeout_min": 60, "slurm_partition": "gpu"} and read_options(None) == {}
