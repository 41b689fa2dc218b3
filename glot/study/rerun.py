"""A finished run once more: `glot rerun`."""

from pathlib import Path

from glot.nn.own import hold_sources
from glot.recipes import choose_recipe
from glot.settings.config import RunConfig, read_config
from glot.training.checkpoint import own_sources
from glot.training.result_file import BACKBONE, CONFIG, PREDICTIONS, SIDE_BY_SIDE, WEIGHTS, read_result
from glot.trust import DISTRUST, Trust

COMPARED = (WEIGHTS, f"fold-*/{WEIGHTS}", f"{BACKBONE}/*", PREDICTIONS)
"""Files of a run that `--check` compares, byte by byte."""


def rerun(folder: Path, output_dir: str | None, check: bool, trust: Trust = DISTRUST) -> tuple[str, bool]:
    """Do a finished run once more, into a new folder.

    Args:
        folder: of the finished run.
        output_dir: where the new folder is made; None = beside the old one.
        check: compare weights, predictions and scores byte by byte.
        trust: whether code of the run's pooler and of its backbone may run.

    Returns:
        what came out, in words; whether all was equal (true without `check`).

    Raises:
        CheckpointError: no finished run.
    """
    saved = read_config(folder / CONFIG)
    old = read_result(folder)
    hold_sources(own_sources(folder, saved, trust.pooler) or {})
    config = RunConfig.from_dict({**saved["flags"], "trust_remote_code": trust.remote_code, "trust_pooler": trust.pooler}).with_values(
        output_dir=output_dir or str(folder.absolute().parent), run_name=f"{folder.name}-again", overwrite=False, override_precompute=False
    )
    if config.data.task == "embedding":  # its .pth would meet that of the run itself
        config = config.with_values(save_dir=str(Path(config.output.output_dir) / f"{config.output.run_name}-saved"))
    result = choose_recipe(config)(config)
    again = Path(result["run_dir"])
    if not check:
        return f"{again}: done", True
    names = [str(path.relative_to(folder)) for pattern in COMPARED for path in sorted(folder.glob(pattern))]
    facts = {name: (again / name).is_file() and (folder / name).read_bytes() == (again / name).read_bytes() for name in names}
    facts["scores"] = old.get("best") == result.get("best") and old.get("scores") == result.get("scores")
    lines = [f"{name}: {'equal' if same else 'DIFFERS'}" for name, same in facts.items()]
    if not all(facts.values()) and any(note.startswith(SIDE_BY_SIDE) for note in old["notes"]):
        lines.append("it was trained stacked with other seeds, and alone now: equal up to rounding at most")
    changed = {name: (old["versions"].get(name), version) for name, version in result["versions"].items()}
    lines += [f"{name}: {before} then, {now} now" for name, (before, now) in changed.items() if before != now]
    return "\n".join([f"{again}: compared with {folder}", *lines]), all(facts.values())
