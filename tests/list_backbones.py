"""Writes docs/backbones.md: every architecture of the zoo, tried. `make backbones` runs it."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from zoo import KINDS, make_model

from glot.errors import GlotError
from glot.states.backbone import Backbone, find_backbone

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
HEAD = """# Backbones

Any model of the transformers library that gives one hidden state per token can be a backbone.
This table is written by `make backbones` with transformers {version}. Each row is a tiny random model of that architecture.
`tests/states/test_zoo.py` takes each through storing, live states, encoding and export.
It compares each with the library's own call on one text.

- **padded**: texts of different lengths share a batch.
- **equal lengths**: padding changes the states of real tokens, so a batch holds texts of one length. This is slower, and exact.
- **refused**: one line says why.

A decoder is a model whose states do not depend on later tokens, as measured. `layers` are the values of `--hidden_layer` that it gives.

| architecture | such as | kind | batches | d | layers |
|---|---|---|---|---|---|
"""
FOOT = """
## What is checked when a backbone is loaded

- Two short texts are read alone and beside a long one, and again afterwards. Their states must agree.
- Hidden state 0 must be what the first block reads, and state i what block i reads. Where the library's list differs (Mamba), states are
  taken from the blocks.
- The width d is that of the first states, not of the configuration.
- The longest text that fits is tried: RoBERTa's 514 positions hold 512 tokens.
- What a pass leaves behind in the model (RecurrentGemma's state, rotary positions that grow) is taken away before the next.
- Every batch must be finite. A number that is not stops the run, with the row, the cause and the remedy.

The check is repeated when a text comes that is longer than all before it.

## Names

`--model_name_or_path` takes `minilm`, `smollm2`, a local folder, `owner/name` or `owner/name@revision`. `--revision` names a branch, tag or
commit. The commit is part of the store's key and of the run's fingerprint. A gated model needs `hf auth login` or `HF_TOKEN`.
With `HF_HUB_OFFLINE=1` no connection is opened.

A LoRA adapter is refused: merge it into its base first. The encoder of T5 works where it was saved alone (`T5EncoderModel`).

## Prompts

`--prompts=auto` reads the model's own `config_sentence_transformers.json`; `none` uses none; a JSON file of name: text replaces it.
Contrastive training puts the prompt `query` before queries and `document` (or `passage`, `corpus`) before the texts that are searched.
MTEB takes the prompt of the task, of its type or of the text's role, the first that is there.
Labelled tasks use a prompt only where your own file names the task.
`glot.load(run).encode(texts, prompt_name="query")` and the export use the same ones. Without a name they use the model's default.
`--exclude_prompt=1` leaves the prompt's tokens out of pooling. It acts in training, in `encode`, in MTEB and in the export.
"""


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
    """Write the page, to the file named on the command line or to docs/."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        lines = [describe(name, Path(folder)) for name in KINDS]
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(HEAD.format(version=transformers.__version__) + "\n".join(lines) + "\n" + FOOT, encoding="utf-8")


if __name__ == "__main__":
    main()
