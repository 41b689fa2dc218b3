"""Writes the table of docs/backbones.md: every architecture of the zoo, tried. `make backbones` runs it."""

import re
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from zoo import KINDS, make_model

from glot.errors import GlotError
from glot.states.backbone import Backbone, find_backbone

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
HEADER = "| architecture | such as | kind | batches | d | layers |"
WRITTEN_WITH = re.compile(r"(written by `make backbones` with transformers )\S+(?=\. )")


def describe(name: str, root: Path) -> str:
    """One line of the table."""
    kind = KINDS[name]
    row = f"| {name} | {kind.example or '-'} | "
    try:
        source = find_backbone(str(make_model(name, root / name)))
        backbone = Backbone(source, None, "float32", source.resolve_layer("-1"), torch.device("cpu"))
    except GlotError as error:
        return row + f"- | refused: {str(error).split(': ', 1)[1].replace(str(root / name), name)} | - | - |"
    widths = backbone.reader.widths
    layers = f"{min(map(int, widths))} to {source.num_layers}" if len(widths) > 1 else "-1"
    numbers = " / ".join(map(str, dict.fromkeys(widths.values())))
    return row + f"{backbone.facts['kind']} | {backbone.facts['batches']} | {numbers} | {layers} |"


def main() -> None:
    """Write the table into the page, whose other lines stay as they are; into a copy where the command line names one."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        rows = [describe(name, Path(folder)) for name in KINDS]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEADER)
    after = rest[rest.index("\n\n") :]
    page = WRITTEN_WITH.sub(rf"\g<1>{transformers.__version__}", before) + "\n".join([HEADER, "|---|---|---|---|---|---|", *rows]) + after
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
