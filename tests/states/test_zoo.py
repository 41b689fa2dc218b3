"""Every architecture of the zoo through every door: stored, live, alone, encoded, exported, saved again."""

from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from conftest import single_rows, write_rows
from sentence_transformers import SentenceTransformer
from zoo import KINDS, make_model

import glot
from glot.cli import glot_main, main
from glot.data.loader import TextIndex
from glot.progress import Clock
from glot.settings.config import RunConfig
from glot.states.backbone import Backbone, find_backbone
from glot.states.tokens import open_tokens, write_layers
from glot.types import Examples

CPU = torch.device("cpu")
TEXTS = [
    "the red cat",
    "a big dog runs and the small cat sleeps not on the green dog in every word7 of the red cat",
    "dog",
    "",
    "not a cat",
]
READ = [name for name, kind in KINDS.items() if not kind.refused]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]
SMALL = 1e-5


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """`zoo(name)` -> folder of that tiny model, made once per process."""
    root = tmp_path_factory.mktemp("zoo")
    return lru_cache(maxsize=None)(lambda name: make_model(name, root / name))


def alone(name, folder, backbone) -> list[list[torch.Tensor]]:
    """Text -> layer -> states (n, d), by the library's own call on one text, each time by a model that has read nothing before."""
    kind, found = KINDS[name], []
    for text in TEXTS:
        model = getattr(transformers, kind.model).from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.tensor([backbone.tokenise([text])[0]])
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            states = [state[0] for state in output.hidden_states]
            if kind.shifted:  # its list is: behind each block, then behind the final norm
                states = [model.get_input_embeddings()(ids)[0], *states[:-2], states[-1]]
        found.append([*states[:-1], output.last_hidden_state[0]])
    return found


@pytest.mark.parametrize("name", READ)
def test_stored_live_and_alone_are_equal_at_every_layer(name, zoo, tmp_path):
    folder, kind = zoo(name), KINDS[name]
    source = find_backbone(str(folder))
    backbone = Backbone(source, None, "float32", str(source.num_layers), CPU)
    expected = alone(name, folder, backbone)
    texts, rows = TextIndex([Examples("cola", "train", (TEXTS,), None)]), np.array([3, 0, 2, 4, 1])
    flags = {"model_name_or_path": str(folder), "adaptive_length": True, "store_dir": str(tmp_path)}
    config = RunConfig().with_values(**flags, store_dtype="float32", verbose=False)
    last = source.num_layers
    write_layers(config, source, texts, [str(layer) for layer in range(last + 1)], CPU, Clock())  # from one pass
    for layer in range(last + 1):
        own = config.with_values(hidden_layer=str(layer))
        stored = open_tokens(own, source, texts, CPU, Clock())
        states = torch.cat([expected[row][layer] for row in rows])
        torch.testing.assert_close(stored.gather(rows).tokens, states, atol=SMALL, rtol=SMALL)
        assert stored.hidden_size == states.shape[1]
        if layer in (0, last // 2, last):
            live = open_tokens(own.with_values(precompute_hidden_states=False), source, texts, CPU, Clock())
            torch.testing.assert_close(live.gather(rows).tokens, states, atol=SMALL, rtol=SMALL)
            assert live.hidden_size == states.shape[1] and live.backbone.facts["batches"] == stored.manifest.backbone["batches"]
    assert stored.manifest.backbone["batches"] == kind.batches
    assert stored.manifest.backbone["kind"] == ("decoder" if kind.causal else "encoder")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A tiny mirror whose words the zoo knows."""
    root = tmp_path_factory.mktemp("zoo-data")
    for split in ("train", "validation"):
        write_rows(root / "nyu-mll/glue/cola" / f"{split}.jsonl", single_rows(12))
    return root


@pytest.mark.parametrize("name", READ)
def test_a_run_its_export_and_the_export_saved_again_give_the_same_vectors(name, zoo, rows, tmp_path):
    folder = zoo(name)
    words = [f"--model_name_or_path={folder}", f"--data_dir={rows}", f"--output_dir={tmp_path}", f"--store_dir={tmp_path / 'hidden'}"]
    words += [
        "--task=cola",
        "--epochs=1",
        "--max_length=20",
        "--verbose=0",
        "--run_name=run",
        "--pooling_method=glot",
        "--gat_hidden_dim=4",
    ]
    assert main(words) == 0
    encoder = glot.load(tmp_path / "run")
    expected = encoder.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=SMALL)
    by_name = [["--head_only"]] if list(READ).index(name) % 3 == 0 else []  # the backbone by its name: a third of them is enough
    for flags in (*by_name, []):
        place = tmp_path / f"export{len(flags)}"
        assert glot_main(["export", str(tmp_path / "run"), "--to", str(place), *flags]) == 0
        model = SentenceTransformer(str(place), trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=3), expected, atol=SMALL)
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=1), expected, atol=SMALL)
    model.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=SMALL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(name, zoo, rows, tmp_path, capsys):
    words = [f"--model_name_or_path={zoo(name)}", f"--data_dir={rows}", f"--output_dir={tmp_path}", f"--store_dir={tmp_path / 'hidden'}"]
    assert main([*words, "--task=cola", "--max_length=20", "--verbose=0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and KINDS[name].refused in lines[0] and str(zoo(name)) in lines[0]
