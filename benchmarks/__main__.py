"""Every ratio of this toolkit's speed on this machine, in under ten minutes: `make bench`, or `python -m benchmarks [--data_dir DIR]`.

Writes benchmarks/results/<machine>.json and <machine>.md. What is compared takes turns in one process. `--smoke` runs everything once in
its smallest size, to see that it runs; its figures mean nothing and go to a folder that `--to` names.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import beside, density, encode_speed, memory, precompute, reading, stacking, step
from glot.machine import cpu_flags
from glot.progress import warn
from glot.settings.config import versions

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"


class Line(NamedTuple):
    """One row of the table: what was compared, both sides in words, the ratio (or size), and what it should be."""

    what: str
    ours: str
    other: str
    value: float
    goal: str


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def steps(smoke: bool) -> Iterator[Line]:
    """The pooler engine."""
    for name, found in (step.measure(1, cases=1) if smoke else step.measure()).items():
        other = "pyg" if name.endswith("PyG") else "products"
        words = {"pyg": "PyG's GATConv", "products": "bare products"}[other]
        goal = {"pyg": "below 1", "products": "at most 1.7" if "h = 128" in name else "at most 1.5"}[other]
        what = f"step, {name.removesuffix(', PyG')}"
        yield Line(what, _ms(found.seconds("ours")), f"{words} {_ms(found.seconds(other))}", found.ratio("ours", other), goal)


def sparse_graphs(smoke: bool) -> Iterator[Line]:
    """A graph with few edges, as sparse rows and as if it had many."""
    for length, share in ((128, 0.02),) if smoke else ((512, 0.02), (2048, 0.02), (8192, 0.005)):
        met, found = density.measure(length, share, 1 if smoke else 3 if length > 4096 else 7)
        what = f"two GAT layers, {length:,} tokens, {100 * met:.1f} % of pairs joined"
        edges, blocks = (_ms(found.seconds(side)) for side in ("edges", "blocks"))
        yield Line(what, f"edges {edges}", f"blocks {blocks}", found.ratio("edges", "blocks"), "below 1")


def memories(smoke: bool) -> Iterator[Line]:
    """Peak memory of a step."""
    case = step.CASES["8 sentences of 200-512 tokens, K = 2, h = 256"]
    lengths = step.make_batch(case).lengths.tolist()
    above, _, inputs = memory.peak(lengths, case.hidden)
    yield Line("memory of a step, 8 sentences of 200-512 tokens", f"{above:.0f} MiB", f"inputs {inputs:.1f} MiB", above, "below 150 MiB")
    for length in memory.LENGTHS[:1] if smoke else memory.LENGTHS:
        for graph in memory.GRAPHS[:1] if smoke else memory.GRAPHS:
            above, seconds, _ = memory.peak([length], graph=graph)
            what = f"memory of a step, one sentence of {length:,} tokens, {graph}"
            yield Line(what, f"{above:.0f} MiB", f"{_ms(seconds)}", above, "linear")


def encoding(data_dir: Path, smoke: bool) -> Iterator[Line]:
    """Texts to vectors."""
    count, rounds = (20, 1) if smoke else (120, 4)
    for name, found in encode_speed.measure(data_dir, count, rounds).items():
        theirs = f"SentenceTransformer.encode {found.seconds('sentence-transformers'):.2f} s"
        mean = found.seconds("mean")
        yield Line(f"encode {count} texts, {name}", f"mean {mean:.2f} s", theirs, found.ratio("mean", "sentence-transformers"), "at most 1")
        yield Line(
            f"encode {count} texts, {name}",
            f"glot {found.seconds('glot'):.2f} s",
            f"mean {mean:.2f} s",
            found.ratio("glot", "mean"),
            "at most 1.10",
        )


def stores(data_dir: Path, smoke: bool) -> Iterator[Line]:
    """Texts to states on disk."""
    count, rounds = (20, 1) if smoke else (1000, 4)
    found = precompute.measure(data_dir, count, rounds)
    for dtype in ("", "autocast "):
        ours, bare = found.seconds(f"{dtype}store"), found.seconds(f"{dtype}bare")
        rate = found.ratio(f"{dtype}bare", f"{dtype}store")
        yield Line(
            f"store of {count} sentences of cola, {dtype.strip() or 'float32'}",
            _ms(ours),
            f"bare forward pass {_ms(bare)}",
            rate,
            "at least 0.9",
        )
    ours = _ms(found.seconds("store"))
    yield Line(
        "store in float32",
        ours,
        f"with bfloat16 autocast {_ms(found.seconds('autocast store'))}",
        found.ratio("store", "autocast store"),
        "",
    )
    padded = precompute.PART * found.seconds("padded")
    words = f"forward pass padded to 128, unsorted {_ms(padded)}"
    yield Line("store in float32", ours, words, found.ratio("store", "padded") / precompute.PART, "below 1")


def readings(smoke: bool) -> Iterator[Line]:
    """States back from disk."""
    with tempfile.TemporaryDirectory() as folder:
        found = reading.random_rows(Path(folder), 256 if smoke else 1 << 14)
    ours = _ms(found.seconds("store"))
    yield Line(
        "random rows of 9 kB from memory", ours, f"memcpy {_ms(found.seconds('memcpy'))}", found.ratio("memcpy", "store"), "at least 0.33"
    )
    yield Line("random rows of 9 kB", ours, f"datasets {_ms(found.seconds('datasets'))}", found.ratio("store", "datasets"), "below 1")
    part = reading.PART if not smoke else 256
    yield Line(
        "random rows of 9 kB",
        ours,
        f"a pickle a batch {_ms(part * found.seconds('pickles'))}",
        found.ratio("store", "pickles") / part,
        "below 1",
    )
    size = 1 / 64 if smoke else 1
    with tempfile.TemporaryDirectory() as folder:
        found = reading.cold_epoch(Path(folder), int(size * 2**30), 1 if smoke else 3)
    ours, other = _ms(found.seconds("shuffled")), f"sequential {_ms(found.seconds('sequential'))}"
    yield Line(f"shuffled epoch of {size:g} GiB, cold cache", ours, other, found.ratio("sequential", "shuffled"), "at least 0.5")


def stacks(data_dir: Path, smoke: bool) -> Iterator[Line]:
    """Many seeds at once."""
    count, rows = (2, "30") if smoke else (16, "1000")
    goals = {"mean": "at most 0.25", "adapool": "at most 0.35", "glot": "at most 0.75"}
    for pooler, row in stacking.measure(data_dir, count, rows=rows).items():
        alone = f"one by one {row['alone']['seconds']:.1f} s"
        yield Line(
            f"{count} seeds, {pooler}, {rows} rows of cola",
            f"stacked {row['stacked']['seconds']:.1f} s",
            alone,
            row["ratio"],
            goals[pooler],
        )


def others(data_dir: Path, smoke: bool) -> Iterator[Line]:
    """Poolers that see more beside GLOT, and commands beside what they replace."""
    rounds = 1 if smoke else 3
    found = beside.steps(1 if smoke else 9)
    for name in ("crossglot", "all layers"):
        words = {"crossglot": "one layer, 32 pairs", "all layers": "glot on a sum of 7 layers, 64 sentences"}[name]
        yield Line(f"step of {words}", _ms(found.seconds(name)), f"glot on one {_ms(found.seconds('glot'))}", found.ratio(name, "glot"), "")
    found = beside.probes(data_dir, 64 if smoke else 2000, rounds)
    words = f"head of 15 epochs {_ms(found.seconds('trained'))}"
    yield Line("probe on mean vectors of cola, states stored", _ms(found.seconds("probe")), words, found.ratio("probe", "trained"), "")
    found = beside.starts(data_dir, rounds)
    words = f"importing its libraries {_ms(found.seconds('imports'))}"
    yield Line("a command on a complete store of cola", _ms(found.seconds("run")), words, found.ratio("run", "imports"), "at most 1.5")
    found = beside.predictions(data_dir, 20 if smoke else 500, rounds)
    words = f"the backbone's bare pass {_ms(found.seconds('bare'))}"
    yield Line("predict of a glot run, 500 texts", _ms(found.seconds("predict")), words, found.ratio("predict", "bare"), "at most 1.15")


def mteb_poolers(data_dir: Path, smoke: bool) -> Iterator[Line]:
    """Several poolers on a task of MTEB."""
    task = "STS12" if smoke else "STS16"
    found = beside.mteb(data_dir, task, 1 if smoke else 2)
    for count in ("3", "6"):
        words = f"one pooler {_ms(found.seconds('1'))}"
        yield Line(f"mteb with {count} poolers", _ms(found.seconds(count)), words, found.ratio(count, "1"), "at most 1.15")


def machine() -> dict[str, object]:
    """What the figures belong to."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        processor = named[1] if named else processor
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {
        "processor": processor,
        "flags": " ".join(cpu_flags()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit,
        "date": date.today().isoformat(),
    }


def table(lines: list[Line], about: dict[str, object], seconds: float) -> str:
    """Markdown."""
    head = f"# Benchmarks on {about['cores']} cores of {about['processor']}\n\n"
    head += f"`make bench`, {seconds:.0f} s, {about['date']}, commit {about['commit']}, torch {torch.__version__}. "
    head += f"CPU flags: {about['flags'] or 'unknown'}. "
    head += "Medians; ratios are medians over rounds.\n\n"
    rows = [f"| {line.what} | {line.ours} | {line.other} | {line.value:.2f} | {line.goal} |" for line in lines]
    return head + "\n".join(["| what | ours | other | ratio or MiB | goal |", "|---|---:|---:|---:|---|", *rows]) + "\n"


def main() -> None:
    """Run all sections; those that need data are left out, with a line, where there are none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    given = os.environ.get("GLOT_DATA_DIR", SHARED)
    parser.add_argument("--data_dir", type=Path, default=Path(given), help="mirror with cola, stsb and imdb [GLOT_DATA_DIR]")
    parser.add_argument("--to", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    sections: list[tuple[str, Callable[[], Iterator[Line]]]] = [
        ("step", lambda: steps(asked.smoke)),
        ("sparse graphs", lambda: sparse_graphs(asked.smoke)),
        ("memory", lambda: memories(asked.smoke)),
        ("reading", lambda: readings(asked.smoke)),
        ("encode", lambda: encoding(asked.data_dir, asked.smoke)),
        ("precompute", lambda: stores(asked.data_dir, asked.smoke)),
        ("stacking", lambda: stacks(asked.data_dir, asked.smoke)),
        ("beside", lambda: others(asked.data_dir, asked.smoke)),
        ("mteb", lambda: mteb_poolers(asked.data_dir, asked.smoke)),
    ]
    if not (asked.data_dir / "nyu-mll").is_dir():
        warn(f"encode, precompute, stacking and what came after are left out: no data at {asked.data_dir}; give --data_dir")
        sections = sections[:4]
    elif not (asked.data_dir / f"mteb/sts{12 if asked.smoke else 16}-sts").is_dir():
        warn(f"mteb is left out: no data at {asked.data_dir / 'mteb'}")
        sections = sections[:-1]
    about, lines, start = machine(), list[Line](), time.perf_counter()
    asked.to.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{about['cores']}-cores-{about['processor']}".lower()).strip("-")
    for title, run in sections:
        began = time.perf_counter()
        for line in run():
            lines.append(line)
            warn(f"{line.what}: {line.ours}, {line.other}: {line.value:.2f} ({line.goal or 'no goal'})")
        warn(f"-- {title}: {time.perf_counter() - began:.0f} s")
        seconds = time.perf_counter() - start  # written after each section: what a later one breaks does not take the others along
        record = {"machine": about, "seconds": seconds, "lines": [line._asdict() for line in lines]}
        (asked.to / f"{name}.json").write_text(json.dumps(record, indent=1))
        (asked.to / f"{name}.md").write_text(table(lines, about, seconds))
    print(table(lines, about, seconds))


if __name__ == "__main__":
    main()
