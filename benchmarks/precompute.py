"""Writing a store against the bare forward pass over the same batches: `python -m benchmarks.precompute DATA_DIR [SENTENCES]`.

A store takes tokenising, sorting, packing, a check for overflow, half precision and the disk besides.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import ROUNDS, Timings
from glot.data import load_hub_examples
from glot.data.loader import TextIndex
from glot.states.backbone import Backbone, find_backbone
from glot.states.backbone.model import PADDED_TOKENS
from glot.states.store import StoreKey, StorePlan, write_stores
from glot.states.store.writer import WriteOptions
from glot.states.tokens import TokenIds

PART = 8
"""What is padded is an eighth of the texts."""


def bare_pass(backbone: Backbone, texts: list[str], autocast: bool = False) -> Callable[[], None]:
    """`model(**batch)` over length-sorted batches that are tokenised and padded beforehand."""
    ids = sorted(backbone.tokenise(texts), key=len, reverse=True)
    batches, start = [], 0
    while start < len(ids):
        end = start + max(1, PADDED_TOKENS // len(ids[start]))
        batches.append(backbone.tokenizer.pad({"input_ids": ids[start:end]}, return_tensors="pt"))
        start = end

    def work() -> None:
        """All batches."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for batch in batches:
                backbone.model(**batch)

    return work


def padded_pass(backbone: Backbone, texts: list[str]) -> Callable[[], None]:
    """Some of them padded to 128 tokens in the order of the file, 32 at a time, as the release encodes."""
    batches = [
        backbone.tokenizer(texts[start : start + 32], padding="max_length", truncation=True, max_length=128, return_tensors="pt")
        for start in range(0, len(texts) // PART, 32)
    ]

    def work() -> None:
        """All batches."""
        with torch.inference_mode():
            for batch in batches:
                backbone.model(**batch)

    return work


def measure(data_dir: Path, count: int = 2000, rounds: int = ROUNDS) -> Timings:
    """Seconds of `store`, `autocast store`, `bare`, `autocast bare` and `padded` on sentences of cola."""
    source, layer = find_backbone("minilm"), str(find_backbone("minilm").num_layers)
    backbones = {dtype: Backbone(source, 128, dtype, layer, torch.device("cpu")) for dtype in ("float32", "autocast")}
    examples = load_hub_examples("cola", "train", data_dir, count)
    index = TextIndex([examples])

    def write(dtype: str) -> Callable[[], None]:
        """A new store in a folder that goes away, with weights that are loaded already."""
        backbone, key = backbones[dtype], StoreKey("minilm", layer, 128, dtype, "float16", index.sha256)

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                ids = TokenIds(backbone, index)
                plan = StorePlan(ids.lengths, backbone.hidden_size, "float16")
                encode = lambda rows: backbone.encode_sorted([ids[row] for row in rows], [layer])  # noqa: E731
                write_stores(Path(folder), [key], plan, encode, {}, WriteOptions())

        return work

    bare = backbones["float32"]
    sides = {"store": write("float32"), "bare": bare_pass(bare, index.texts), "padded": padded_pass(bare, index.texts)}
    sides |= {"autocast store": write("autocast"), "autocast bare": bare_pass(bare, index.texts, autocast=True)}
    return Timings(sides, rounds)


def main() -> None:
    """Rates and ratios."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    found = measure(Path(sys.argv[1]), count)
    for name in ("", "autocast "):
        rate = count / found.seconds(f"{name}store")
        print(
            f"{name or 'float32 '}store: {rate:.0f} sentences/s, {found.ratio(f'{name}bare', f'{name}store'):.2f} of the bare forward pass"
        )
    print(f"padded to 128 in the order of the file: {PART * found.ratio('padded', 'store'):.1f} times as long as the store")
    print(f"autocast is {found.ratio('store', 'autocast store'):.2f} times as fast")


if __name__ == "__main__":
    main()
