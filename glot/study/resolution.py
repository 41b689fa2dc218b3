"""Cells of a study as configurations: which are ready. What has no effect, or makes two arms equal, is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glot.errors import ConfigError, GlotError
from glot.nn.poolers import own_codes
from glot.progress import warn
from glot.settings.choices import EVALUATIONS
from glot.settings.config import RunConfig
from glot.settings.effects import acting_flags
from glot.settings.flags import Parsed, convert, parse
from glot.states.backbone import need_adapters
from glot.states.tokens import find_source
from glot.study.files import PROGRAMS, Cell, Flags, Study, crossed
from glot.training.run import read_texts


def resolve_cells(path: Path, study: Study) -> list[RunConfig]:
    """One configuration per cell, with `data_seed` 0 unless the file sets it.

    Raises:
        ConfigError: flags that are wrong, have no effect in their arm, or make two arms equal; each line names file and cell.
    """
    problems, configs = [], []
    arm_only = {cell.arm: set(cell.flags) for cell in study.cells if cell.arm}
    shared = set.intersection(*arm_only.values()) if arm_only else set()
    found: dict[str, list[str]] = {}  # mistake -> the cells that have it, so that a mistake in many cells is one line
    for cell in study.cells:
        where = _in_words(path, cell)
        try:
            parsed = _parsed_tuned(study, cell)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(where)
            continue
        inert = [name for name in parsed.inert if name in set(cell.flags) - shared] if cell.arm else []
        problems += [f"{where}: --{name} has no effect in this arm; leave it out" for name in inert]
        config = parsed.config
        problems += [f"{where}: {problem}" for problem in _evaluation_problems(study, cell, config)]
        configs.append(config if config.data.data_seed is not None else config.with_values(data_seed=0))
    problems += _misfolded(path, study, configs)
    problems += [] if problems or found else _idle_tune(path, study, configs)
    seen: dict[str, Cell] = {}
    for cell, config in zip(study.cells, configs, strict=False):
        if problems or found:
            break
        twin = seen.setdefault(f"{config.fingerprint()} {acting_points(cell.tune, config)}", cell)
        if twin is not cell and twin.grid == cell.grid:
            point = ", ".join(f"{name}: {value}" for name, value in cell.grid.items())
            one_arm = f"grid: {point} stands in it twice; leave one out"
            same = f"arms {twin.arm} and {cell.arm} cannot differ: they are the same run"
            problems.append(f"{path}: {one_arm if twin.arm == cell.arm else same}")
    problems += _once(found)
    if problems:
        raise ConfigError(*problems)
    return configs


def check_inputs(path: Path, study: Study, configs: list[RunConfig]) -> list[RunConfig]:
    """Find every cell's backbone and read its rows, before any cell is encoded. A search draws its cells later.

    Returns:
        those that are ready. Of the others one line is said for each mistake; they are tried in their turn, and the rest go on.

    Raises:
        ConfigError: no cell can be read; each line names file and cell.
    """
    found: dict[str, list[str]] = {}
    readable = []
    for cell, config in zip(study.cells, configs, strict=True):
        if config.data.task not in EVALUATIONS:
            try:
                source = find_source(config.backbone)
                if config.backbone.finetune_backbone == "lora":
                    need_adapters()
                source.resolve_layers(config.backbone.hidden_layer)
                read_texts(config.checked(), source)
            except GlotError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(_in_words(path, cell))
                continue
        readable.append(config)
    if found and not readable:
        raise ConfigError(*_once(found))
    for problem in _once(found):
        warn(f"not ready: {problem}")
    return readable


def _in_words(path: Path, cell: Cell) -> str:
    """Where a cell stands."""
    return f"{path}: {', '.join([*filter(None, [cell.arm]), *(f'{name}={value}' for name, value in cell.grid.items())])}"


def _once(found: dict[str, list[str]]) -> list[str]:
    """Mistakes and the cells that have them: one line for each mistake."""
    more = {problem: f" (and so in {len(cells) - 1} more)" if len(cells) > 1 else "" for problem, cells in found.items()}
    return [f"{cells[0]}: {problem}{more[problem]}" for problem, cells in found.items()]


def _parsed_tuned(study: Study, cell: Cell) -> Parsed:
    """A cell with the first values of what is tuned. All others are read too at the first cell of each arm.

    Raises:
        ConfigError: a value that cannot be.
    """
    is_first = next(other for other in study.cells if other.arm == cell.arm) is cell
    points = list(tuned_points(cell.tune)) if is_first else [next(tuned_points(cell.tune))]
    read = [{**cell.flags, **point} for point in points]
    parsed = [parse([f"--{name}={value}" for name, value in flags.items()], study.program, PROGRAMS[study.program]) for flags in read]
    own_codes(parsed[0].config.pooler, parsed[0].config.graph)
    return parsed[0]


def tuned_points(choices: dict[str, list[str]]) -> Iterator[Flags]:
    """The first value of every flag; then each further value of one flag beside the first ones of the others."""
    first = {name: values[0] for name, values in choices.items()}
    yield first
    yield from ({**first, name: value} for name, values in choices.items() for value in values[1:])


def _idle_tune(path: Path, study: Study, configs: list[RunConfig]) -> list[str]:
    """What is tuned without an effect: the file's in all of its arms, or an arm's own wherever it stands."""
    acts: dict[str, bool] = {}
    names: dict[str, str] = {}
    for cell, config in zip(study.cells, configs, strict=True):
        if cell.tune:
            where = cell.arm if cell.has_own_tune else "any arm"
            names[where] = ", ".join(cell.tune)
            acts[where] = acts.get(where, False) or bool(acting_points(cell.tune, config))
    return [f"{path}: tune: {names[where]} has no effect in {where}; leave it out" for where, does in acts.items() if not does]


def _evaluation_problems(study: Study, cell: Cell, config: RunConfig) -> list[str]:
    """What a study cannot ask of a task that trains nothing."""
    if config.data.task not in EVALUATIONS:
        return []
    wrong = {
        "a study scores one pooler per run; name one, and make the others arms": (
            len(config.mteb.checkpoints) + len((config.mteb.mteb_poolers or "").split(",")) > 1
        ),
        f"tune: --task={config.data.task} trains nothing, so there is nothing to tune": bool(cell.tune),
        f"compare: --task={config.data.task} has no scores of rows, which a comparison needs; leave compare out": bool(study.compare),
    }
    return [problem for problem, holds in wrong.items() if holds]


def _misfolded(path: Path, study: Study, configs: list[RunConfig]) -> list[str]:
    """A tuning fold that the runs do not have."""
    fewest = min((config.data.folds for config in configs), default=0)
    if study.tune_fold is None or study.tune_fold < fewest:
        return []
    wanted = "add folds, such as folds: 5 under runs_with" if fewest == 0 else f"must be below --folds={fewest}"
    return [f"{path}: tune.fold: {study.tune_fold}; {wanted}"]


def acting_points(tune: dict[str, list[str]], config: RunConfig) -> list[Flags]:
    """The points that an arm is tuned over, without flags that do nothing in it: a learning rate is nothing to a probe."""
    points = crossed(tune) if tune else []
    acting = [(point, acting_flags(config.with_values(**typed(point)))) for point in points]
    own = [{name: value for name, value in point.items() if name in names} for point, names in acting]
    return [point for place, point in enumerate(own) if point and point not in own[:place]]


def typed(point: Flags) -> dict[str, Any]:
    """The values of a grid point as the flags take them."""
    return {name: convert(name, value) for name, value in point.items()}
