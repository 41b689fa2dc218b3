"""Our encoder against SentenceTransformer.encode on one backbone, and GLOT against our mean: `python -m benchmarks.encode_speed DATA_DIR`.

Real sentences: IMDB reviews cut at 256 tokens, and both sides of STS-B; batches of 32, float32. Ratios below 1: the first is faster.
"""

import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from benchmarks.timing import ROUNDS, Timings
from glot.data import load_hub_examples
from glot.encoder import SentenceEncoder
from glot.nn.poolers import build_pooler
from glot.settings.config import GraphConfig, PoolerConfig
from glot.states.backbone import Backbone, find_backbone

LENGTH, BATCH = 256, 32


def real_sentences(data_dir: Path, count: int) -> dict[str, list[str]]:
    """`count` sentences of each of two data sets, spread over IMDB's file, from the start of STS-B's."""
    reviews = load_hub_examples("imdb", "test", data_dir, None).columns[0]
    pairs = load_hub_examples("stsb", "train", data_dir, count // 2).columns
    return {f"imdb, {LENGTH} tokens": reviews[:: len(reviews) // count][:count], "stsb": [*pairs[0], *pairs[1]]}


def measure(data_dir: Path, count: int = 2000, rounds: int = ROUNDS) -> dict[str, Timings]:
    """Data set -> seconds of `mean`, `glot` (K = 2, h = 128, tau 0.6) and `sentence-transformers`."""
    source = find_backbone("minilm")
    backbone = Backbone(source, LENGTH, "float32", str(source.num_layers), torch.device("cpu"))
    poolers = {"mean": PoolerConfig("mean"), "glot": PoolerConfig("glot", gat_hidden_dim=128, num_layers=2)}
    ours = {
        name: SentenceEncoder(backbone, build_pooler(config, GraphConfig(tau=0.6), backbone.hidden_size))
        for name, config in poolers.items()
    }
    module = Transformer(source.path, max_seq_length=LENGTH)
    theirs = SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension(), "mean"), Normalize()], device="cpu")
    found = {}
    for name, sentences in real_sentences(data_dir, count).items():
        assert abs(ours["mean"].encode(sentences[:64]) - theirs.encode(sentences[:64])).max() < 1e-5
        encoders = {**ours, "sentence-transformers": theirs}
        work = {who: lambda encoder=encoder, s=sentences: encoder.encode(s, batch_size=BATCH) for who, encoder in encoders.items()}
        found[name] = Timings(work, rounds)
    return found


def main() -> None:
    """One line a data set."""
    count, rounds = (int(word) for word in (sys.argv[2:] or ["2000", str(ROUNDS)]))
    for name, found in measure(Path(sys.argv[1]), count, rounds).items():
        print(
            f"{count} sentences, {name}, {rounds} rounds: mean {found.seconds('mean'):.2f} s, "
            f"{found.ratio('mean', 'sentence-transformers'):.3f} of SentenceTransformer.encode; "
            f"glot {found.ratio('glot', 'mean'):.3f} of mean"
        )


if __name__ == "__main__":
    main()
