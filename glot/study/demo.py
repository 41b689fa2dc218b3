"""`glot demo`: five poolers on one store of the stress test, a table and a figure."""

from pathlib import Path

from glot.data.shortcuts import score_shortcuts
from glot.recipes import run_task
from glot.report.plots import plot_demo
from glot.report.tables import demo_table
from glot.settings.config import RunConfig
from glot.states.tokens import find_source
from glot.training.folders import create_run_folder
from glot.training.run import read_labelled

DEMO_POOLERS = ("cls", "mean", "max", "adapool", "glot")
DEMO = {
    "task": "stress",
    "distractor_ratio": 0.9,
    "lr": 1e-3,
    "epochs": 6,
    "tau": 0.6,
    "num_layers": 2,
    "gat_hidden_dim": 128,
    "scorer_hidden": 128,
    "data_seed": 0,
    "seed": 0,
}
"""Flags of `glot demo`: the stress test at the highest published distractor ratio."""


def run_demo(config: RunConfig) -> str:
    """Train five poolers on one store of the stress test. Returns a table, and saves it with a figure.

    `DEMO` sets data and training; the configuration sets backbone, folders and device.
    """
    config = config.with_values(**DEMO)
    folder = create_run_folder(Path(config.output.output_dir), "demo", config.output.overwrite)
    runs = [run_task(config.with_values(pooling_method=name, output_dir=str(folder), run_name=name)) for name in DEMO_POOLERS]
    data, _ = read_labelled(config, find_source(config.backbone))
    shortcuts = score_shortcuts(data.train, data.reported[0])
    table = demo_table(runs, shortcuts)
    (folder / "table.md").write_text(table, encoding="utf-8")
    plot_demo(runs, shortcuts, folder / "figure.png")
    return f"{table}\nfigure: {folder / 'figure.png'}\ntable:  {folder / 'table.md'}"
