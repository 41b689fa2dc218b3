"""How much of the stress test's signal is left when its texts are cut."""

from glot.data.stress import needles_kept
from glot.settings.config import BackboneConfig
from glot.states.backbone import kept_characters
from glot.states.tokens import find_source, max_tokens


def signal_kept(backbone: BackboneConfig, texts: list[str]) -> float:
    """Share of stress texts whose signal is whole when they are cut to the backbone's tokens. Loads a tokenizer, no weights."""
    return needles_kept(texts, kept_characters(find_source(backbone), texts, max_tokens(backbone)))
