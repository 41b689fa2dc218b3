"""`--backbone_dtype=auto`: the fastest precision by a trial, remembered, and the one that key and fingerprint hold."""

import json
import time

import pytest
import torch

from glot.cli import main
from glot.errors import ConfigError
from glot.states.backbone import Backbone, find_backbone, pick_dtype, precision, recall_facts

CPU = torch.device("cpu")


def decide(monkeypatch, tiny_bert, times: dict[str, float], is_trained: bool = False) -> str:
    monkeypatch.setattr(precision, "try_dtypes", lambda *_: times)
    monkeypatch.setattr(precision, "recall_facts", lambda _: {})
    return pick_dtype(find_backbone(str(tiny_bert)), CPU, is_trained)[0]


@pytest.mark.parametrize(
    ("times", "is_trained", "picked"),
    [
        ({"float32": 10.0, "bfloat16": 4.0, "autocast": 6.0}, False, "bfloat16"),
        ({"float32": 10.0, "bfloat16": 4.0, "autocast": 6.0}, True, "autocast"),
        ({"float32": 10.0, "bfloat16": 9.5, "autocast": 9.2}, False, "float32"),
        ({"float32": 10.0, "bfloat16": 4.0, "autocast": 9.2}, True, "float32"),
        ({"float32": 10.0, "autocast": 8.0}, False, "autocast"),
    ],
)
def test_another_precision_must_be_clearly_faster(times, is_trained, picked, monkeypatch, tiny_bert):
    assert decide(monkeypatch, tiny_bert, times, is_trained) == picked


def test_a_trial_is_done_once_for_a_model_and_machine(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = find_backbone(str(tiny_bert))
    dtype, line = pick_dtype(source, CPU)
    known = recall_facts(source.identity)
    (times,) = known["batch_ms"].values()
    assert set(times) <= {"float32", "bfloat16", "autocast"} and times["float32"] > 0 and known["is_causal"] is False
    assert line.startswith(f"--backbone_dtype=auto: {dtype} (a batch of 16 texts takes float32 ")
    monkeypatch.setattr(precision, "try_dtypes", lambda *_: pytest.fail("it was tried again"))
    assert pick_dtype(source, CPU) == (dtype, line)


def test_a_precision_in_which_the_model_has_no_room_is_left_out(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, real, lacking = find_backbone(str(tiny_bert)), precision.Backbone, {"float32"}

    def crowded(source, length, dtype, *rest):
        if dtype in lacking:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(source, length, dtype, *rest)

    monkeypatch.setattr(precision, "Backbone", crowded)
    dtype, line = pick_dtype(source, CPU)
    assert dtype in ("bfloat16", "autocast") and "float32" not in line
    assert "batch_ms" not in recall_facts(source.identity)  # there may be room another time
    lacking |= {"bfloat16", "autocast"}
    with pytest.raises(ConfigError, match=r"no room for it on cpu in any precision"):
        pick_dtype(source, CPU)


def test_a_trial_on_an_accelerator_has_more_texts(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr(precision, "try_dtypes", lambda source, device, count: asked.append(count) or {"float32": 2.0, "autocast": 1.0})
    lines = [pick_dtype(find_backbone(str(tiny_bert)), torch.device(name))[1] for name in ("cpu", "mps")]
    assert asked == [16, 128] and "a batch of 16 texts" in lines[0] and "a batch of 128 texts" in lines[1]


def test_a_model_without_room_names_the_ways_out(tiny_bert, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ConfigError, match=r"no room for its weights on cpu in float32; use --backbone_dtype=bfloat16"):
        Backbone(find_backbone(str(tiny_bert)), None, "float32", "1", CPU)


def test_what_was_picked_is_what_a_run_is_known_by(tiny_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("glot.states.tokens.pick_dtype", lambda *_: ("bfloat16", "--backbone_dtype=auto: bfloat16 (tried)"))
    words = [*tiny_flags, "--pooling_method=mean", "--epochs=1"]
    found = []
    for name, dtype in (("auto", "auto"), ("named", "bfloat16"), ("plain", "float32")):
        assert main([*words, f"--backbone_dtype={dtype}", f"--run_name={name}"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    auto, named, plain = found
    assert auto["fingerprint"] == named["fingerprint"] != plain["fingerprint"]
    assert auto["store"]["path"] == named["store"]["path"] != plain["store"]["path"]
    assert json.loads((tmp_path / "runs/auto/config.json").read_text())["flags"]["backbone_dtype"] == "bfloat16"
    assert any("tried" in note for note in auto["notes"]) and not named["notes"]


def test_the_first_pass_does_not_count(tiny_bert, monkeypatch):
    """It makes buffers, and under load it took longer than the whole trial."""
    backbone, passes = Backbone(find_backbone(str(tiny_bert)), None, "float32", "2", CPU), []
    whole = backbone.encode

    def encode(ids: list[list[int]]) -> object:
        passes.append(1)
        if len(passes) == 1:
            time.sleep(2 * precision.SECONDS)
        return whole(ids)

    monkeypatch.setattr(backbone, "encode", encode)
    assert precision._time(backbone, 2) < 1000 * precision.SECONDS and len(passes) > precision.LEAST
