"""`--backbone_dtype=auto`: the fastest precision by a trial, remembered, and the one that key and fingerprint hold."""

import json

import pytest
import torch

from glot.cli import main
from glot.states.backbone import find_backbone, pick_dtype, precision, recall_facts

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
    (times,) = known["milliseconds"].values()
    assert set(times) <= {"float32", "bfloat16", "autocast"} and times["float32"] > 0 and known["is_causal"] is False
    assert line.startswith(f"--backbone_dtype=auto: {dtype} (a batch of 16 texts takes float32 ")
    monkeypatch.setattr(precision, "try_dtypes", lambda *_: pytest.fail("it was tried again"))
    assert pick_dtype(source, CPU) == (dtype, line)


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
