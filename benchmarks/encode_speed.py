"""Our encoder against SentenceTransformer.encode on one backbone, and GLOT against the mean: `python benchmarks/encode_speed.py DATA_DIR`.

2,000 real sentences each: IMDB reviews cut at 256 tokens, and both sides of STS-B; batches of 32, float32. Ratios below 1: ours is faster.
"""

import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from timing import compare

from glot.backbone import Backbone, find_backbone
from glot.config import GraphConfig, PoolerConfig
from glot.datasets import load_hub_examples
from glot.encoder import SentenceEncoder
from glot.poolers import build_pooler

COUNT, LENGTH, BATCH = 2000, 256, 32


def texts(data_dir: Path) -> dict[str, list[str]]:
    """Sentences of two data sets, spread over each file."""
    reviews = load_hub_examples("imdb", "test", data_dir, None).columns[0]
    pairs = load_hub_examples("stsb", "train", data_dir, COUNT // 2).columns
    return {"imdb, 256 tokens": reviews[:: len(reviews) // COUNT][:COUNT], "stsb": [*pairs[0], *pairs[1]]}


def main() -> None:
    """Print one line a comparison."""
    source = find_backbone("minilm")
    backbone = Backbone(source, LENGTH, "float32", str(source.num_layers), torch.device("cpu"))
    poolers = {"mean": PoolerConfig("mean"), "glot": PoolerConfig("glot", gat_hidden_dim=128, num_layers=2)}
    graph = GraphConfig(tau=0.6)
    ours = {name: SentenceEncoder(backbone, build_pooler(config, graph, backbone.hidden_size)) for name, config in poolers.items()}
    module = Transformer(source.path, max_seq_length=LENGTH)
    theirs = SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension(), "mean"), Normalize()], device="cpu")
    for name, sentences in texts(Path(sys.argv[1])).items():
        assert abs(ours["mean"].encode(sentences[:64]) - theirs.encode(sentences[:64])).max() < 1e-5
        found = compare(lambda s=sentences: ours["mean"].encode(s, BATCH), lambda s=sentences: theirs.encode(s, BATCH))
        print(f"{name}: mean {found.ours:.2f} s, SentenceTransformer {found.other:.2f} s, ratio {found.ratio:.3f}", flush=True)
        found = compare(lambda s=sentences: ours["glot"].encode(s, BATCH), lambda s=sentences: ours["mean"].encode(s, BATCH))
        print(f"{name}: glot {found.ours:.2f} s, mean {found.other:.2f} s, ratio {found.ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
