"""Tables of results, as Markdown or LaTeX."""

import csv
import io
from pathlib import Path
from typing import Any

from glot.words import counted


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with padded columns, the first left-aligned, the others right-aligned."""
    header, rows = [plain_cell(cell) for cell in header], [[plain_cell(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def plain_cell(cell: str) -> str:
    """A cell of Markdown: no line break, no bar that would end it."""
    return " ".join(cell.split()).replace("|", "\\|")


def safe_cell(cell: str) -> str:
    """A cell of CSV that no spreadsheet takes for a formula; numbers stay."""
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell != "-" and cell[:1] in tuple("=+-@\t\r") else cell
    return cell


def run_summary(result: dict[str, Any]) -> str:
    """What a run gave, in a few lines: metrics of the selected and the last epoch beside the floor; of several seeds mean and spread."""
    if "runs" in result:
        return _seeds_summary(result) if "summary" in result else _poolers_summary(result["runs"])
    title = f"{result.get('task_name', result['task'])}, {result['model']}, {result['pooler']}, seed {result['seed']}"
    if "scores" in result:
        rows = [[name, number(value)] for name, value in result["scores"].items()] + [[name, "failed"] for name in result["failed"]]
        return f"\n{title}\n{markdown(['task', 'score'], rows)}\n{result['run_dir']}"
    best, last, floor = result["best"], result["last"], result.get("floor", {})
    rows = [
        [name, number(value), number(last["metrics"][name]) if last else "-", number(floor.get(name))]
        for name, value in best["metrics"].items()
    ]
    header = ["metric", f"epoch {best['epoch']}, selected", f"epoch {last['epoch']}, last" if last else "last", "floor"]
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in result["seconds"].items())
    return f"\n{title}\n{markdown(header, rows)}\n{seconds}\n{result['run_dir']}"


def _poolers_summary(runs: list[dict[str, Any]]) -> str:
    """Scores of several poolers on the same MTEB tasks, a column for each."""
    tasks = list(dict.fromkeys(task for run in runs for task in (*run["scores"], *run["failed"])))
    names = [Path(run["run_dir"]).name for run in runs]
    rows = [[task, *("failed" if task in run["failed"] else number(run["scores"].get(task)) for run in runs)] for task in tasks]
    return "\n".join([f"\nmteb, {runs[0]['model']}", markdown(["task", *names], rows), *(run["run_dir"] for run in runs)])


def _seeds_summary(result: dict[str, Any]) -> str:
    first = result["runs"][0]
    floor = first.get("floor", {})
    rows = [
        [name, number(found["mean"]), number(found["sd"]), str(found["n"]), number(floor.get(name))]
        for name, found in result["summary"].items()
    ]
    total = sum(sum(run["seconds"].values()) for run in result["runs"])
    title = f"{first.get('task_name', first['task'])}, {first['model']}, {first['pooler']}, {counted(len(result['runs']), 'seed')}"
    return f"\n{title}\n{markdown(['metric', 'mean', 'sd', 'n', 'floor'], rows)}\n{total:.1f} s\n{result['run_dir']}"


def number(value: float | None) -> str:
    """Four digits; a dash where there is no number."""
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A fraction of 1 as a percentage; None is a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def demo_table(runs: list[dict[str, Any]], shortcuts: dict[str, float]) -> str:
    """The table of `glot demo`: poolers and shortcuts on the stress test."""
    rows = []
    for run in runs:
        train = f"{run['seconds']['train']:.1f} s"
        best, last = run["best"]["metrics"]["accuracy"], run["last"]["metrics"]["accuracy"]
        rows.append([run["pooler"], percent(best), percent(last), f"{run['trainable_params']:,}", train])
    rows += [[f"({name})", percent(accuracy), "", "", ""] for name, accuracy in shortcuts.items()]
    table = markdown(["pooler", "best epoch", "last epoch", "parameters", "training"], rows)
    first = runs[0]
    store = first["store"]
    encoded = f"{counted(store['sentences'], 'text')}, {counted(store['tokens'], 'token')}, {store['bytes'] / 2**20:.0f} MiB stored"
    note = (
        "Accuracy on 500 generated texts, 90 % of whose words are noise. Rows in brackets are rules that understand nothing:\n"
        "the generator of the published test makes negatives longer than positives, so a rule on length alone solves it."
    )
    return f"{table}\n\n{note}\n{first['model']}: {encoded}; seed {first['seed']}, data seed {first['data_seed']}.\n"


def csv_text(header: list[str], rows: list[list[str]]) -> str:
    """The same table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[safe_cell(cell) for cell in row] for row in [header, *rows]])
    return text.getvalue().rstrip("\n")


LATEX = {sign: rf"\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "[": "{[}",  # behind a line's end it would be read as an option
}
"""Sign -> how LaTeX prints it."""


def latex(header: list[str], rows: list[list[str]], bold: frozenset[tuple[int, int]] = frozenset()) -> str:
    """A LaTeX table (booktabs); `bold` names cells by row and column, counted from 0."""

    def line(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\"

    def plain(cell: str) -> str:
        return "".join(LATEX.get(sign, sign) for sign in " ".join(cell.split()))

    def shown(place: tuple[int, int], cell: str) -> str:
        return rf"\textbf{{{plain(cell)}}}" if place in bold else plain(cell)

    body = "\n".join(line([shown((row, column), cell) for column, cell in enumerate(cells)]) for row, cells in enumerate(rows))
    head = line([plain(cell) for cell in header])
    columns = "l" + "r" * (len(header) - 1)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def graph_density_table(census: list[Any], tau: float, num_texts: int, what: str) -> str:
    """Density of the token graph by tau; the chosen tau is marked."""
    rows = [
        [f"{row.tau:g}{' *' if row.tau == tau else ''}", percent(row.density), f"{row.degree:.1f}", percent(row.isolated), row.verdict]
        for row in census
    ]
    table = markdown(["tau", "pairs joined", "neighbours", "isolated tokens", ""], rows)
    return f"{table}\n\n{what}, {counted(num_texts, 'text')}; * = --tau. A token's own loop is not counted."
