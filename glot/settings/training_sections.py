"""Flags of training: the loop, its optimizer, and the head on the pooled vectors. See `sections`."""

from dataclasses import dataclass

from glot.settings.choices import HEADS, LR_SCHEDULES, OPTIMIZERS, PAIR_FEATURES, THRESHOLDS, TRAIN_DTYPES
from glot.settings.facts import MANY, TRAINING, VAST, flag
from glot.settings.seeds import LARGEST_SEED


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: int = flag(2, TRAINING, "passes over the training rows", bounds=(1, MANY), acts="gradient")
    batch_size: int = flag(32, TRAINING, "sentences (or pairs) per step", bounds=(1, MANY), acts="trains")
    eval_batch_size: int = flag(
        64,
        TRAINING,
        "sentences (or pairs) in an evaluation batch; another size rounds predictions differently",
        bounds=(1, MANY),
        acts="scored",
    )
    optimizer: str = flag(
        "adam",
        TRAINING,
        "adamw: weight decay apart from the gradient",
        choices=OPTIMIZERS,
        acts="gradient",
        ours=True,
        later=True,
        rare=True,
    )
    train_dtype: str = flag(
        "float32",
        TRAINING,
        "precision of matrix products in a training step; weights and evaluation stay float32",
        choices=TRAIN_DTYPES,
        acts="gradient",
        ours=True,
        later=True,
        rare=True,
    )
    lr: float = flag(0.0002, TRAINING, "learning rate", bounds=(0, 1000.0), acts="gradient")
    weight_decay: float = flag(0.0, TRAINING, "of the optimizer", bounds=(0, 1000.0), acts="gradient", rare=True)
    lr_schedule: str = flag(
        "constant",
        TRAINING,
        "learning rate over the steps; linear and cosine end at 0 (constant with embedding: a tenth after 50 steps without a lower loss)",
        choices=LR_SCHEDULES,
        acts="gradient",
        ours=True,
        later=True,
    )
    warmup_ratio: float = flag(
        0.0,
        TRAINING,
        "share of the steps over which the learning rate rises from 0",
        bounds=(0, 1),
        acts="gradient",
        ours=True,
        later=True,
        rare=True,
    )
    grad_clip: float = flag(
        0.0,
        TRAINING,
        "largest norm of the gradient of all weights; 0 = any",
        bounds=(0, VAST),
        acts="gradient",
        ours=True,
        later=True,
        rare=True,
    )
    early_stop: int = flag(
        0,
        TRAINING,
        "epochs without a better score on held-out rows after which training ends; 0 = never",
        bounds=(0, MANY),
        acts="gradient",
        ours=True,
        later=True,
    )
    seed: int = flag(42, TRAINING, "initialisation and batch order (and --data_seed, where that is unset)", bounds=(0, LARGEST_SEED))
    seeds: str | None = flag(
        None,
        TRAINING,
        "several runs on one store: 0,1,2 or 0..9 (in place of --seed; --data_seed stays one for all)",
        acts="trains",
        ours=True,
        identity=False,
    )
    order_seed: int | None = flag(
        None, TRAINING, "seed of the batch order; unset = --seed", bounds=(0, LARGEST_SEED), acts="trains", ours=True, rare=True
    )
    stack_seeds: bool = flag(
        False,
        TRAINING,
        "1 = the runs of --seeds train side by side in one pass, on one batch order",
        acts="seeds",
        ours=True,
        identity=False,
    )
    save_every: int = flag(
        500,
        TRAINING,
        "steps between two saves of the training's state within an epoch (a save at the end of each is made anyway); 0 = none",
        bounds=(0, VAST),
        acts="long",
        ours=True,
        identity=False,
        rare=True,
    )
    num_workers: int = flag(
        0, TRAINING, "processes that read the store ahead; 0 = none", bounds=(0, 256), acts="live", ours=True, identity=False, rare=True
    )


@dataclass(frozen=True)
class HeadConfig:
    """What turns pooled vectors into classes or scores."""

    head: str = flag(
        "trained",
        TRAINING,
        "trained with the pooler; probe = logistic or ridge regression on pooled vectors; svm = a linear support vector machine on them",
        choices=HEADS,
        acts="labelled",
        ours=True,
        later=True,
    )
    pair_features: str = flag(
        "concat",
        TRAINING,
        "of a pair: concat = both vectors (scores: their projected cosine), full = [u; v; |u - v|; uv; cosine], or cosine alone",
        choices=PAIR_FEATURES,
        acts="pairs",
        ours=True,
        later=True,
    )
    dropout: float = flag(
        0.0,
        TRAINING,
        "share of the head's inputs that a training step drops",
        bounds=(0, 0.95),
        acts="labelled_gradient",
        ours=True,
        later=True,
        rare=True,
    )
    threshold: str = flag(
        "argmax",
        TRAINING,
        "two classes: the likelier one, or heldout = the threshold with the best first metric on held-out rows",
        choices=THRESHOLDS,
        acts="labelled",
        ours=True,
        later=True,
    )
