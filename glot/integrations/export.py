"""`glot export`: write a run as a folder that `SentenceTransformer(folder, trust_remote_code=True)` loads without this package."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from glot.errors import CheckpointError, ConfigError
from glot.integrations.bundle import bundle
from glot.integrations.sentence_transformers import BUNDLE, BackboneModule, GlotPooling
from glot.prompts import DOCUMENT, Prompts
from glot.settings.config import RunConfig, read_config
from glot.states.backbone import Backbone, pick_device
from glot.training.checkpoint import BACKBONE, CONFIG, RESULT, find_trained_backbone, load_run

NEEDS_PYG = ("gcn", "gin", "gine")


def export_run(run_dir: Path, folder: Path, head_only: bool = False, max_length: int | None = None, exclude_prompt: bool = False) -> str:
    """Write the export. Returns a line that describes it.

    Args:
        run_dir: folder of a finished run.
        folder: new, or empty.
        head_only: name the backbone instead of storing its weights.
        max_length: number of tokens that a text is cut to; default: as in training.
        exclude_prompt: leave a prompt's tokens out of pooling.

    Raises:
        CheckpointError: no finished run, or its backbone is not the one on this machine.
        ConfigError: the folder is in use, or `max_length` is more than the backbone reads.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--to={folder}: is there already; choose a new folder, or move it away")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"--to={folder}: cannot be made ({parent} is not a writable folder)")
    model, config, resolved = load_run(run_dir)
    if not (run_dir / RESULT).is_file():
        raise CheckpointError(f"{run_dir}: no {RESULT}; give the folder of a finished run")
    result = json.loads((run_dir / RESULT).read_text())
    if (run_dir / BACKBONE).is_dir() and head_only:
        raise ConfigError(f"--head_only: {run_dir} has trained its backbone too; export it whole")
    source = find_trained_backbone(run_dir, read_config(run_dir / CONFIG), config)
    length = max_length or (None if config.backbone.adaptive_length else config.backbone.max_length)
    backbone = Backbone(source, length, config.backbone.backbone_dtype, config.backbone.hidden_layer, pick_device("cpu"))
    prompts = Prompts.from_dict(resolved.get("prompts"))
    flags = dataclasses.asdict(config.pooler), dataclasses.asdict(config.graph)
    pooling = GlotPooling(*flags, resolved["hidden_size"], config.data_seed, not (exclude_prompt or prompts.exclude))
    pooling.net.load_state_dict(model.pooler.state_dict())
    texts = dict(prompts.texts)
    if prompts.for_pairs().document:  # `encode_document` must use the prompt of training
        texts.setdefault(DOCUMENT, prompts.for_pairs().document)
    modules = [BackboneModule(backbone, head_only), pooling, Normalize()]
    whole = SentenceTransformer(modules=modules, device="cpu", prompts=texts, default_prompt_name=prompts.default)
    whole.save(str(folder), create_model_card=False)
    _make_independent(folder, config)
    (folder / "README.md").write_text(model_card(config, result, source.name, pooling, backbone.max_length), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}: {config.pooler.pooling_method}, D = {pooling.net.out_dim}, {size / 2**20:.1f} MiB{', backbone by name' * head_only}"


def _make_independent(folder: Path, config: RunConfig) -> None:
    """Replace references to this package by the joined source, and declare the required packages."""
    (folder / BUNDLE).write_text(bundle(), encoding="utf-8")
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if package == GlotPooling.__module__:
            module["type"] = f"{Path(BUNDLE).stem}.{name}"
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    settings["requirements"] = requirements(config)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def requirements(config: RunConfig) -> dict[str, str]:
    """Packages required to load an export; torch_geometric only where the pooler uses its layers."""
    pooler = config.pooler
    layered = pooler.pooling_method == "glot" and pooler.num_layers > 0
    with_pyg = pooler.pooling_method == "mlp" or (layered and (pooler.gnn_type in NEEDS_PYG or pooler.jk_mode == "lstm"))
    return {"sentence-transformers": ">=6.0"} | ({"torch-geometric": ">=2.6"} if with_pyg else {})


def model_card(config: RunConfig, result: dict[str, Any], backbone: str, pooling: GlotPooling, max_length: int) -> str:
    """README.md of an export: usage, training data, scores and limits."""
    front = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity", f"base_model: {backbone}"]
    front += ["tags: [sentence-transformers, feature-extraction, glot]", "---"]
    length = "texts not cut" if config.backbone.adaptive_length else f"texts cut to {config.backbone.max_length} tokens"
    data = config.contrastive.train_file if config.data.task == "embedding" else config.data.task
    best = ", ".join(f"{name} {value:.4f}" for name, value in result["best"]["metrics"].items() if value is not None)
    return "\n".join(
        [
            *front,
            "",
            f"# {config.pooler.pooling_method} on {backbone}",
            "",
            f"Sentence vectors of {pooling.net.out_dim} numbers, of length one: a pooler over the frozen token states of {backbone}.",
            "",
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("this/folder", trust_remote_code=True)',
            'vectors = model.encode(["one text", "another"])',
            "```",
            "",
            f"A prompt's tokens are {'pooled like the others' if pooling.include_prompt else 'left out'} (`model[1].include_prompt`).",
            "`encode(..., output_value=None)` also returns `readout_weights`, the share of every token, where the pooler weighs tokens.",
            "",
            "## Training",
            "",
            f"- data: {data}, {result['rows']['train']:,} rows; {length}",
            f"- {config.train.epochs} epochs, batches of {config.train.batch_size}, Adam at {config.train.lr:g}, seed {config.train.seed}; "
            f"{result['trainable_params']:,} parameters trained, the backbone {'too' if config.backbone.finetune_backbone else 'was not'}",
            f"- figures: {best} ({result['select_by']})",
            "",
            "## Limits",
            "",
            f"- Texts are cut to {max_length} tokens. Trained on one data set with one seed: the figures above say nothing of other data.",
            *["- Trained for a classification task: its vectors were made to be told apart there, not to be compared by cosine."]
            * (config.data.task != "embedding"),
            *["- The backbone takes its products in bfloat16 (autocast), as in training."] * (config.backbone.backbone_dtype == "autocast"),
            "- What the backbone cannot tell apart, no pooler can; its biases are in these vectors too.",
            "",
            "Written by `glot export`. `trust_remote_code` runs `glot_model.py` of this folder: plain Python, readable, MIT licence.",
            "",
        ]
    )
