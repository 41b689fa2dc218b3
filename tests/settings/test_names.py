"""The plain tuples of names.py against the tables that give them meaning."""

from dataclasses import replace
from pathlib import Path

from glot.data.stress import VARIANTS
from glot.data.tasks import LABEL_SCALES, TASKS
from glot.nn import graph
from glot.nn.cross import CROSS_RULES
from glot.nn.layers import LAYER_MIXES
from glot.nn.pooler import Pooler
from glot.nn.poolers import POOLERS
from glot.nn.poolers.convs import CONVS
from glot.nn.poolers.glot import JUMPS
from glot.nn.poolers.pairs import ALL_CLASSES, PAIR_POOLERS, build_model_pooler
from glot.settings import choices as names
from glot.settings.config import GraphConfig, PoolerConfig
from glot.settings.effects import CONDITIONS
from glot.settings.facts import GROUPS
from glot.settings.index import flag_facts
from glot.states import backbone, store
from glot.study.files import read_study
from glot.training import metrics


def count(pooler: Pooler) -> int:
    return sum(weight.numel() for weight in pooler.parameters())


def test_names_equal_tables():
    assert set(names.TASKS) == set(TASKS)
    assert set(names.POOLERS) == {*POOLERS, *PAIR_POOLERS} and set(names.PAIR_POOLERS) == set(PAIR_POOLERS)
    assert set(names.CROSS_GRAPHS) == set(CROSS_RULES) and set(names.LAYER_MIXES) == set(LAYER_MIXES)
    assert set(names.GNN_TYPES) == set(CONVS)
    assert set(names.JK_MODES) == set(JUMPS)
    assert set(names.GRAPHS) == set(graph.RULES)
    assert set(ALL_CLASSES) == set(names.POOLERS)
    assert set(names.LABEL_SCALES) == set(LABEL_SCALES)
    assert set(names.METRICS) == set(metrics.METRICS) and set(names.RANK_METRICS) == set(metrics.RANK_METRICS)
    assert set(names.DTYPES) == set(store.layout.DTYPES)
    assert set(names.BACKBONE_DTYPES) == {*backbone.DTYPES, backbone.AUTO}
    assert set(names.STRESS_VARIANTS) == set(VARIANTS)
    assert set(names.EMBEDDED_BACKBONES) == set(backbone.embedded.EMBEDDED)


def test_poolers_without_weights():
    config = PoolerConfig(num_layers=1)
    built = {name: build_model_pooler(replace(config, pooling_method=name), GraphConfig(), 8) for name in names.POOLERS}
    assert set(names.FIXED_POOLERS) == {name for name, pooler in built.items() if not list(pooler.parameters())}


def test_every_flag_has_a_group_a_sentence_and_a_known_condition():
    for name, facts in flag_facts().items():
        assert facts.group in GROUPS and facts.help and facts.acts in (None, *CONDITIONS), name


def test_the_documents_count_the_weights_of_every_pooler():
    text = (Path(__file__).parents[2] / "docs/poolers.md").read_text()
    stated: dict[str, int] = {}
    for line in text.split("## Several hidden layers")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and "`" in cells[1]:
            stated |= {name: int(cells[4].replace(",", "")) for name in cells[1].replace("`", "").split(", ")}
    config = PoolerConfig()
    sizes = {name: replace(config, pooling_method=name, num_layers=1 if name == "crossglot" else 2) for name in names.POOLERS}
    assert stated == {name: count(build_model_pooler(one, GraphConfig(), 384)) for name, one in sizes.items()}


def test_the_matched_mlp_has_as_many_weights_as_glot():
    widths = {"minilm": 384, "bert": 768, "roberta": 768, "SmolLM2-360M": 960, "TinyLlama": 2048, "Llama-3.2-3B": 3072, "Mistral": 4096}
    glot = {d: count(build_model_pooler(PoolerConfig("glot"), GraphConfig(), d)) for d in set(widths.values())}
    seen = set()
    for file in ("mlp-matched", "mlp-matched-minilm"):
        for cell in read_study(Path(__file__).parents[2] / f"configs/{file}.yaml").cells:
            if cell.flags["pooling_method"] == "mlp":
                model = cell.flags["model_name_or_path"].rpartition("/")[2]
                d = next(width for name, width in widths.items() if name in model)
                found = count(build_model_pooler(PoolerConfig("mlp", gat_hidden_dim=int(cell.flags["gat_hidden_dim"])), GraphConfig(), d))
                assert abs(found / glot[d] - 1) < 0.002, (model, found, glot[d])
                seen.add(model)
    assert len(seen) == 7
