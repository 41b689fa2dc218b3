"""What a study file says against itself or in vain: values named twice, flags in two places or decided elsewhere, seeds that are none."""

from pathlib import Path
from typing import Any

from glot.errors import nearest
from glot.report.published import published_tables

DECIDED = {
    "seeds": "write seeds: at the top of the file",
    "output_dir": "give --output_dir to glot sweep",
    "overwrite": "give --overwrite to glot sweep",
    "dry_run": "give --dry_run to glot sweep",
    "print_config": "give --dry_run to glot sweep",
    "run_name": "a study names its runs itself",
}
"""Flags of a run that a study decides -> what to do instead."""


def number_problem(where: str, values: object) -> list[str]:
    """A line where values are no list of whole numbers."""
    wrong = next((value for value in values if not is_numbers([value])), None) if isinstance(values, list) else values
    return [] if is_numbers(values) else [f"{where}: {wrong or 'empty'}: must be a list of whole numbers from 0, such as [0, 1, 2]"]


def is_numbers(values: object) -> bool:
    """Whether values are a list of whole numbers from 0."""
    return isinstance(values, list) and all(isinstance(value, str) and value.isdecimal() and len(value) < 20 for value in values)


def twice(where: str, values: object) -> list[str]:
    """A line where a list names a value more than once."""
    names = values if isinstance(values, list) else []
    known = [_as_number(name) for name in names]
    found = next((name for place, name in enumerate(names) if known[place] in known[:place]), None)
    return [] if found is None else [f"{where}: names {found} twice; keep one"]


def _as_number(value: Any) -> Any:
    """`1e-3` and `0.001` are one value."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def contradictions(
    path: Path, content: dict[str, Any], grids: list[dict[str, Any]], arms: dict[str, Any], own_tune: dict[str, dict[str, Any]]
) -> list[str]:
    """What a study file says twice, in two places that decide the same, or in vain; each as a line.

    Args:
        path: of the file.
        content: of the file.
        grids: of the file, as a list.
        arms: name -> flags.
        own_tune: name of an arm -> flags that it alone tunes, in place of the file's.
    """
    tune, seeds = content.get("tune") or {}, content.get("seeds")
    tunes = {arm: own_tune.get(arm, {name: values for name, values in tune.items() if name not in ("seeds", "fold")}) for arm in arms}
    lists = [*(entry for grid in grids for entry in grid.items()), *((f"tune.{name}", values) for name, values in tune.items())]
    problems = [line for name, values in [*lists, ("seeds", seeds)] for line in twice(f"{path}: {name}", values)]
    problems += [f"{path}: seeds: must name at least one; leave the key out to run the one of --seed"] * (seeds == [])
    problems += _published_problems(path, content.get("published")) + _in_two_places(path, grids, arms, tunes, set(own_tune))
    places: dict[str, list[Any]] = {"runs_with": [content.get("runs_with")], "grid": grids}
    places |= {"arms": list(arms.values()), "tune": list(tunes.values())}
    decided = {"seed": "seeds: names them; leave it out"} if seeds else {}
    for key, parts in places.items():
        for name, instead in (DECIDED | decided).items():
            if any(isinstance(part, dict) and name in part for part in parts):
                problems.append(f"{path}: {key}: {name} has no effect there; {instead}")
    return problems


def _in_two_places(
    path: Path, grids: list[dict[str, Any]], arms: dict[str, Any], tunes: dict[str, dict[str, Any]], own: set[str]
) -> list[str]:
    """Flags that an arm fixes and the grid or `tune` varies, or that both vary."""
    problems = []
    varied = {name for grid in grids for name, values in grid.items() if isinstance(values, list) and len(values) > 1}
    gridded = {name for grid in grids for name in grid}
    for arm, flags in arms.items():
        fixed = flags if isinstance(flags, dict) else {}
        problems += [f"{path}: arms.{arm}: {name} is fixed, and the grid varies it; leave one out" for name in fixed if name in varied]
        tuned = [name for name in tunes.get(arm, {}) if name in fixed]
        instead = "" if arm in own else ", or give the arm a tune of its own"
        problems += [f"{path}: arms.{arm}: {name} is fixed and tuned; leave one out{instead}" for name in tuned]
    both = dict.fromkeys(name for tune in tunes.values() for name in tune if name in gridded)
    problems += [f"{path}: tune: {name} is in the grid too; leave one out" for name in both]
    return problems


def _published_problems(path: Path, given: str | None) -> list[str]:
    """A line where `published` names a table that the paper's figures lack."""
    if given is None:
        return []
    table, known = given.partition(",")[0].strip(), published_tables()
    return [] if table in known else [f"{path}: published: {given}: no such table{nearest(table, known)}; there are {', '.join(known)}"]
