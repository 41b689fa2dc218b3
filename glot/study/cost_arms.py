"""The arms of `glot cost`: poolers on a frozen backbone, and what trains the backbone, each as the configuration of an ordinary run."""

from typing import Any, NamedTuple

from glot.data.custom import CUSTOM
from glot.data.tasks import TASKS
from glot.errors import ConfigError, unknown_name
from glot.settings.checks import check
from glot.settings.choices import EVALUATIONS, PAIR_POOLERS, POOLERS
from glot.settings.config import RunConfig
from glot.settings.effects import acting_flags, reads_pairs
from glot.settings.index import flag_facts
from glot.training.finish import check_head

FINETUNED = {"optimizer": "adamw", "lr_schedule": "linear", "warmup_ratio": 0.1, "grad_clip": 1.0, "precompute_hidden_states": False}
"""How a backbone is usually trained (Devlin et al. 2019, appendix A.3)."""
HEAD_RATE = 1e-3
"""`--lr` of the head on a backbone that is trained, as in configs/finetuning-minilm.yaml."""
TRAINED_UNTIL, POOLED_UNTIL = {"epochs": 5, "early_stop": 2}, {"epochs": 15, "early_stop": 3}
"""How long a backbone, and a pooler on a frozen one, train at most when arms are scored."""
ARMS: dict[str, dict[str, Any]] = {
    "probe": {"pooling_method": "mean", "head": "probe"},
    "lora": {"pooling_method": "mean", "finetune_backbone": "lora", "lr": HEAD_RATE, **FINETUNED},
    "full": {"pooling_method": "mean", "finetune_backbone": "full", "lr": HEAD_RATE, **FINETUNED},
}
"""Arms that are more than a pooler -> their flags. Any pooler's name is an arm too."""
DEFAULT_ARMS = ("mean", "probe", "adapool", "glot", "crossglot", "lora", "full")
OF_QUALITY = ("seeds", "epochs", "early_stop", "selection")
"""Flags that only scored runs take."""
OF_ARMS = ("pooling_method", "head", "finetune_backbone", "precompute_hidden_states")
"""Flags that only an arm sets."""


class Arm(NamedTuple):
    """One row of the cost table: its name, and what its run is told."""

    name: str
    config: RunConfig


def make_arms(base: RunConfig, explicit: frozenset[str], names: str | None, quality: bool) -> list[Arm]:
    """The arms of a command line.

    Args:
        base: the flags that all arms share.
        explicit: those that were given: they count before an arm's own.
        names: with commas between; None = the default arms that the task can have.
        quality: rows are held out, and training may stop early.

    Raises:
        ConfigError: an arm that is unknown or that the task cannot have, or a flag that no arm takes.
    """
    if base.data.task in EVALUATIONS:
        raise ConfigError(f"--task={base.data.task}: trains nothing; name a task that trains")
    fixed = [name for name in OF_ARMS if name in explicit]
    if fixed:
        raise ConfigError(*(f"--{name}: the arms say it; name them with --arms" for name in fixed))
    wanted = list(DEFAULT_ARMS) if names is None else [name.strip() for name in names.split(",")]
    problems = [unknown_name(name, (*ARMS, *POOLERS), "arms") for name in wanted if name not in (*ARMS, *POOLERS)]
    problems += [f"--arms={names}: {name} is named twice" for name in dict.fromkeys(wanted) if wanted.count(name) > 1]
    if problems:
        raise ConfigError(*problems)
    arms = [Arm(name, _config_of(base, explicit, name, quality)) for name in wanted]
    mistakes = {arm.name: check(arm.config) + _cannot(arm) for arm in arms}
    if names is None:
        arms = [arm for arm in arms if not _cannot(arm) and not _of_task(arm, mistakes[arm.name])]
    first = mistakes[arms[0].name] if len(arms) > 1 else []
    shared = [problem for problem in first if all(problem in mistakes[arm.name] for arm in arms)]
    problems = [f"--arms={arm.name}: {problem}" for arm in arms for problem in mistakes[arm.name] if problem not in shared]
    if shared or problems:
        raise ConfigError(*shared, *problems)
    acting = {name for arm in arms for name in acting_flags(arm.config)} | ({"seeds"} if quality else set())
    idle = {name: "in any of these arms" for name in sorted(explicit - acting) if flag_facts()[name].ours}
    idle |= {} if quality else {name: "without --quality=1" for name in OF_QUALITY if name in explicit}
    idle |= {name: "here: costs are measured, and need no estimate" for name in ("dry_run", "estimate") if name in explicit}
    idle |= {name: "here: costs are those of one training" for name in ("folds", "fold") if name in explicit}
    if idle:
        raise ConfigError(*(f"--{name}: has no effect {where}; leave it out" for name, where in idle.items()))
    return arms


def _config_of(base: RunConfig, explicit: frozenset[str], name: str, quality: bool) -> RunConfig:
    own = ARMS.get(name, {"pooling_method": name})
    own = {flag: value for flag, value in own.items() if flag not in explicit or flag in OF_ARMS}
    if own.get("head") == "probe" and reads_pairs(base) and "pair_features" not in explicit:
        own |= {"pair_features": "full"}  # side by side, a linear head cannot compare two texts
    if quality and base.data.task != "embedding":
        further = {"selection": "heldout", **(TRAINED_UNTIL if "finetune_backbone" in own else POOLED_UNTIL)}
        if base.data.selection != "heldout" and "selection" in explicit:
            del further["early_stop"]  # which needs rows that are held out
        own |= {flag: value for flag, value in further.items() if flag not in explicit}
    return base.with_values(**own)


def _cannot(arm: Arm) -> list[str]:
    """Why a task cannot have an arm, where the configuration's own checks would not say it."""
    task = arm.config.data.task
    if task == CUSTOM or arm.config.head.head == "trained":  # of a custom task, its rows say later what the labels are
        return []
    try:
        check_head(arm.config, TASKS[task])
    except ConfigError as error:
        return error.problems
    return []


def _of_task(arm: Arm, problems: list[str]) -> bool:
    """Whether an arm's mistakes come from the task: then it is no default arm there."""
    config = arm.config
    no_pairs = config.pooler.pooling_method in PAIR_POOLERS and not reads_pairs(config)
    contrastive = config.data.task == "embedding" and arm.name not in ("adapool", "glot", "lora", "full")
    return bool(problems) and (no_pairs or contrastive)
