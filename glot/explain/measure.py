"""What a run does with one text or pair: weights, graph, attention, and its answer without a token, a word, or the edges.

Three questions about the answer are kept apart. Without a token: its state is dropped, the other states stay as the backbone made them.
Without a word: the word is taken out of the text, and the backbone reads the rest again. Without edges: tokens see themselves alone.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.encoder import SentenceEncoder
from glot.errors import ConfigError
from glot.nn.cross import SHUFFLED
from glot.nn.graph import DENSE_TOKENS, GraphRule, TokenGraph
from glot.nn.layers import LayeredPooler
from glot.nn.pooler import Pooler
from glot.nn.poolers.crossglot import CrossGlotPooler
from glot.nn.poolers.fixed import ClsPooler, MeanPooler, WeightedMeanPooler
from glot.nn.poolers.gat import GatConv
from glot.nn.poolers.glot import GlotPooler
from glot.predictor import Predictor
from glot.states.backbone import NamedTokens, name_tokens
from glot.training.metrics import METRICS
from glot.types import TokenBatch
from glot.words import counted

TOKENS_AT_ONCE = 1 << 14
"""Tokens of all variants of a text that are pooled together."""
SPARE_WORDS = 16
Answer = Callable[[list[TokenBatch]], Tensor]
"""Batches of B texts, one per side -> the number that is explained, (B,)."""


@dataclass(frozen=True)
class Side:
    """One text of what is explained. n tokens, w words; lists are by token or by word.

    Attributes:
        text: as it was given.
        tokens: as the tokenizer names them, special ones included.
        special: whether a token is special to the tokenizer.
        word_of: the word that a token belongs to; -1 = none.
        words: separated by spaces.
        weights: of the readout; None where the pooler has none.
        matches: the best cosine of a token in the other text of its pair.
        cosines: (n, n) of the states that the graph is made of.
        edges: (n, n) bool of the run's graph; None where it has none.
        attention: per layer (n, n), row = receiver; empty without attention layers.
        without_token: change of the answer when a token's state is left out.
        without_word: change of the answer when the word is left out of the text.
        is_cut: whether the text goes on behind the limit.
    """

    text: str
    tokens: list[str]
    special: list[bool]
    word_of: list[int]
    words: list[str]
    weights: np.ndarray | None
    matches: np.ndarray | None
    cosines: np.ndarray
    edges: np.ndarray | None
    attention: list[np.ndarray]
    without_token: np.ndarray
    without_word: np.ndarray
    is_cut: bool

    @property
    def agreement(self) -> float:
        """Rank correlation of weight and drop of the answer without the token; NaN where either is constant or missing."""
        return math.nan if self.weights is None else rank_correlation(self.weights, -self.without_token)


class Outcome(NamedTuple):
    """The answer of a run.

    Attributes:
        words: the class, or the score.
        value: the number that is explained: the class's probability, or the score; NaN of a run without a head.
        scores: probability by class; empty for scores.
        without_edges: the value where tokens see themselves alone; None where the pooler has no graph.
    """

    words: str
    value: float
    scores: dict[str, float]
    without_edges: float | None


@dataclass(frozen=True)
class Explanation:
    """What a run does with one text or pair.

    Attributes:
        run: the folder's name.
        pooler: its name.
        model: the backbone's name.
        outcome: the answer.
        sides: one, or two of a pair.
        tau: of the threshold graph; None without one.
        across: cosines (n, m) of the tokens of both texts; None without a pair.
        cross_edges: (n, m) bool of crossglot's graph.
        layer_weights: share of each hidden layer, where they are mixed.
        notes: what cannot be shown, and why.
    """

    run: str
    pooler: str
    model: str
    outcome: Outcome
    sides: list[Side]
    tau: float | None = None
    across: np.ndarray | None = None
    cross_edges: np.ndarray | None = None
    layer_weights: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; NaN where either is constant or has fewer than two values."""
    return METRICS["spearman"](np.asarray(first), np.asarray(second))


@torch.inference_mode()
def explain(encoder: SentenceEncoder, texts: Sequence[str], run: str, pooler_name: str, with_words: bool = True) -> Explanation:
    """Explain a run's answer to one text, or to a pair.

    Args:
        encoder: of the run, with its head where it has one.
        texts: one, or two of a pair.
        run: what the run is called.
        pooler_name: the value of its `--pooling_method`.
        with_words: also read the text again without each of its words.

    Raises:
        ConfigError: an empty text, or a pair where the run takes single texts, and the other way round.
    """
    if any(not text.strip() for text in texts):
        raise ConfigError("--text: is empty; give a text with at least one word")
    wanted = len(encoder.columns) if isinstance(encoder, Predictor) else 1
    if len(texts) != wanted:
        raise ConfigError(f"{run}: takes {'pairs of texts: use --pair' if wanted == 2 else 'single texts: use --text'}")
    batches = [encoder.states([text]) for text in texts]
    answer, outcome = _answer(encoder, batches)
    inner, mixed, notes = _inner(encoder.pooler, batches)
    without = [_without_tokens(answer, batches, place) - outcome.value for place in range(len(batches))]
    words = [[match.group() for match in re.finditer(r"\S+", text)] for text in texts]
    named = [name_tokens(encoder.backbone.tokeniser, text, encoder.backbone.max_length, encoder.before) for text in texts]
    dropped = [_without_words(encoder, texts, at, outcome, named[at]) if with_words else np.zeros(0) for at in range(len(texts))]
    weights = _weights(inner, mixed) if inner.sides == 2 else _weights(encoder.pooler, batches)
    if any(own is None for own in weights):
        notes.append(f"{pooler_name} gives tokens no weights; shown is what the answer becomes without them")
    sides = [
        _side(text, named[place], mixed[place], inner, words[place], weights[place], without[place], dropped[place])
        for place, text in enumerate(texts)
    ]
    across, cross_edges = _across(inner, mixed)
    if across is not None:
        sides = [replace(side, matches=across.max(1 - place)) for place, side in enumerate(sides)]
    rule = getattr(inner, "rule", None)
    has_tau = rule is not None and rule.kind == "threshold" and (inner.sides == 2 or any(side.edges is not None for side in sides))
    tau = float(rule.tau) if rule is not None and has_tau else None
    layers = {}
    if isinstance(encoder.pooler, LayeredPooler) and encoder.pooler.layer_weights:
        layers = dict(zip(encoder.backbone.layers, encoder.pooler.layer_weights, strict=True))
    notes += [f"{side.text[:40]!r}: is cut at {counted(encoder.backbone.max_length, 'token')}" for side in sides if side.is_cut]
    notes += _remarks(named, rule)
    edgeless = _without_edges(encoder.pooler)
    if edgeless is not None and not math.isnan(outcome.value):
        outcome = outcome._replace(without_edges=float(_answer(encoder, batches, edgeless)[0](batches)[0]))
    return Explanation(run, pooler_name, encoder.backbone.source.name, outcome, sides, tau, across, cross_edges, layers, notes)


def _remarks(named: Sequence[NamedTokens], rule: Any) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    if any(all(word < 0 for word in one.word_of) for one in named):
        notes.append("this tokenizer does not say which word a token belongs to, so changes without a word stand beside no token")
    if getattr(rule, "kind", None) == "random":
        notes.append("the random control draws another graph for each number of tokens, so a change without a token holds that draw too")
    if getattr(rule, "kind", None) == SHUFFLED:
        notes.append("the shuffled control joins tokens of another row of the batch; here a pair stands alone")
    return notes


def _answer(encoder: SentenceEncoder, batches: list[TokenBatch], pooler: nn.Module | None = None) -> tuple[Answer, Outcome]:
    """The number that is explained, as a function of token states; and the answer to the text itself."""
    net = encoder.pooler if pooler is None else pooler
    if not isinstance(encoder, Predictor):
        whole = encoder.pooler(batches[0])  # of the run as it is, whatever pooler is asked about
        return lambda given: F.cosine_similarity(net(given[0]), whole, dim=1), Outcome("a vector", 1.0, {}, None)

    def outputs(given: list[TokenBatch]) -> Tensor:
        """The head's output."""
        vectors = [net(*given)] if encoder.pooler.sides == 2 else [net(side) for side in given]
        found: Tensor = encoder.head(*(vector.float().cpu() for vector in vectors)).float()  # a head is loaded on the CPU
        return found.softmax(1) if encoder.classes else found

    first = outputs(batches)
    if not encoder.classes:
        value = float(first.reshape(-1)[0])
        return lambda given: outputs(given).reshape(-1), Outcome(f"{value:.3f}", value, {}, None)
    whole = [encoder.pooler(*batches)] if encoder.pooler.sides == 2 else [encoder.pooler(side) for side in batches]
    own = encoder.head(*(vector.float().cpu() for vector in whole))
    best = int(own.argmax(1)[0])  # of the run as it is, whatever pooler is asked about
    scores = dict(zip(encoder.classes, first[0].tolist(), strict=True))
    return lambda given: outputs(given)[:, best], Outcome(encoder.classes[best], float(first[0, best]), scores, None)


def _without_tokens(answer: Answer, batches: list[TokenBatch], place: int) -> np.ndarray:
    """The answer without each token of one side: (n,); NaN for the only token of a text."""
    tokens = batches[place].tokens
    n = len(tokens)
    if n == 1:
        return np.full(1, math.nan)
    found = []
    at_once = max(1, TOKENS_AT_ONCE // sum(len(batch.tokens) for batch in batches))
    for start in range(0, n, at_once):
        chosen = range(start, min(n, start + at_once))
        rows = torch.cat([torch.cat([torch.arange(at), torch.arange(at + 1, n)]) for at in chosen])
        given = []
        for side, batch in enumerate(batches):
            if side == place:
                given.append(TokenBatch.from_lengths(tokens[rows], torch.full((len(chosen),), n - 1)))
            else:
                given.append(TokenBatch.from_lengths(batch.tokens.repeat(len(chosen), 1), torch.full((len(chosen),), len(batch.tokens))))
        found.append(answer(given).cpu())
    return torch.cat(found).numpy().astype(np.float64)


def _without_words(encoder: SentenceEncoder, texts: Sequence[str], place: int, outcome: Outcome, named: NamedTokens) -> np.ndarray:
    """Change of the answer when each word of one text is left out and the rest is read again: (w,); NaN for a text's only word.

    Words behind the cut change nothing when they are left out: 0. `named` are the text's tokens.
    """
    text = texts[place]
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) < 2:
        return np.full(len(spans), math.nan)
    owners = [word for word in named.word_of if word >= 0]
    tried = spans[: max(owners, default=len(spans)) + 1]
    if owners:  # without its longest word, most words move up from behind the cut; the words behind those are not read
        longest = without_span(text, *spans[max(set(owners), key=owners.count)])
        reached = max(name_tokens(encoder.backbone.tokeniser, longest, encoder.backbone.max_length, encoder.before).word_of, default=-1)
        text = text[: spans[min(len(spans), reached + SPARE_WORDS) - 1][1]]
    read = text
    changed = [without_span(read, start, end) for start, end in tried]
    found = np.zeros(len(spans))
    found[: len(tried)] = _changes(encoder, texts, place, outcome, changed)
    return found


def without_span(text: str, start: int, end: int) -> str:
    """A text without a word and one space beside it; all other spaces stay."""
    before, behind = text[:start], text[end:]
    if behind[:1].isspace():
        return before + behind[1:]
    return before[:-1] + behind if before[-1:].isspace() else before + behind


def _changes(encoder: SentenceEncoder, texts: Sequence[str], place: int, outcome: Outcome, changed: list[str]) -> np.ndarray:
    """Change of the answer for each changed form of one of the texts."""
    rows = [tuple(text if side == place else other for side, other in enumerate(texts)) for text in changed]
    if not isinstance(encoder, Predictor):
        whole, others = encoder.encode(texts[place]), encoder.encode([row[0] for row in rows], show_progress_bar=True)
        return np.asarray(others @ whole, dtype=np.float64) - 1.0
    given: Any = [row[0] for row in rows] if len(texts) == 1 else rows
    scores = torch.from_numpy(encoder.scores(given, show_progress_bar=True)).double()
    if encoder.classes:
        scores = scores.softmax(1)[:, encoder.classes.index(outcome.words)]
    return scores.numpy() - outcome.value


def _weights(pooler: Pooler, batches: list[TokenBatch]) -> list[np.ndarray | None]:
    """Readout weights of each side, or None."""
    if isinstance(pooler, CrossGlotPooler):
        return [weights.cpu().numpy() for weights in pooler.readout_weights(*batches)]
    if pooler.sides == 2:
        return [None for _ in batches]
    fixed = pooler.poolers[0] if isinstance(pooler, LayeredPooler) else pooler
    if isinstance(fixed, MeanPooler):
        return [np.full(len(batch.tokens), 1 / len(batch.tokens)) for batch in batches]
    if isinstance(fixed, WeightedMeanPooler):
        places = [np.arange(1, len(batch.tokens) + 1, dtype=np.float64) for batch in batches]
        return [place / place.sum() for place in places]
    if isinstance(fixed, ClsPooler):
        return [np.eye(len(batch.tokens))[len(batch.tokens) - 1 if fixed.last else 0] for batch in batches]
    found = [pooler.readout(batch)[1] for batch in batches]
    return [None if weights is None else weights.cpu().numpy().astype(np.float64) for weights in found]


def _inner(pooler: Pooler, batches: list[TokenBatch]) -> tuple[Pooler, list[TokenBatch], list[str]]:
    """The pooler that makes the graph, and the states that it makes it of."""
    if not isinstance(pooler, LayeredPooler):
        return pooler, batches, []
    first = pooler.poolers[0]
    assert isinstance(first, Pooler)
    notes = []
    if len(pooler.poolers) > 1 and isinstance(first, GlotPooler | CrossGlotPooler):
        notes.append(f"graph and attention are those of the first of {len(pooler.poolers)} layers")
    return first, [pooler.mixed(batch)[0] for batch in batches], notes


def _without_edges(pooler: Pooler) -> Pooler | None:
    """The same pooler where tokens see themselves alone; None where it has no graph."""
    parts = list(pooler.poolers) if isinstance(pooler, LayeredPooler) else [pooler]
    if not all(isinstance(part, GlotPooler | CrossGlotPooler) and len(part.convs) for part in parts):
        return None
    other = copy.deepcopy(pooler)
    for part in other.poolers if isinstance(other, LayeredPooler) else [other]:
        assert isinstance(part, GlotPooler | CrossGlotPooler)
        part.rule = GraphRule("none") if isinstance(part, GlotPooler) else replace(part.rule, kind="none", inside=None)
    return other


def _graph_of(pooler: Pooler, batch: TokenBatch) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Edges (n, n) of a text's graph and, per attention layer, the weights (n, n)."""
    if isinstance(pooler, CrossGlotPooler) and pooler.rule.inside is not None:
        return TokenGraph(batch, pooler.rule.inside).blocks[0].dense[0].cpu().numpy(), []
    if not isinstance(pooler, GlotPooler) or not len(pooler.convs) or len(batch.tokens) > DENSE_TOKENS:
        return None, []
    graph = TokenGraph(batch, pooler.rule)
    edges, attention = graph.blocks[0].dense[0].cpu().numpy(), []
    states = pooler.pass_layers(graph)
    for conv, state in zip(pooler.convs, states, strict=False):
        if isinstance(conv, GatConv):
            attention.append(conv.attention(state, graph.blocks[0].barrier[0]).cpu().numpy())
    return edges, attention


def _across(pooler: Pooler, batches: list[TokenBatch]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Cosines (n, m) of both texts' tokens, and crossglot's edges."""
    if pooler.sides != 2:
        return None, None
    units = [F.normalize(batch.tokens.float(), dim=1) for batch in batches]
    cosines = (units[0] @ units[1].T).cpu().numpy()
    return cosines, pooler.edges_between(*batches).cpu().numpy() if isinstance(pooler, CrossGlotPooler) else None


def _side(
    text: str,
    named: NamedTokens,
    batch: TokenBatch,
    pooler: Pooler,
    words: list[str],
    weights: np.ndarray | None,
    without_token: np.ndarray,
    without_word: np.ndarray,
) -> Side:
    edges, attention = _graph_of(pooler, batch)
    unit = F.normalize(batch.tokens.float(), dim=1)
    skipped = len(named.tokens) - len(batch.tokens)  # a prompt that is left out of pooling
    return Side(
        text,
        named.tokens[skipped:],
        named.special[skipped:],
        named.word_of[skipped:],
        words,
        weights,
        None,
        (unit @ unit.T).cpu().numpy(),
        edges,
        attention,
        without_token,
        without_word,
        named.is_cut,
    )
