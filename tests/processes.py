"""Processes of their own for tests, forked from a server that has imported large libraries: none of them waits for that.

What a test starts here is a process like any other: its own environment, folder, output and signals. The hub's libraries are not imported
beforehand, for they read the environment when they are. Tests of what is imported, and of the programs as such, start Python anew.
"""

import json
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
LIBRARIES = ["torch._dynamo", "scipy.stats", "sklearn.metrics", "sklearn.model_selection", "sklearn.linear_model", "pandas", "pyarrow"]
SERVER = forkserver.ForkServer()
"""Apart from the one that `glot cost` starts where it runs, for that has imported the hub's libraries."""
SERVER.set_forkserver_preload(LIBRARIES)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PATIENCE = 300.0

DRIVER = """
import contextlib, io, json, sys
watched = []
if "watch" in sys.argv[2:]:
    sys.addaudithook(lambda event, args: watched.append(str(args)) if event in ("socket.connect", "socket.getaddrinfo") else None)
from glot.cli import glot_main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = glot_main(words)
        except SystemExit as stop:
            code = stop.code or 0
    print("\\n@" + json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "watched": watched}))
"""


class Ended(NamedTuple):
    """How a process ended: its exit code (below 0: a signal), what it printed and said."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A Python process that runs.

    Args:
        words: as behind `python`: a program's file, `-m` and a module, or `-c` and code, then what it is given.
        env: its whole environment; one thread for computing besides.
        cwd: its folder.
        path: folders that come first among those that modules are imported from.
    """

    def __init__(self, words: list[str], env: dict[str, str] | None = None, cwd: Path = ROOT, path: tuple[Path, ...] = (ROOT,)) -> None:
        self._files = [Path(tempfile.mkstemp()[1]) for _ in range(2)]
        env = {**(os.environ if env is None else env), **ONE_THREAD}
        kept = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)  # the server takes its own from here, when the first process is started
        try:
            context = multiprocessing.get_context("forkserver")
            self.process = context.Process(target=_run, args=(list(map(str, words)), env, str(cwd), list(map(str, path)), self._files))
            with patch.object(forkserver, "connect_to_new_process", SERVER.connect_to_new_process):
                self.process.start()
        finally:
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def send_signal(self, number: int) -> None:
        """As the system does."""
        os.kill(self.process.pid, number)

    def wait(self) -> Ended:
        """For its end."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        for file in self._files:
            file.unlink()
        return Ended(self.process.exitcode, out, err)


def run(words: list[str], **place: object) -> Ended:
    """A process from start to end; the arguments are those of `Started`."""
    return Started(words, **place).wait()


def answers(commands: list[list[str]], *flags: str, **place: object) -> list[dict]:
    """What each `glot` command gives (code, out, err; with the flag `watch` the sockets that were asked for), all in one process."""
    done = run(["-c", DRIVER, json.dumps(commands), *flags], **place)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]


def _run(words: list[str], env: dict[str, str], cwd: str, path: list[str], files: list[Path]) -> None:
    """In the new process: what `python WORDS` does."""
    for place, file in zip((1, 2), files, strict=True):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, place)
        os.close(handle)
    sys.stdout, sys.stderr = (open(place, "w", encoding="utf-8", closefd=False) for place in (1, 2))  # noqa: SIM115 - for the process's life
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.path[:0] = path
    kind, *given = words
    if kind == "-c":
        sys.argv = ["-c", *given[1:]]
        exec(compile(given[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = given
        runpy.run_module(given[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")
