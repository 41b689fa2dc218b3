"""Try a user's own pooler before anything slow."""

import torch
from torch import Tensor

from glot.errors import ConfigError
from glot.nn.own import from_sources, is_at_hand
from glot.nn.pooler import Pooler
from glot.nn.poolers import own_codes
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.config import RunConfig
from glot.types import TokenBatch

PROBE_WIDTH = 384
"""Width of the token states that an own pooler is tried on where the backbone claims none."""


def probe_pooler(config: RunConfig, width: int) -> None:
    """Try a user's own pooler before anything slow: shapes, finite numbers, no look at other sentences, the same from its source.

    Raises:
        ConfigError: what it does wrong.
    """
    codes = own_codes(config.pooler, config.graph)
    flag = "pooling_method" if config.pooler.pooling_method in codes else "graph_adj"
    name = f"--{flag}={config.to_dict()[flag]}"
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(0)
    pooler, twin = (build_model_pooler(config.pooler, config.graph, width, config.data_seed).eval() for _ in range(2))
    lengths, tokens = torch.tensor([3, 1, 5]), torch.randn(9, width, generator=generator)
    batch = TokenBatch.from_lengths(tokens.clone(), lengths)
    together, again = (pooler.readout(batch)[0] if pooler.sides == 1 else pooler(batch, batch) for _ in range(2))
    single = [TokenBatch.from_lengths(part, torch.tensor([len(part)])) for part in tokens.split(lengths.tolist())]
    alone = torch.cat([pooler(*[one] * pooler.sides) for one in single])
    twin.load_state_dict(pooler.state_dict())
    loaded = twin(*[TokenBatch.from_lengths(tokens.clone(), lengths)] * pooler.sides)
    same = not any(map(is_at_hand, codes)) or _alike(together, _from_source(config, width, pooler, batch))
    torch.set_rng_state(state)
    complaints = {
        "changes the token states that it is given; work on a copy": torch.equal(batch.tokens, tokens),
        "gives numbers that are not finite for random token states; mend it": bool(torch.isfinite(together).all()),
        "gives other vectors for the same batch in evaluation mode; mend it": torch.allclose(together, again, atol=1e-5, rtol=1e-4),
        "makes a sentence's vector depend on the other sentences of its batch; use batch.segment": _alike(together, alone),
        "keeps numbers that a checkpoint does not hold; make them an nn.Parameter or a buffer": _alike(together, loaded),
        "gives other vectors than its source, as far as it could be cut out of its file; put what it needs into the class": same,
    }
    for complaint, holds in complaints.items():
        if not holds:
            raise ConfigError(f"{name}: {complaint}")
    if config.data.task == "embedding" and not any(weight.requires_grad for weight in pooler.parameters()):
        raise ConfigError(f"{name}: has no weights, so there is nothing to train; use it with --task=mteb as it is")


def _from_source(config: RunConfig, width: int, pooler: Pooler, batch: TokenBatch) -> Tensor:
    """Vectors of the same weights in the pooler that a loaded run will have; none where its source has other weights."""
    with from_sources():
        cut = build_model_pooler(config.pooler, config.graph, width, config.data_seed).eval()
        found, known = ({name: value.shape for name, value in one.state_dict().items()} for one in (cut, pooler))
        if found != known:
            return torch.empty(0)
        cut.load_state_dict(pooler.state_dict())
        return cut(*[batch] * cut.sides)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-4, rtol=1e-3)
