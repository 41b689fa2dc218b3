"""README.md of an export: how to use it, what it was trained on, what came out, where its limits are."""

from pathlib import Path
from typing import Any

from glot.data.tables import TABLES
from glot.hub_card import card_of, front_matter
from glot.settings.choices import short_name
from glot.settings.config import RunConfig
from glot.settings.effects import has_gradient
from glot.states.backbone import BackboneSource
from glot.words import counted

PAIR_TASKS = ("stsb",)
"""Tasks whose vectors were trained to be compared by cosine."""


HUB_NAMES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Embedded backbone -> the model of the hub that it is."""


def model_card(config: RunConfig, result: dict[str, Any], source: BackboneSource, width: int, max_length: int, include_prompt: bool) -> str:
    """The card of an export.

    Args:
        config: of the run.
        result: its `result.json`.
        source: its backbone.
        width: D.
        max_length: tokens that a text is cut to.
        include_prompt: whether a prompt's tokens are pooled.
    """
    local = source.name if source.folder is None else Path(source.name).name  # no local path in a card
    backbone = " ".join(HUB_NAMES.get(local, local).split())
    title = f"{short_name(config.pooler.pooling_method)} on {backbone}"
    table, data = TABLES.get(config.data.task), _data_name(config)
    metrics = {name: value for name, value in result["best"]["metrics"].items() if value is not None}
    front = front_matter(card_of(source.files), title, backbone, None if table is None else table.repository, (data, metrics))
    parts = [front, "", f"# {title}", "", *_usage(width, backbone, include_prompt, config.backbone.is_trained)]
    return "\n".join([*parts, *_training(config, result, data, metrics), *_limits(config, result, max_length), *PUSH, ""])


def _data_name(config: RunConfig) -> str:
    own = Path(config.contrastive.pairs_file).name if config.data.task == "embedding" else config.files.task_name or config.data.task
    return " ".join(own.split())


def _usage(width: int, backbone: str, include_prompt: bool, is_trained: bool) -> list[str]:
    states = f"the token states of {backbone}, which was trained too" if is_trained else f"the frozen token states of {backbone}"
    return [
        f"Sentence vectors of {width} numbers, of length one: a pooler over {states}.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("this/folder", trust_remote_code=True)',
        'vectors = model.encode(["one text", "another"])',
        "```",
        "",
        f"A prompt's tokens are {'pooled like the others' if include_prompt else 'left out'} (`model[1].include_prompt`).",
        "`encode(..., output_value=None)` also returns `readout_weights`, the share of every token, where the pooler weighs tokens.",
        "",
    ]


def _training(config: RunConfig, result: dict[str, Any], data: str, metrics: dict[str, float]) -> list[str]:
    train, length = (
        config.train,
        "texts not cut" if config.backbone.adaptive_length else f"texts cut to {config.backbone.max_length} tokens",
    )
    also = "too" if config.backbone.is_trained else "was not"
    trained = f"{result['trainable_params']:,} parameters trained, the backbone {also}"
    return [
        "## Training",
        "",
        f"- data: {data}, {counted(result['rows']['train'], 'row')}; {length}",
        f"- states: {_states(config)}",
        f"- {_steps(config)}, seed {train.seed}; {trained}",
        f"- figures: {', '.join(f'{name} {value:.4f}' for name, value in metrics.items())} ({result['select_by']})",
        "",
    ]


def _states(config: RunConfig) -> str:
    layer = config.backbone.hidden_layer
    return f"hidden layer {layer}" if "," not in layer else f"hidden layers {layer.replace(',', ', ')} ({config.pooler.layer_mix})"


def _steps(config: RunConfig) -> str:
    """How the weights came about."""
    train, kind = config.train, config.head.head
    fitted = f"a head fitted by scikit-learn ({kind})"
    if not has_gradient(config):
        return fitted
    epochs = counted(train.epochs, "epoch")
    epochs = f"at most {epochs}, early stop after {train.early_stop}" if train.early_stop else epochs
    name = {"adam": "Adam", "adamw": "AdamW"}[train.optimizer]
    steps = f"{epochs}, batches of {train.batch_size}, {name} at {train.lr:g}"
    return steps if kind == "trained" else f"{steps}, then {fitted}"


def _limits(config: RunConfig, result: dict[str, Any], max_length: int) -> list[str]:
    is_scored = result.get("labels", {}).get("kind") == "score"
    compared, autocast = is_scored or config.data.task in (*PAIR_TASKS, "embedding"), config.backbone.backbone_dtype == "autocast"
    return [
        "## Limits",
        "",
        f"- Texts are cut to {max_length} tokens. Trained on one data set with one seed: the figures above say nothing of other data.",
        *["- Trained for a classification task: its vectors were made to be told apart there, not to be compared by cosine."]
        * (not compared),
        *["- The backbone takes its products in bfloat16 (autocast), as in training."] * autocast,
        "- What the backbone cannot tell apart, no pooler can; its biases are in these vectors too.",
        "",
        "Written by `glot export`. `trust_remote_code` runs `glot_model.py` of this folder: plain Python, readable, MIT licence.",
        "",
    ]


PUSH = ["## Push it", "", "```python", 'model.push_to_hub("owner/name")          # after `hf auth login`', "```"]
