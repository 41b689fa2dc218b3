"""Flags that say which rows a run reads: tasks, the stress test's generator, a user's own files. See `sections`."""

from dataclasses import dataclass

from glot.settings.choices import EVALUATIONS, LABEL_KINDS, LABEL_SCALES, SELECTIONS, SIGNAL_POSITIONS, STRESS_VARIANTS, TASKS
from glot.settings.facts import DATA, MANY, ORIGIN, VAST, flag
from glot.settings.seeds import LARGEST_SEED


@dataclass(frozen=True)
class DataConfig:
    """Which task and rows."""

    task: str = flag("stsb", DATA, "what to train and score", choices=TASKS + EVALUATIONS)
    data_dir: str | None = flag(
        None,
        DATA,
        "local mirror of the hub's layout (or GLOT_DATA_DIR); unset = the hub",
        acts="hub",
        ours=True,
        identity=False,
        environment="GLOT_DATA_DIR",
    )
    num_train_samples: str = flag(
        "subset",
        DATA,
        "subset (20,000 rows of qqp, qnli, mnli, embedding; 2,000 of stress; all of others), full, or a number",
        acts="trains",
    )
    num_eval_samples: int | None = flag(
        None,
        DATA,
        "evaluation rows, evenly spaced over the split (stress: generated ones); unset = all (stress: 500)",
        bounds=(1, VAST),
        acts="eval_rows",
        ours=True,
    )
    eval_split: str | None = flag(None, DATA, "another split to report on", acts="split", ours=True)
    label_scale: str = flag(
        "0_1", DATA, "target of the cosine: scores to 0..1, to -1..1, or as they are", choices=LABEL_SCALES, acts="scores", rare=True
    )
    selection: str = flag(
        "best",
        DATA,
        "which epoch is reported: best on the reported split, last, or best on held-out training rows",
        choices=SELECTIONS,
        acts="trains",
        ours=True,
    )
    folds: int = flag(
        0,
        DATA,
        "cross-validation over training and evaluation rows in N folds: a model for each, scores on all rows; 0 = off",
        bounds=(0, 1000),
        acts="foldable",
        ours=True,
        later=True,
    )
    fold: int | None = flag(
        None,
        DATA,
        "with --folds: train on the others and report on this one alone, from 0",
        bounds=(0, 999),
        acts="folds",
        ours=True,
        later=True,
        rare=True,
    )
    heldout_fraction: float = flag(0.1, DATA, "share of training rows held out (embedding: at most 2,000 rows)", acts="heldout", ours=True)
    data_seed: int | None = flag(
        None,
        DATA,
        "seed of generated data, held-out rows and random graphs; unset = --seed",
        bounds=(0, LARGEST_SEED),
        acts="data_seed",
        ours=True,
        brought=ORIGIN,
    )


@dataclass(frozen=True)
class StressConfig:
    """The generated data of the stress test."""

    stress_variant: str = flag("faithful", DATA, "which generator", choices=STRESS_VARIANTS, acts="stress", ours=True)
    distractor_ratio: float = flag(0.8, DATA, "share of --max_length filled with noise words", bounds=(0, 1), acts="stress", ours=True)
    signal_position: str = flag(
        "random", DATA, "where the signal stands among the noise", choices=SIGNAL_POSITIONS, acts="placed", ours=True, rare=True
    )
    relational_distance: int = flag(
        10, DATA, "noise words between modifier and noun", bounds=(0, MANY), acts="distance", ours=True, rare=True
    )


@dataclass(frozen=True)
class FilesConfig:
    """Your own rows (`--task=custom`)."""

    eval_file: str | None = flag(
        None,
        DATA,
        "evaluation rows, as --train_file; unset = a share of the training rows (--heldout_fraction)",
        acts="custom",
        ours=True,
        later=True,
    )
    text_columns: str = flag("text", DATA, "one or two columns of texts: text, or premise,hypothesis", acts="custom", ours=True, later=True)
    label_column: str = flag("label", DATA, "column of the labels", acts="custom", ours=True, later=True)
    label_kind: str = flag(
        "auto", DATA, "what labels are; auto = by their look, said in one line", choices=LABEL_KINDS, acts="custom", ours=True, later=True
    )
    label_range: str | None = flag(
        None,
        DATA,
        "smallest and largest score, e.g. 0,5; unset = those of the training rows",
        acts="custom",
        ours=True,
        later=True,
        rare=True,
    )
    metrics: str | None = flag(
        None,
        DATA,
        "comma list; the first is reported and picks the epoch; unset = accuracy, macro_f1 (two classes: also f1, mcc, auroc, "
        "average_precision) or spearman, pearson",
        acts="custom",
        ours=True,
        later=True,
    )
    train_split: str | None = flag(
        None, DATA, "split of a hub: table to train on; unset = train", acts="table", ours=True, later=True, rare=True
    )
    task_name: str | None = flag(
        None,
        DATA,
        "what a custom task is called in folders and results; unset = custom",
        acts="custom",
        ours=True,
        identity=False,
        rare=True,
    )
