"""Facts about the stress test's data for a run's result: scores of shortcuts, and the share of signal left when texts are cut."""

from functools import lru_cache
from typing import Any

from glot.data.stress import needles_kept
from glot.data.tasks import load_task_data
from glot.settings.backbone_sections import BackboneConfig
from glot.settings.config import RunConfig
from glot.settings.data_sections import DataConfig, StressConfig
from glot.states.backbone import kept_characters
from glot.states.tokens import find_source, max_tokens


def stress_facts(config: RunConfig) -> dict[str, Any]:
    """`shortcuts` (rule -> accuracy) and `signal_kept` (share of evaluation texts whose signal is complete after the cut).

    Loads a tokenizer, no weights. Results are cached for runs on the same data.
    """
    data, backbone = config.data, config.backbone
    kept = _signal_kept(find_source(backbone).identity, backbone, data, config.stress, config.data_seed)
    return {"shortcuts": dict(_shortcuts(data, config.stress, backbone.max_length, config.data_seed)), "signal_kept": kept}


@lru_cache(maxsize=8)
def _shortcuts(data: DataConfig, stress: StressConfig, max_length: int, data_seed: int) -> dict[str, float]:
    from glot.data.shortcuts import score_shortcuts  # scikit-learn's classifiers, which other tasks do not need

    rows = load_task_data(data.task, data, stress, max_length, data_seed)
    return score_shortcuts(rows.train, rows.reported[0])


@lru_cache(maxsize=8)
def _signal_kept(identity: str, backbone: BackboneConfig, data: DataConfig, stress: StressConfig, data_seed: int) -> float:
    """`identity` is unused here but part of the cache key, because a name may later refer to another tokenizer."""
    texts = load_task_data(data.task, data, stress, backbone.max_length, data_seed).reported[0].columns[0]
    return needles_kept(texts, kept_characters(find_source(backbone), texts, max_tokens(backbone)))
