"""`glot export`: write a run as a folder that `SentenceTransformer(folder, trust_remote_code=True)` loads without this package."""

import ast
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from glot.errors import CheckpointError, ConfigError, disk_door
from glot.integrations.bundle import EVERYTHING, bundle, defined_names
from glot.integrations.card import model_card
from glot.integrations.sentence_transformers import BUNDLE, BackboneModule, GlotPooling
from glot.nn.cutting import PACKAGE, cut_out
from glot.nn.poolers import own_codes
from glot.opening import with_folder
from glot.progress import silence
from glot.prompts import DOCUMENT, Prompts
from glot.settings.backbone_sections import BackboneConfig
from glot.settings.choices import PAIR_POOLERS
from glot.settings.config import RunConfig, read_config
from glot.states.backbone import Backbone, BackboneSource, pick_device
from glot.states.tokens import windows_key
from glot.training.checkpoint import find_trained_backbone, load_run
from glot.training.folders import current_umask
from glot.training.result_file import BACKBONE, CONFIG, read_result
from glot.trust import DISTRUST, Trust

CHECKED_TEXTS = ["the red cat", "Unbelievably, 3.14 tokenizers' <tests>!", "a", ""]
"""What run and export must agree on."""
IMPLIED = ("torch", "numpy", "transformers")
"""What sentence-transformers brings along."""
NEEDS_PYG = ("gcn", "gin", "gine")


def export_run(
    run_dir: Path,
    folder: Path,
    head_only: bool = False,
    max_length: int | None = None,
    exclude_prompt: bool = False,
    trust: Trust = DISTRUST,
    backbone_folder: str | None = None,
) -> str:
    """Write the export. Returns a line that describes it.

    Args:
        run_dir: folder of a finished run.
        folder: new, or empty.
        head_only: name the backbone instead of storing its weights.
        max_length: number of tokens that a text is cut to; default: as in training.
        exclude_prompt: leave a prompt's tokens out of pooling.
        trust: whether code of the run's pooler and of its backbone may run.
        backbone_folder: where the backbone is now, if it was moved.

    Raises:
        CheckpointError: no finished run, or its backbone is not the one on this machine.
        ConfigError: the folder is in use, or `max_length` is more than the backbone reads.
    """
    model, config, resolved = load_run(run_dir, trust.pooler)
    result = read_result(run_dir)
    _refuse(run_dir, config, head_only)
    _check_target(folder)
    config = with_folder(config.with_values(trust_remote_code=trust.remote_code), backbone_folder)
    source = find_trained_backbone(run_dir, read_config(run_dir / CONFIG), config)
    backbone = _open_backbone(source, config.backbone, max_length)
    prompts = Prompts.from_dict(resolved.get("prompts"))
    flags = dataclasses.asdict(config.pooler), dataclasses.asdict(config.graph)
    sources = carried_sources(config, resolved.get("sources") or {})
    included = not (exclude_prompt or prompts.exclude)
    pooling = GlotPooling(*flags, resolved["hidden_size"], config.data_seed, included, sources or None, len(backbone.layers))
    pooling.net.load_state_dict(model.pooler.state_dict())
    texts = _texts_of(prompts)
    modules = [BackboneModule(backbone, head_only), pooling, Normalize()]
    whole = SentenceTransformer(modules=modules, device="cpu", prompts=texts, default_prompt_name=prompts.default)
    card = model_card(config, result, source, pooling.net.out_dim, backbone.max_length, pooling.include_prompt)
    with _written_beside(folder) as partial:
        with disk_door(partial):
            whole.save(str(partial), create_model_card=False)
        _make_independent(partial, sources, requirements(config, sources))
        (partial / "README.md").write_text(card, encoding="utf-8")
        _check_export(partial, whole, backbone.dtype)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}: {config.pooler.pooling_method}, D = {pooling.net.out_dim}, {size / 2**20:.1f} MiB{', backbone by name' * head_only}"


def _open_backbone(source: BackboneSource, config: BackboneConfig, max_length: int | None) -> Backbone:
    """The backbone of the run, on the CPU."""
    length = max_length or (None if config.adaptive_length else config.max_length)
    return Backbone(source, length, config.backbone_dtype, config.hidden_layer, pick_device("cpu"), None, windows_key(config))


def _texts_of(prompts: Prompts) -> dict[str, str]:
    """Prompts by name; `encode_document` must use the one of training."""
    document = prompts.for_pairs().document
    return {**({DOCUMENT: document} if document else {}), **prompts.texts}


def _refuse(run_dir: Path, config: RunConfig, head_only: bool) -> None:
    """Refuse a pooler that gives no vector of a text, and a name in place of a backbone that was trained.

    Raises:
        CheckpointError, ConfigError: naming it.
    """
    method = config.pooler.pooling_method
    if method in PAIR_POOLERS:
        raise CheckpointError(f"{run_dir}: --pooling_method={method} scores pairs and gives no sentence vector; use glot predict")
    if (run_dir / BACKBONE).is_dir() and head_only:
        raise ConfigError(f"--head_only: {run_dir} has trained its backbone too; export it whole")


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """A folder beside the target, which takes its name when the block is through: what is killed before loads as nothing.

    Raises:
        ConfigError: the disk is full, or cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        for path in (partial, *partial.rglob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~current_umask())
        _check_target(folder)  # another command may have come first
        if folder.is_dir():
            folder.rmdir()  # empty
        partial.rename(folder)
    except OSError as error:
        raise ConfigError(f"--to={folder}: cannot be written ({error.strerror or error}); make room, or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_export(folder: Path, whole: SentenceTransformer, dtype: str) -> None:
    """Load what was written, and compare its vectors of a few texts with those of the run.

    Raises:
        CheckpointError: they differ.
    """
    one = whole.encode(CHECKED_TEXTS, show_progress_bar=False, convert_to_numpy=True)
    with silence():  # by the name of a folder that is about to be renamed
        again = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        other = again.encode(CHECKED_TEXTS, show_progress_bar=False, convert_to_numpy=True)
    largest = float(abs(one - other).max())
    if not largest <= (1e-4 if dtype == "float32" else 1e-2):
        raise CheckpointError(f"{folder}: the export gives other vectors than the run (by {largest:g}); please report this")


def _check_target(folder: Path) -> None:
    """Refuse a folder that is in use, or that cannot be made.

    Raises:
        ConfigError: which of both.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--to={folder}: is there already; choose a new folder, or move it away")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"--to={folder}: cannot be made ({parent} is not a writable folder)")


def _make_independent(folder: Path, sources: dict[str, str], needed: dict[str, str]) -> None:
    """Replace references to this package by the joined source, and declare the required packages."""
    names = frozenset(name for text in sources.values() for name in package_names(text))
    (folder / BUNDLE).write_text(bundle(names), encoding="utf-8")
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if package == GlotPooling.__module__:
            module["type"] = f"{Path(BUNDLE).stem}.{name}"
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    settings["requirements"] = needed
    path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def carried_sources(config: RunConfig, known: dict[str, str]) -> dict[str, str]:
    """The user's own code that an export needs, by name.

    Raises:
        ConfigError: it imports something that an export cannot carry.
    """
    sources = {}
    codes = own_codes(config.pooler, config.graph, known)
    for flag, name in (("pooling_method", config.pooler.pooling_method), ("graph_adj", config.graph.graph_adj)):
        if name not in codes:
            continue
        code, problem = codes[name], f"--{flag}={name}"
        text = code.source if code.module is None else cut_out(code.source, code.attribute, code.path, problem)
        held = {EVERYTHING, *defined_names(bundle(frozenset({EVERYTHING})))}
        missing = next((item for item in package_names(text) if item not in held), None)
        if missing is not None:
            raise ConfigError(f"{problem}: imports {missing} from glot, which an export cannot carry; write what is needed into the file")
        sources[name] = text
    return sources


def package_names(source: str) -> list[str]:
    """What a source imports from this package; `*` for all."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes if str(node.module).partition(".")[0] == PACKAGE for alias in node.names]


def libraries(source: str) -> list[str]:
    """Top-level modules that a source imports, but those of Python and of this package."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    first = dict.fromkeys(name.partition(".")[0] for name in names)
    return [name for name in first if name not in sys.stdlib_module_names and name != PACKAGE]


def requirements(config: RunConfig, sources: dict[str, str]) -> dict[str, str]:
    """What must be installed to load an export: torch_geometric only where its layers hold the weights, and what own code imports."""
    owners = metadata.packages_distributions() if sources else {}  # it looks at every installed package: half a second
    names = [name for text in sources.values() for library in libraries(text) for name in owners.get(library, [])[:1]]
    further = {name: f">={metadata.version(name).partition('+')[0]}" for name in names if name not in IMPLIED}
    pooler = config.pooler
    layered = pooler.pooling_method == "glot" and pooler.num_layers > 0
    with_pyg = pooler.pooling_method == "mlp" or (layered and (pooler.gnn_type in NEEDS_PYG or pooler.jk_mode == "lstm"))
    return {"sentence-transformers": ">=6.0"} | ({"torch-geometric": ">=2.6"} if with_pyg else {}) | further
