"""The heat map of the stress test: cosine similarities of one sentence's tokens and pooled vectors."""

from pathlib import Path

import torch

from glot.data.stress import needle_tokens
from glot.report.plots import plot_similarity
from glot.settings.choices import short_name
from glot.settings.config import read_config
from glot.states.backbone import Backbone, pick_device
from glot.states.tokens import load_options
from glot.training.checkpoint import find_trained_backbone, load_run
from glot.training.result_file import CONFIG

HEAT_MAP = "augmented_similarity"


@torch.inference_mode()
def draw_heat_map(run_dir: Path, text: str, trust_remote_code: bool = False) -> None:
    """Write `augmented_similarity.{png,pdf}`: cosines of one sentence's tokens and pooled vectors, the trained pooler's among them.

    A pooler with token weights is shown as the weighted sum of the raw tokens, which has width d for every jump.
    """
    model, config, _ = load_run(run_dir)
    config = config.with_values(trust_remote_code=trust_remote_code)
    source = find_trained_backbone(run_dir, read_config(run_dir / CONFIG), config)
    asked = config.backbone
    device, options = pick_device(asked.device), load_options(asked.device)
    backbone = Backbone(source, None, asked.backbone_dtype, asked.hidden_layer, device, options)
    batch, words, spans = backbone.read_plainly(text)
    batch = batch.to("cpu")  # `load_run` leaves the trained pooler there
    tokens, pooler = batch.tokens, model.pooler
    pooled = {"[first]": tokens[0], "[mean]": tokens.mean(0), "[max]": tokens.amax(0)}
    own = f"[{short_name(config.pooler.pooling_method)}]"
    caption = f"{source.name}, one evaluation sentence without special tokens and uncut; needle words red, pooled vectors blue"
    vectors, weights = pooler.readout(batch)
    if weights is not None:
        pooled[own] = weights @ tokens
    elif pooler.out_dim == tokens.shape[1]:
        pooled[own] = vectors[0]
    else:
        caption += f"\n({own} is {pooler.out_dim} wide and has no weights over tokens: not comparable, not shown)"
    unit = torch.nn.functional.normalize(torch.cat([tokens, torch.stack(list(pooled.values()))]), dim=1)
    plot_similarity((unit @ unit.T).numpy(), [*words, *pooled], needle_tokens(text, spans), len(pooled), caption, run_dir / HEAT_MAP)
