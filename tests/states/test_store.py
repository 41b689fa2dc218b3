"""The store: what is written comes back, what is half-written goes on, what does not match is refused."""

import dataclasses
import json
import os
import pickle
import shutil
import time
from collections import namedtuple
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from glot.cli import main
from glot.errors import ConfigError, StoreError
from glot.states.store import Manifest, StoreKey, StorePlan, layout, open_store, reader, write_stores, writer
from glot.states.store.writer import WriteOptions
from glot.study.stores import collect_garbage, list_stores, remove_stores, verify_stores
from glot.types import TokenBatch, texts_sha256

KEY = StoreKey("backbone@1", "6", 128, "float32", "float32", "texts")
LENGTHS = np.array([3, 1, 4, 1, 5, 2])


def states(row: int, d: int = 4) -> torch.Tensor:
    return torch.arange(int(LENGTHS[row]) * d, dtype=torch.float32).view(-1, d) / 64 + row


def encode(rows, calls=None):
    """Two sentences at a time; `calls` counts the sentences that were asked for."""
    for start in range(0, len(rows), 2):
        part = rows[start : start + 2]
        if calls is not None:
            calls.extend(part.tolist())
        yield TokenBatch.from_lengths(torch.cat([states(row) for row in part]), torch.from_numpy(LENGTHS[part]))


def write(root, key=KEY, calls=None, source=encode, **options):
    plan = StorePlan(LENGTHS, 4, key.store_dtype)
    return write_stores(
        root, [key], plan, lambda rows: ([batch] for batch in source(rows, calls)), {"torch": "x"}, WriteOptions(**options)
    )[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip_in_any_order(tmp_path, dtype):
    key = dataclasses.replace(KEY, store_dtype=dtype)
    assert open_store(tmp_path, key) is None
    write(tmp_path, key)
    stored = open_store(tmp_path, key)
    assert (len(stored), stored.hidden_size, stored.manifest.num_tokens) == (6, 4, 16)
    assert stored.manifest.size_bytes == 16 * 4 * layout.DTYPES[dtype].itemsize == (stored.folder / "tokens.bin").stat().st_size
    for rows in ([0, 1, 2, 3, 4, 5], [4, 0, 4], [1], [5, 3]):
        batch = stored.gather(np.array(rows))
        expected = torch.cat([states(row) for row in rows]).to(layout.DTYPES[dtype]).float()
        assert torch.equal(batch.tokens, expected) and batch.tokens.dtype == torch.float32
        assert batch.lengths.tolist() == LENGTHS[rows].tolist()
    copy = pickle.loads(pickle.dumps(stored))
    assert torch.equal(copy.gather(np.array([2])).tokens, stored.gather(np.array([2])).tokens)


def test_every_field_of_the_key_counts(tmp_path):
    seen = {KEY.fingerprint}
    for field in dataclasses.fields(KEY):
        value = getattr(KEY, field.name)
        seen.add(dataclasses.replace(KEY, **{field.name: value + 1 if isinstance(value, int) else value + "x"}).fingerprint)
    assert len(seen) == 1 + len(dataclasses.fields(KEY))
    assert texts_sha256(["ab", "c"]) != texts_sha256(["a", "bc"]) != texts_sha256(["c", "ab"])


def test_a_killed_writer_goes_on_behind_the_last_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 5)
    whole: list[int] = []
    write(tmp_path / "whole", calls=whole)

    def dying(rows, calls):
        for count, batch in enumerate(encode(rows, calls)):
            if len(calls) > 3 and count == 0:
                raise KeyboardInterrupt
            yield batch

    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", calls=first, source=dying)
    assert open_store(tmp_path / "cut", KEY) is None
    chunks = KEY.folder(tmp_path / "cut") / "chunks.jsonl"
    assert len(chunks.read_text().splitlines()) >= 1
    for _ in range(2):  # killed again while the last line is torn
        with chunks.open("a") as stream:
            stream.write('{"chunk": ')
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut", calls=[None] * 4, source=dying)
    second: list[int] = []
    write(tmp_path / "cut", calls=second)
    assert 0 < len(second) < len(whole)
    read = [(KEY.folder(tmp_path / name) / "tokens.bin").read_bytes() for name in ("whole", "cut")]
    assert read[0] == read[1]
    (KEY.folder(tmp_path / "cut") / "manifest.json").unlink()
    again: list[int] = []
    write(tmp_path / "cut", calls=again, resume=False)
    assert again == whole


def test_a_token_file_of_the_wrong_size_is_no_start(tmp_path):
    folder = write(tmp_path)
    (folder / "manifest.json").unlink()
    with (folder / "tokens.bin").open("r+b") as stream:
        stream.truncate(8)
    calls: list[int] = []
    write(tmp_path, calls=calls)
    assert sorted(calls) == list(range(6))


def test_several_layers_are_written_in_one_pass_and_only_those_that_are_missing(tmp_path):
    keys = [dataclasses.replace(KEY, layer=str(layer)) for layer in range(3)]
    write(tmp_path, keys[1])
    calls: list[int] = []
    plan = StorePlan(LENGTHS, 4, "float32")

    def layers(rows):
        for batch in encode(rows, calls):
            yield [batch.with_tokens(batch.tokens + 10 * layer) for layer in range(3)]

    write_stores(tmp_path, keys, plan, layers, {}, WriteOptions())
    assert sorted(calls) == list(range(6))
    shift = [open_store(tmp_path, key).gather(np.array([4])).tokens - states(4) for key in keys]
    assert [float(difference.mean()) for difference in shift] == [0, 0, 20]  # layer 1 was there and stayed


def test_a_changed_plan_or_chunk_size_is_no_start(tmp_path, monkeypatch):
    for change in ("plan", "chunks"):
        folder = write(tmp_path / change)
        (folder / "manifest.json").unlink()
        if change == "plan":
            np.savez(folder / "plan.npz", order=np.arange(6), lengths=LENGTHS[::-1])
        else:
            monkeypatch.setattr(writer, "CHUNK_TOKENS", 5)
        calls: list[int] = []
        write(tmp_path / change, calls=calls)
        assert sorted(calls) == list(range(6))


def test_chunks_that_were_cut_elsewhere_are_not_done_though_as_many(tmp_path, monkeypatch):
    """Two chunks before and two now, with other sentences in the first."""
    before, now = 8, 12
    cuts = []
    for size in (before, now):
        monkeypatch.setattr(writer, "CHUNK_TOKENS", size)
        cuts.append(StorePlan(LENGTHS, 4, "float32").chunks)
    assert len(cuts[0]) == len(cuts[1]) and cuts[0] != cuts[1]
    folder = write(tmp_path / "store")
    (folder / "manifest.json").unlink()
    (folder / "tokens.bin").write_bytes(bytes((folder / "tokens.bin").stat().st_size))
    first, last = cuts[0][0]
    (folder / "chunks.jsonl").write_text(json.dumps({"first": first, "last": last}) + '\n{"chunk": 1, "of": 2}\n')
    calls: list[int] = []
    write(tmp_path / "store", calls=calls)
    assert sorted(calls) == list(range(6))


def test_a_rebuild_forgets_a_complete_store_but_not_who_reads_it(tmp_path):
    write(tmp_path)
    old = open_store(tmp_path, KEY)
    before = old.gather(np.array([4])).tokens
    calls: list[int] = []
    write(tmp_path, calls=calls, rebuild=True, source=lambda rows, calls: (b.with_tokens(b.tokens + 1) for b in encode(rows, calls)))
    assert sorted(calls) == list(range(6))
    assert torch.equal(old.gather(np.array([4])).tokens, before)
    assert torch.equal(open_store(tmp_path, KEY).gather(np.array([4])).tokens, before + 1)


def test_a_complete_store_is_not_written_again(tmp_path):
    write(tmp_path)
    calls: list[int] = []
    write(tmp_path, calls=calls)
    assert calls == []


def test_overflow_is_refused_and_leaves_no_store(tmp_path):
    key = dataclasses.replace(KEY, store_dtype="float16")

    def huge(rows, calls):
        for batch in encode(rows):
            yield batch.with_tokens(batch.tokens + 1e5)

    with pytest.raises(StoreError, match=r"--store_dtype=float16: a hidden state of size 1000.. does not fit; use bfloat16"):
        write(tmp_path, key, source=huge)
    assert open_store(tmp_path, key) is None
    write(tmp_path, dataclasses.replace(KEY, store_dtype="bfloat16"), source=huge)


def test_no_room_is_said_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(10))
    with pytest.raises(StoreError, match=r"--store_dir=.*: needs 0.0 GiB and 0.0 GiB are free"):
        write(tmp_path)
    assert not (KEY.folder(tmp_path) / "tokens.bin").exists()


def test_a_disk_that_cannot_hold_what_is_left_is_found_before_encoding(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "posix_fallocate", full)
    calls: list[int] = []
    with pytest.raises(StoreError, match="choose another folder"):
        write(tmp_path, calls=calls)
    assert calls == []


def test_a_foreign_or_damaged_store_is_never_used(tmp_path):
    folder = write(tmp_path)
    manifest = Manifest.read(folder)
    assert manifest is not None
    dataclasses.replace(manifest, key={**manifest.key, "max_length": 64}).write(folder)
    with pytest.raises(StoreError, match=r"was made with another max_length; build it anew with --override_precompute=1"):
        open_store(tmp_path, KEY)
    manifest.write(folder)
    with (folder / "tokens.bin").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(StoreError, match="holds 257 bytes, its manifest says 256"):
        open_store(tmp_path, KEY)
    (folder / "plan.npz").unlink()
    with pytest.raises(StoreError, match=r"plan\.npz is missing"):
        open_store(tmp_path, KEY)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="its manifest is damaged"):
        open_store(tmp_path, KEY)


def flip(path: Path, place: int) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("memory", [0, 1 << 40])
def test_every_flipped_byte_of_a_complete_store_is_found(tmp_path, monkeypatch, memory):
    """In the background where there is memory to read ahead, else when it is asked for."""
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 6)
    monkeypatch.setattr(reader, "available_memory", lambda: memory)
    folder = write(tmp_path)
    open_store(tmp_path, KEY).check()
    for name in ("tokens.bin", "plan.npz", "manifest.json"):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            flip(folder / name, place)
            with pytest.raises(StoreError, match=r"damaged|made with another|build it anew"):
                stored = open_store(tmp_path, KEY)
                stored.gather(np.arange(6))
                stored.check()
            (folder / name).write_bytes(whole)
    flip(folder / "tokens.bin", 0)
    stored = open_store(tmp_path, KEY)
    with pytest.raises(StoreError, match=r"tokens\.bin: is damaged in texts 0 to 0 of its order; build it anew"):
        stored.check()
    restored = pickle.loads(pickle.dumps(stored))  # a worker's rows are checked by its parent
    assert restored.gather(np.array([1])).tokens.shape == (1, 4)


def test_damaged_chunks_of_a_half_store_are_encoded_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 6)
    whole = (write(tmp_path / "whole") / "tokens.bin").read_bytes()
    folder = write(tmp_path / "half")
    (folder / "manifest.json").unlink()  # as a kill before the last step leaves it
    flip(folder / "tokens.bin", 3)
    calls = []
    write(tmp_path / "half", calls=calls)
    assert (folder / "tokens.bin").read_bytes() == whole and 0 < len(calls) < 6
    assert "1 chunks are damaged and are encoded anew" in caplog.text
    open_store(tmp_path / "half", KEY).check()
    for damage in (b"\x00\xff{", b'{"first": "x"}\n[1]\n'):  # lines that say nothing are chunks that are not there
        (folder / "manifest.json").unlink()
        (folder / "chunks.jsonl").write_bytes(damage)
        write(tmp_path / "half")
        open_store(tmp_path / "half", KEY).check()
    (folder / "manifest.json").unlink()
    (folder / "plan.npz").write_bytes(b"PK\x03\x04 nonsense")
    write(tmp_path / "half")
    assert (folder / "tokens.bin").read_bytes() == whole


def test_a_store_of_an_older_version_is_read_and_can_be_given_checksums(tmp_path):
    folder = write(tmp_path)
    body = json.loads((folder / "manifest.json").read_text())
    older = {name: value for name, value in body.items() if not name.endswith(("checksum", "checksums"))}
    (folder / "manifest.json").write_text(json.dumps(older))
    stored = open_store(tmp_path, KEY)
    stored.check()
    assert stored.manifest.chunk_checksums is None
    lines, fine = verify_stores(tmp_path, [], adopt=False)
    assert fine and "has no checksums; --adopt" in lines[0]
    assert verify_stores(tmp_path, [folder.name], adopt=True)[0] == [f"{folder.name}: checksums added"]
    assert verify_stores(tmp_path, [], adopt=False)[0] == [f"{folder.name}: as written"]
    flip(folder / "tokens.bin", 9)
    lines, fine = verify_stores(tmp_path, [], adopt=False)
    assert not fine and "tokens.bin: is damaged" in lines[0]


def test_a_rebuild_never_takes_a_store_away_from_its_readers(tmp_path):
    folder = write(tmp_path)
    before = open_store(tmp_path, KEY)  # known, its file not opened yet

    def watched(rows, calls):
        assert (folder / "manifest.json").is_file() and open_store(tmp_path, KEY) is not None
        yield from encode(rows, calls)

    write(tmp_path, source=watched, rebuild=True)
    assert torch.equal(before.gather(np.arange(6)).tokens, open_store(tmp_path, KEY).gather(np.arange(6)).tokens)
    assert not before.gather(np.arange(6)).tokens.eq(0).all() and [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_stores_are_listed_and_removed(tmp_path):
    folder, other = write(tmp_path / "hidden"), write(tmp_path / "hidden", key=dataclasses.replace(KEY, layer="0"))
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"model": "minilm", "store": {"path": str(folder)}}))
    rows = {row.name: row for row in list_stores(tmp_path / "hidden", tmp_path / "runs")}
    assert rows[folder.name].model == "minilm" and rows[folder.name].used_by == "a" and rows[other.name].used_by == ""
    layered = tmp_path / "runs/b/result.json"  # a run on several layers names them all
    layered.parent.mkdir()
    layered.write_text(json.dumps({"model": "minilm", "store": {"path": str(folder), "paths": [str(folder), str(other)]}}))
    assert collect_garbage(tmp_path / "hidden", tmp_path / "runs", dry_run=True) == ["nothing to remove"]
    (tmp_path / "empty").mkdir()
    for runs, why in (("nowhere", "no such folder"), ("empty", "holds no finished run")):  # else every store would go
        with pytest.raises(ConfigError, match=f"{runs}: {why}, so every store would seem unused"):
            collect_garbage(tmp_path / "hidden", tmp_path / runs, dry_run=False)
    shutil.rmtree(layered.parent)
    assert collect_garbage(tmp_path / "hidden", tmp_path / "runs", dry_run=True) == [f"{other.name}: would be removed"]
    assert other.is_dir() and collect_garbage(tmp_path / "hidden", tmp_path / "runs", dry_run=False)[0].startswith(f"{other.name}: removed")
    assert not other.is_dir() and folder.is_dir()
    with pytest.raises(ConfigError, match="abc: no such store"):
        remove_stores(tmp_path / "hidden", ["abc"])
    assert remove_stores(tmp_path / "hidden", [folder.name])[0].startswith(f"{folder.name}: removed")
    with pytest.raises(ConfigError, match="no such folder"):
        list_stores(tmp_path / "none", tmp_path)


def test_chunks_cover_every_sentence_once(monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 6)
    chunks = StorePlan(LENGTHS, 4, "float32").chunks
    assert [first for first, _ in chunks] == [0, *(last for _, last in chunks[:-1])] and chunks[-1][1] == 6
    assert len(chunks) == 3


def test_a_second_writer_waits_and_finds_the_work_done(tmp_path):
    inside, go = Event(), Event()
    first: list[int] = []
    second: list[int] = []

    def slow(rows, calls):
        inside.set()
        go.wait(30)
        yield from encode(rows, calls)

    one = Thread(target=write, args=(tmp_path,), kwargs={"calls": first, "source": slow})  # each opens the lock for itself
    other = Thread(target=write, args=(tmp_path,), kwargs={"calls": second})
    one.start()
    assert inside.wait(30)
    other.start()
    time.sleep(0.3)
    assert other.is_alive() and second == []
    go.set()
    one.join()
    other.join()
    assert len(first) == 6 and second == []


def test_a_folder_that_nobody_may_write_to_is_read(tiny_flags, monkeypatch, capsys, tmp_path):
    assert main(tiny_flags) == 0
    whole, store_dir = os.access, str(tmp_path / "hidden")
    monkeypatch.setattr(os, "access", lambda path, mode: whole(path, mode) and not (mode == os.W_OK and str(path).startswith(store_dir)))
    assert main([*tiny_flags, "--epochs=3"]) == 0
    capsys.readouterr()
    assert main([*tiny_flags, "--max_length=8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": has no finished store of these texts, and none can be written; choose another folder")
