"""The choices of every flag as plain tuples, so that `--help` and a mistyped name need no heavy import.

`tests/settings/test_names.py` holds each tuple equal to the table that gives the names their meaning.
"""

from importlib import metadata

TASKS = ("cola", "sst2", "stsb", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "imdb", "stress", "embedding", "custom")
PAIR_TASKS = ("stsb", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
EVALUATIONS = ("mteb",)
"""Values of `--task` that train nothing."""
MTEB_CACHE = "mteb-results"
"""Under `--output_dir`: what mteb remembers of finished tasks, shared by all runs."""
FIXED_POOLERS = ("cls", "max", "mean", "weightedmean", "std", "alignment")
"""Poolers without weights."""
PAIR_POOLERS = ("alignment", "crossglot")
"""Poolers that take both sentences of a pair and give no vector of one."""
POOLERS = ("cls", "adapool", "max", "mean", "mlp", "glot", "weightedmean", "std", "gated", "pma", "latent", *PAIR_POOLERS)
GNN_TYPES = ("gat", "gcn", "gin", "gine")
JK_MODES = ("cat", "lstm", "max", "mean", "none")
GRAPHS = ("threshold", "none", "complete", "random", "knn", "window")
CROSS_GRAPHS = ("threshold", "knn", "complete", "none", "random", "shuffled")
LONG_TEXTS = ("cut", "windows")
LAYER_MIXES = ("concat", "scalar", "stack")
OPTIMIZERS = ("adam", "adamw")
LR_SCHEDULES = ("constant", "linear", "cosine")
HEADS = ("trained", "probe", "svm")
PAIR_FEATURES = ("concat", "full", "cosine")
THRESHOLDS = ("argmax", "heldout")
LABEL_SCALES = ("0_1", "-1_1", "raw")
LABEL_KINDS = ("auto", "class", "score")
METRICS = ("accuracy", "macro_f1", "f1", "mcc", "auroc", "average_precision", "spearman", "pearson")
RANK_METRICS = ("mrr_at_10", "recall_at_1")
DTYPES = ("float32", "float16", "bfloat16")
FINETUNINGS = ("0", "full", "lora")
BACKBONE_DTYPES = (*DTYPES, "autocast", "auto")
TRAIN_DTYPES = ("float32", "bfloat16")
SELECTIONS = ("best", "last", "heldout")
TRACKERS = ("auto", "none", "wandb", "tensorboard", "trackio", "mlflow", "aim", "dvclive")
SIGNAL_POSITIONS = ("random", "start", "middle", "end")
STRESS_VARIANTS = ("faithful", "length_matched", "relational", "repeat")
EMBEDDED_BACKBONES = ("minilm", "smollm2")

LONGEST_STACKED = 2048
"""Tokens of a sentence up to which GLOT's layers are taken as a whole, which stacking needs."""


def is_own_name(value: str) -> bool:
    """Whether a value names a user's own definition, or a pooler of an installed package."""
    return ":" in value or bool(metadata.entry_points(group="glot.poolers", name=value))


def short_name(value: str) -> str:
    """A pooler or rule in a word: of your own definition its name without the file."""
    return value.rpartition(":")[2]
