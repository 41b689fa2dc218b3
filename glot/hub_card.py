"""Model cards: the front matter of a backbone's, and of an export's."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from glot.errors import DataError, library_door, reason


def card_of(folder: Path) -> dict[str, Any]:
    """Front matter of the card in a model's folder; empty where there is none, or none that can be read."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        with library_door(DataError, reason):
            return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except DataError:  # somebody else's card is an extra
        return {}


def front_matter(base: dict[str, Any], name: str, backbone: str, dataset: str | None, scores: tuple[str, dict[str, float]]) -> str:
    """Front matter of an export's card, between its lines of dashes.

    Args:
        base: of the backbone's card: license and language are taken from there.
        name: of the model.
        backbone: its name.
        dataset: repository of the data; None = not of the hub.
        scores: what was trained on, and its metrics.
    """
    what, metrics = scores
    results = [EvalResult("feature-extraction", dataset or what, what, metric, value) for metric, value in metrics.items()]
    data = ModelCardData(
        base_model=backbone,
        license=base.get("license", "other"),
        language=base.get("language", "en"),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "glot"],
        datasets=None if dataset is None else [dataset],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"
