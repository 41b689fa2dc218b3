"""Flags of the backbone: which language model, what it reads, and whether it is trained. See `sections`."""

from dataclasses import dataclass

from glot.settings.choices import BACKBONE_DTYPES, FINETUNINGS, LONG_TEXTS
from glot.settings.facts import BACKBONE, MANY, ORIGIN, VAST, flag

BACKBONE_LRS = {"full": 2e-05, "lora": 2e-04}
"""`--finetune_backbone` -> learning rate of the backbone where it is unset."""
FINETUNING_WORDS = {"1": "full", "true": "full", "yes": "full", "false": "0", "no": "0"}
"""Words that `--finetune_backbone` took when it was a switch."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which frozen language model, and what it reads."""

    model_name_or_path: str = flag("minilm", BACKBONE, "minilm (embedded), smollm2, a local folder or a hub id", brought=ORIGIN)
    revision: str | None = flag(
        None,
        BACKBONE,
        "branch, tag or commit of a hub model (or name it as owner/name@revision); unset = its main branch",
        ours=True,
        identity=False,
        brought=ORIGIN,
        rare=True,
    )
    prompts: str = flag(
        "auto",
        BACKBONE,
        "auto = the model's own (config_sentence_transformers.json), none, or a JSON file of name: text",
        ours=True,
        identity=False,
        brought=ORIGIN,
        rare=True,
    )
    exclude_prompt: bool = flag(
        False, BACKBONE, "1 = leave the prompt's tokens out of pooling", ours=True, identity=False, brought=ORIGIN, rare=True
    )
    max_length: int = flag(
        128, BACKBONE, "tokens a text is cut to; with --task=stress also the words generated", bounds=(1, MANY), acts="length"
    )
    adaptive_length: bool = flag(False, BACKBONE, "1 = no cut but the model's own limit", acts="trains")
    long_texts: str = flag(
        "cut",
        BACKBONE,
        "texts beyond the model's limit: cut, or windows = read in overlapping pieces, one sentence again, up to --max_length",
        choices=LONG_TEXTS,
        ours=True,
        later=True,
        brought=ORIGIN,
    )
    window_overlap: int | None = flag(
        None,
        BACKBONE,
        "tokens that two windows share; unset = a quarter of the model's limit",
        bounds=(0, MANY),
        acts="windows",
        ours=True,
        later=True,
        brought=ORIGIN,
        rare=True,
    )
    backbone_dtype: str = flag(
        "float32",
        BACKBONE,
        "precision of the backbone; autocast = float32 weights, products in bfloat16; auto = the fastest in a trial of about a second",
        choices=BACKBONE_DTYPES,
        ours=True,
        brought=ORIGIN,
    )
    hidden_layer: str = flag(
        "-1",
        BACKBONE,
        "which hidden states: -1 last, 0 embeddings, an index, mean4 (mean of the last four); or several: all, 0,3,6, every:5",
        ours=True,
        brought=ORIGIN,
    )
    trust_remote_code: bool = flag(False, BACKBONE, "1 = run code that comes with a model", ours=True)
    trust_pooler: bool = flag(
        False,
        BACKBONE,
        "1 = run the pooler's own code that comes with --checkpoint_path",
        acts="mteb",
        ours=True,
        identity=False,
        rare=True,
    )
    finetune_backbone: str = flag(
        "0",
        BACKBONE,
        "train the backbone too: full (or 1) = all its weights, lora = a low-rank adapter (both imply --precompute_hidden_states=0)",
        choices=FINETUNINGS,
        acts="trains",
        aliases=FINETUNING_WORDS,
    )
    backbone_lr: float | None = flag(
        None,
        BACKBONE,
        f"learning rate of a backbone that is trained; unset = {BACKBONE_LRS['full']:g} for full, {BACKBONE_LRS['lora']:g} for lora",
        bounds=(0, 1000.0),
        acts="finetune",
        ours=True,
        rare=True,
    )
    lora_r: int = flag(8, BACKBONE, "rank of the adapter", bounds=(1, MANY), acts="lora", ours=True, later=True, rare=True)
    lora_alpha: float = flag(
        16.0,
        BACKBONE,
        "the adapter's output is scaled by alpha / r",
        bounds=(1e-06, VAST),
        acts="lora",
        ours=True,
        later=True,
        rare=True,
    )
    lora_targets: str = flag(
        "auto",
        BACKBONE,
        "linear layers that get an adapter, such as query,value; auto = all of attention and feed-forward",
        acts="lora",
        ours=True,
        later=True,
        rare=True,
    )
    device: str = flag(
        "auto", BACKBONE, "auto, cpu, mps, cuda, cuda:N, or spread (a backbone larger than one card over all of them)", ours=True
    )

    @property
    def is_trained(self) -> bool:
        """Whether training moves weights of the backbone, or of an adapter on it."""
        return self.finetune_backbone != "0"

    @property
    def trained_lr(self) -> float:
        """The learning rate of those weights."""
        return BACKBONE_LRS[self.finetune_backbone] if self.backbone_lr is None else self.backbone_lr
