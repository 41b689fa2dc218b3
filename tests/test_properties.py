"""Invariants over drawn inputs (Hypothesis), a bounded fuzz, and what the fuzz found before."""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from glot.data.records import open_table
from glot.errors import ConfigError
from glot.nn.graph import GraphRule
from glot.nn.poolers.glot import GlotPooler
from glot.nn.segment import segment_max, segment_mean, segment_softmax, segment_sum
from glot.settings.config import RunConfig
from glot.settings.flags import parse, to_yaml
from glot.states.store import StoreKey, open_store
from glot.states.store.checksums import Part, checksum, damaged_parts
from glot.states.store.writer import StorePlan, WriteOptions, write_stores
from glot.study.files import crossed, read_study
from glot.types import TokenBatch

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)


def test_a_short_fuzz_finds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tries, places, firsts = fuzz(6, seed=1)
    assert not places, firsts
    assert tries > 100 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: study\nprogram: [a]\n", "program: must be a single word"),
        ("kind: study\nname: {a: 1}\n", "name: must be a single word"),
        ("kind: study\nbaseline: {a: 1}\narms: {a: {}}\n", "baseline: must be a single word"),
        ("method: grid\nrun_cap: x\nparameters: {lr: {value: 1}}\n", "run_cap: x; must be a number"),
        ("method: random\nrun_cap: 99999999999999\nparameters: {lr: {value: 1}}\n", "names 99,999,999,999,999 points, at most 100,000"),
        ("kind: study\narms: {a: {}}\ngrid: {" + ", ".join(f"f{n}: {list(range(59))}" for n in range(6)) + "}\n", "42,180,533,641 points"),
        ("a: " + "[" * 5000, "not YAML"),
    ],
)  # fmt: skip
def test_files_that_once_ended_in_a_traceback(text, complaint, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study(tmp_path / "s.yaml")
    assert any(complaint in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("--max_length=--", "--max_length=--: must have a value"),
        ("--seeds=--", "--seeds=--: must have a value"),
        ("--store_dir=" + "x" * 300, "File name too long"),
        ("--run_name=a\0b", "is not UTF-8 text"),
        ("--output_dir=a\udce9", "is not UTF-8 text"),
        ("--model_name_or_path=~nobody/x", "no model folder there"),
    ],
)
def test_command_lines_that_once_ended_in_a_traceback(word, complaint):
    with pytest.raises(ConfigError) as caught:
        parse(["--task=cola", word])
    assert any(complaint in problem for problem in caught.value.problems), caught.value.problems


@given(LENGTHS, st.integers(1, 4), st.integers(0, 2**31))
@settings(deadline=None)
def test_segments_are_numpy_loops(lengths, width, seed):
    values = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(seed))
    batch = TokenBatch.from_lengths(values, torch.tensor(lengths))
    parts = np.split(values.numpy(), np.cumsum(lengths)[:-1])
    np.testing.assert_allclose(segment_sum(values, batch), [part.sum(0) for part in parts], atol=1e-5)
    np.testing.assert_allclose(segment_mean(values, batch), [part.mean(0) for part in parts], atol=1e-5)
    np.testing.assert_array_equal(segment_max(values, batch), [part.max(0) for part in parts])
    shares = segment_softmax(values[:, 0], batch)
    expected = [np.exp(part[:, 0] - part[:, 0].max()) for part in parts]
    np.testing.assert_allclose(shares, np.concatenate([part / part.sum() for part in expected]), atol=1e-6)


JUMPS = st.sampled_from(["cat", "max", "mean", "lstm"])


def glot_pooler(jump: str, graph: str, seed: int) -> GlotPooler:
    torch.manual_seed(seed)
    return GlotPooler(6, 4, 2, "gat", jump, GraphRule(graph, tau=0.1)).eval()


@given(LENGTHS, JUMPS, st.integers(0, 99), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_sentence_is_pooled_alone_in_any_order_and_by_weights_that_sum_to_one(lengths, jump, seed, draw):
    pooler = glot_pooler(jump, "threshold", seed)
    parts = [torch.randn(length, 6) for length in lengths]
    vectors, weights = pooler.readout(TokenBatch.from_lengths(torch.cat(parts), torch.tensor(lengths)))
    order = draw.sample(range(len(parts)), len(parts))
    mixed = [parts[place][torch.tensor(draw.sample(range(lengths[place]), lengths[place]))] for place in order]  # tokens change places too
    again = pooler(TokenBatch.from_lengths(torch.cat(mixed), torch.tensor([lengths[place] for place in order])))
    torch.testing.assert_close(again, vectors[order], atol=1e-5, rtol=1e-4)
    assert all(abs(float(part.sum()) - 1) < 1e-5 for part in weights.detach().split(lengths)) and bool((weights >= 0).all())


@given(LENGTHS, JUMPS, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_without_edges_every_jump_and_readout_sees_one_token_at_a_time(lengths, jump, seed):
    pooler = glot_pooler(jump, "none", seed)
    tokens = torch.randn(sum(lengths), 6)
    batch = TokenBatch.from_lengths(tokens, torch.tensor(lengths))
    alone, _ = pooler.readout(TokenBatch.from_lengths(tokens, torch.ones(len(tokens), dtype=torch.long)))
    vectors, weights = pooler.readout(batch)
    torch.testing.assert_close(vectors, segment_sum(weights.reshape(-1, 1) * alone, batch), atol=1e-5, rtol=1e-4)


@given(LENGTHS, st.integers(1, 9))
@settings(deadline=None)
def test_packing_drops_padding_on_either_side_and_nothing_else(lengths, width):
    parts = [torch.randn(length, width) for length in lengths]
    longest = max(lengths)
    for side in ("left", "right"):
        hidden, mask = torch.full((len(parts), longest, width), torch.nan), torch.zeros(len(parts), longest)
        for row, part in enumerate(parts):
            where = slice(longest - len(part), None) if side == "left" else slice(len(part))
            hidden[row, where], mask[row, where] = part, 1
        batch = TokenBatch.from_padded(hidden, mask)
        assert torch.equal(batch.tokens, torch.cat(parts)) and batch.lengths.tolist() == lengths


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_or_missing_byte_is_found_in_its_part_alone(parts, data):
    ends = np.cumsum([len(part) for part in parts]).tolist()
    listing = [Part(end - len(part), end, checksum(part)) for part, end in zip(parts, ends, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder) / "f", bytearray(b"".join(parts))
        path.write_bytes(whole)
        assert damaged_parts(path, listing) == []
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(whole)
        assert damaged_parts(path, listing) == [next(number for number, end in enumerate(ends) if place < end)]
        path.write_bytes(whole[:place])
        assert damaged_parts(path, listing) == [number for number, end in enumerate(ends) if place < end]


@given(LENGTHS, st.sampled_from(["float32", "float16", "bfloat16"]), st.integers(1, 5), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_store_gives_back_what_was_written(lengths, dtype, width, draw):
    sizes = np.array(lengths)
    states = [torch.randn(length, width).to(getattr(torch, dtype)) for length in lengths]

    def encode(rows):
        for row in rows:
            yield [TokenBatch.from_lengths(states[row].float(), torch.tensor([lengths[row]]))]

    key = StoreKey("backbone@1", "6", 128, "float32", dtype, "texts")
    with tempfile.TemporaryDirectory() as folder:
        write_stores(Path(folder), [key], StorePlan(sizes, width, dtype), encode, {"torch": "x"}, WriteOptions())
        stored = open_store(Path(folder), key)
        rows = draw.choices(range(len(lengths)), k=7)
        batch = stored.gather(np.array(rows))
        stored.check()
        assert torch.equal(batch.tokens, torch.cat([states[row].float() for row in rows]))
        assert batch.lengths.tolist() == [lengths[row] for row in rows]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_from_every_kind_of_file(rows, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        if suffix in (".csv", ".tsv"):
            with path.open("w", newline="", encoding="utf-8") as stream:
                table = csv.writer(stream, delimiter="," if suffix == ".csv" else "\t")
                table.writerows([("a", "b"), *rows])
        else:
            values = [{"a": first, "b": second} for first, second in rows]
            text = json.dumps(values) if suffix == ".json" else "\n".join(map(json.dumps, values))
            path.write_text(text, encoding="utf-8")
        found = [(record.values["a"], record.values["b"]) for record in open_table("train_file", str(path), None).records()]
        assert found == rows


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-6, 1, allow_nan=False),
            "tau": st.floats(-1, 1, exclude_max=True),
            "epochs": st.integers(1, 99),
            "seed": st.integers(0, 2**32 - 1),
            "verbose": st.booleans(),
            "gnn_type": st.sampled_from(["gat", "gcn", "gin", "gine"]),
            "run_name": st.text("abcxyz019-_", min_size=1, max_size=12).filter(lambda name: name != "--"),
        },
    )
)
@settings(max_examples=60, deadline=None)
def test_flags_yaml_and_configuration_say_the_same(values):
    words = [f"--{name}={int(value) if isinstance(value, bool) else value}" for name, value in values.items()]
    config = parse(["--task=cola", "--pooling_method=glot", *words]).config
    assert {name: config.to_dict()[name] for name in values} == values
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "c.yaml").write_text(to_yaml(config))
        assert parse([f"--config={folder}/c.yaml"]).config == config


VALUES = st.lists(st.text("xyz", max_size=2), min_size=1, max_size=4, unique=True)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=4))
@settings(deadline=None)
def test_a_grid_has_every_point_once(choices):
    points = list(crossed(choices))
    assert len(points) == np.prod([len(values) for values in choices.values()], dtype=int)
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert all(point[name] in values for point in points for name, values in choices.items())
