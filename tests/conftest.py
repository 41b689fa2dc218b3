"""Shared pieces: tiny models built in memory, a tiny data mirror, and the real data where it exists."""

import atexit
import gzip
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library of the hub is imported: a look-up would retry for 23 s
if "GLOT_TEST_CACHE" not in os.environ:  # a user's own caches are neither read nor filled; workers and subprocesses inherit this one
    _cache = Path(tempfile.mkdtemp(prefix="glot-tests-"))
    (_cache / "glot").mkdir()
    for _converted in (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glot").glob("SmolLM2-*"):
        if _converted.suffix != ".lock":  # converting takes long
            (_cache / "glot" / _converted.name).symlink_to(_converted)
    os.environ["GLOT_TEST_CACHE"] = str(_cache)
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
CACHE = Path(os.environ["GLOT_TEST_CACHE"])
_modules = f"modules-{os.environ.get('PYTEST_XDIST_WORKER', 'one')}"  # two workers must not write one module of a model at once
os.environ |= {"XDG_CACHE_HOME": str(CACHE), "HF_MODULES_CACHE": str(CACHE / _modules)}
for _name in ("WANDB_SWEEP_ID", "RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)
os.environ.pop("WANDB_MODE", None)
os.environ.pop("GLOT_DATA_DIR", None)
os.environ.pop("GLOT_STORE_DIR", None)

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, dynamic_module_utils

ROOT = Path(__file__).parents[1]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "</s>",
    "red",
    "blue",
    "green",
    "big",
    "small",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "not",
    "a",
    "the",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that the workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def _exports_are_parsed_once():
    """transformers parses the code of an export at each load for a fifth of a second, and all exports carry the same."""
    find, found = dynamic_module_utils.get_imports, {}

    def get_imports(filename):
        text = Path(filename).read_bytes()
        if text not in found:
            found[text] = find(filename)
        return found[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "get_imports", get_imports)
        yield


@pytest.fixture(autouse=True)
def _fresh_logger():
    """A command line that an earlier test ran has set up the package's logger: each test starts as a process does."""
    logger = logging.getLogger("glot")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


def _word_tokenizer(special_tokens: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    else:
        named = {"eos_token": "</s>", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **named)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random encoder, 2 layers, d = 16, 64 positions."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    _word_tokenizer(special_tokens=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A random decoder, 2 layers, d = 16; no padding token, no special tokens around a text."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    LlamaModel(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    _word_tokenizer(special_tokens=False).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSON lines, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def single_rows(count: int) -> list[dict]:
    """Sentences of 2 to 6 words whose label says whether `not` is in them."""
    texts = [
        f"{'not ' * (row % 2)}the {WORDS[5 + row % 5]} {WORDS[10 + row % 2]} {' '.join(['runs'] * (row % 3))}".strip()
        for row in range(count)
    ]
    return [{"sentence": text, "label": row % 2, "idx": row} for row, text in enumerate(texts)]


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    """A data mirror with tiny cola (plain and gzipped files), stsb, mrpc, mnli and imdb."""
    root = tmp_path_factory.mktemp("mirror")
    glue = root / "nyu-mll" / "glue"
    write_rows(glue / "cola" / "train.jsonl.gz", single_rows(41))
    write_rows(glue / "cola" / "validation.jsonl", single_rows(17))
    write_rows(glue / "cola" / "test.jsonl", [{**row, "label": -1} for row in single_rows(5)])
    texts = [row["sentence"] for row in single_rows(24)]
    pairs = [(texts[row], texts[(row * 7 + 1) % 24]) for row in range(24)]
    for split in ("train", "validation"):
        write_rows(
            glue / "stsb" / f"{split}.jsonl",
            [{"sentence1": a, "sentence2": b, "label": row % 6 * 1.0, "idx": row} for row, (a, b) in enumerate(pairs)],
        )
        write_rows(
            glue / "mrpc" / f"{split}.jsonl",
            [{"sentence1": a, "sentence2": b, "label": row % 2, "idx": row} for row, (a, b) in enumerate(pairs)],
        )
    for split in ("train", "validation_matched", "validation_mismatched"):
        write_rows(
            glue / "mnli" / f"{split}.jsonl",
            [{"premise": a, "hypothesis": b, "label": row % 3, "idx": row} for row, (a, b) in enumerate(pairs)],
        )
    for split in ("train", "test"):
        write_rows(
            root / "stanfordnlp" / "imdb" / "plain_text" / f"{split}.jsonl",
            [{"text": text, "label": row % 2} for row, text in enumerate(texts)],
        )
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real benchmark data beside the checkout, or wherever GLOT_TEST_DATA says."""
    folder = Path(os.environ.get("GLOT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def tiny_flags(tiny_bert, mirror, tmp_path) -> list[str]:
    """Flags of a run that takes a fraction of a second."""
    return [
        f"--model_name_or_path={tiny_bert}",
        f"--data_dir={mirror}",
        f"--output_dir={tmp_path / 'runs'}",
        f"--store_dir={tmp_path / 'hidden'}",
        "--task=cola",
        "--max_length=16",
        "--verbose=0",
    ]


@pytest.fixture(scope="session")
def mteb_data(tmp_path_factory) -> Path:
    """Tiny STS, classification and retrieval tasks where mteb's real ones would lie."""
    root = tmp_path_factory.mktemp("data")
    texts = [f"the {one} {other}" for one in WORDS[5:10] for other in WORDS[10:16]]
    scored = [{"sentence1": texts[row], "sentence2": texts[(row * 7 + 1) % 30], "score": float(row % 6)} for row in range(30)]
    write_rows(root / "mteb/biosses-sts/test.jsonl", scored)
    write_rows(root / "mteb/sts12-sts/test.jsonl", scored[::-1])
    labelled = [{"text": text, "label": row % 6, "label_text": str(row % 6)} for row, text in enumerate(texts * 8)]
    for split in ("train", "validation", "test"):
        write_rows(root / f"mteb/emotion/{split}.jsonl", labelled)
    scifact = root / "mteb/scifact"
    write_rows(scifact / "corpus.jsonl", [{"_id": str(row), "title": "", "text": text} for row, text in enumerate(texts)])
    write_rows(scifact / "queries.jsonl", [{"_id": f"q{row}", "text": text.removeprefix("the ")} for row, text in enumerate(texts)])
    write_rows(scifact / "qrels/test.jsonl", [{"query-id": f"q{row}", "corpus-id": str(row), "score": 1} for row in range(30)])
    parts = {"corpus": ("corpus", "corpus.jsonl"), "queries": ("queries", "queries.jsonl"), "default": ("test", "qrels/test.jsonl")}
    configs = [{"config_name": name, "data_files": [{"split": split, "path": path}]} for name, (split, path) in parts.items()]
    (scifact / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return root
