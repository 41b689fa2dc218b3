"""Tiny random backbones of many architectures: a table, and the one function that writes a row of it as a model folder.

Used by `test_zoo.py` and by `list_backbones.py`, which writes docs/backbones.md.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS_FILE = Path(__file__).parents[1] / "glot" / "resources" / "stress_words.json"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
"""The padding id is 1: RoBERTa and its kin then count positions from 2."""
MORE = [
    "the",
    "a",
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
    "and",
    "of",
    "to",
    "in",
    "on",
    "with",
    "for",
    "every",
]
VOCABULARY = 400
PADDED, EQUAL = "padded", "equal lengths"
POSITIONS = 70

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
}
DECODER = {**ENCODER, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 2}
EQUAL_HEADS = {**DECODER, "num_key_value_heads": 2}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": POSITIONS, "bos_token_id": 2, "eos_token_id": 2}
STATE_SPACE = {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4, "vocab_size": VOCABULARY, "pad_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 1}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}


class Kind(NamedTuple):
    """One row: how a tiny model of an architecture is made, and what is expected of it.

    Attributes:
        config: the library's configuration class.
        sizes: its arguments.
        special: which special tokens stand around a text: `around`, `before`, `behind`, `last` (XLNet) or none.
        side: padding side of the tokenizer.
        pad: whether the tokenizer has a padding token.
        batches: what the door must decide.
        causal: whether a token sees only what stands before it.
        model: the library's model class, where it is not the plain one.
        shifted: whether the library's list of hidden states begins behind the first block, not before it.
        refused: a part of the line that refuses it.
        example: a model of the hub of this architecture.
    """

    config: str
    sizes: dict
    special: str = "around"
    side: str = "right"
    pad: bool = True
    batches: str = PADDED
    causal: bool = False
    model: str = "AutoModel"
    shifted: bool = False
    refused: str = ""
    example: str = ""


def without(sizes: dict, *names: str, **more: object) -> dict:
    return {name: value for name, value in sizes.items() if name not in names} | more


def decoder(config: str, sizes: dict, special: str = "before", side: str = "right", **more) -> Kind:
    return Kind(config, sizes, special, side, special != "", causal=True, **more)


KINDS: dict[str, Kind] = {
    "bert": Kind("BertConfig", ENCODER, example="google-bert/bert-base-uncased"),
    "roberta": Kind("RobertaConfig", ENCODER, example="FacebookAI/roberta-base"),
    "xlm-roberta": Kind("XLMRobertaConfig", ENCODER, example="intfloat/multilingual-e5-base"),
    "camembert": Kind("CamembertConfig", ENCODER, example="almanach/camembert-base"),
    "distilbert": Kind(
        "DistilBertConfig",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS},
        example="distilbert/distilbert-base-uncased",
    ),
    "albert": Kind("AlbertConfig", {**ENCODER, "embedding_size": 8}, example="albert/albert-base-v2"),
    "electra": Kind("ElectraConfig", {**ENCODER, "embedding_size": 8}, example="google/electra-base-discriminator"),
    "deberta": Kind(
        "DebertaConfig", {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, example="microsoft/deberta-base"
    ),
    "deberta-v2": Kind(
        "DebertaV2Config", {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, example="microsoft/deberta-v3-base"
    ),
    "mpnet": Kind("MPNetConfig", ENCODER, example="sentence-transformers/all-mpnet-base-v2"),
    "modernbert": Kind(
        "ModernBertConfig",
        {**ENCODER, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 16},
        example="answerdotai/ModernBERT-base",
    ),
    "eurobert": Kind("EuroBertConfig", EQUAL_HEADS, example="EuroBERT/EuroBERT-210m"),
    "longformer": Kind("LongformerConfig", {**ENCODER, "attention_window": 8}, example="allenai/longformer-base-4096"),
    "roformer": Kind("RoFormerConfig", ENCODER, example="junnyu/roformer_chinese_base"),
    "ernie": Kind("ErnieConfig", ENCODER, example="nghuyong/ernie-2.0-base-en"),
    "xlm": Kind(
        "XLMConfig",
        {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_index": 1},
        example="FacebookAI/xlm-mlm-en-2048",
    ),
    "xlnet": Kind(
        "XLNetConfig",
        {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 32, "vocab_size": VOCABULARY, "pad_token_id": 1},
        special="last",
        side="left",
        example="xlnet/xlnet-base-cased",
    ),
    "data2vec-text": Kind("Data2VecTextConfig", ENCODER, example="facebook/data2vec-text-base"),
    "mobilebert": Kind(
        "MobileBertConfig",
        {**ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        batches=EQUAL,
        example="google/mobilebert-uncased",
    ),
    "fnet": Kind("FNetConfig", without(ENCODER, "num_attention_heads"), batches=EQUAL, example="google/fnet-base"),
    "convbert": Kind(
        "ConvBertConfig",
        {**ENCODER, "embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3},
        batches=EQUAL,
        example="YituTech/conv-bert-base",
    ),
    "t5-encoder": Kind("T5Config", T5, special="behind", model="T5EncoderModel", example="sentence-transformers/sentence-t5-base"),
    "gpt2": decoder("GPT2Config", GPT, special="", side="left", example="openai-community/gpt2"),
    "gpt-neox": decoder("GPTNeoXConfig", without(DECODER, "num_key_value_heads"), special="", example="EleutherAI/pythia-160m"),
    "gptj": decoder("GPTJConfig", {**GPT, "rotary_dim": 4}, special="", example="EleutherAI/gpt-j-6b"),
    "opt": decoder(
        "OPTConfig",
        without(ENCODER, "intermediate_size", ffn_dim=32, word_embed_proj_dim=16, bos_token_id=0, eos_token_id=2),
        side="left",
        example="facebook/opt-125m",
    ),
    "opt-350m": decoder(
        "OPTConfig",
        without(
            ENCODER, "intermediate_size", ffn_dim=32, word_embed_proj_dim=8, do_layer_norm_before=False, bos_token_id=0, eos_token_id=2
        ),
        example="facebook/opt-350m",
    ),
    "bloom": decoder(
        "BloomConfig", {"hidden_size": 16, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY}, "", "left", example="bigscience/bloom-560m"
    ),
    "falcon": decoder(
        "FalconConfig",
        {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCABULARY, "alibi": True},
        special="",
        example="tiiuae/falcon-rw-1b",
    ),
    "llama": decoder("LlamaConfig", DECODER, side="left", example="HuggingFaceTB/SmolLM2-135M"),
    "llama-dynamic": decoder(
        "LlamaConfig",
        {**DECODER, "max_position_embeddings": 24, "rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}},
    ),
    "mistral": decoder("MistralConfig", {**DECODER, "sliding_window": 8}, side="left", example="mistralai/Mistral-7B-v0.1"),
    "qwen2": decoder("Qwen2Config", DECODER, example="Qwen/Qwen2.5-0.5B"),
    "qwen3": decoder("Qwen3Config", {**DECODER, "head_dim": 8}, special="behind", side="left", example="Qwen/Qwen3-Embedding-0.6B"),
    "qwen3-moe": decoder("Qwen3MoeConfig", DECODER | EXPERTS, example="Qwen/Qwen3-30B-A3B"),
    "gemma": decoder("GemmaConfig", {**DECODER, "head_dim": 8}, example="google/gemma-2b"),
    "gemma3": decoder("Gemma3TextConfig", {**DECODER, "head_dim": 8, "sliding_window": 8}, example="google/gemma-3-1b-pt"),
    "phi3": decoder("Phi3Config", DECODER, example="microsoft/Phi-3-mini-4k-instruct"),
    "phi3-long": decoder(
        "Phi3Config",
        {
            **DECODER,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [8.0] * 4,
                "original_max_position_embeddings": 16,
            },
        },
        batches=EQUAL,
        example="microsoft/Phi-3-mini-128k-instruct",
    ),
    "olmo2": decoder("Olmo2Config", EQUAL_HEADS, special="", example="allenai/OLMo-2-0425-1B"),
    "mamba": decoder("MambaConfig", {**STATE_SPACE, "bos_token_id": 0}, special="", shifted=True, example="state-spaces/mamba-130m-hf"),
    "falcon-mamba": decoder("FalconMambaConfig", {**STATE_SPACE, "bos_token_id": 0}, shifted=True, example="tiiuae/falcon-mamba-7b"),
    "recurrent-gemma": decoder(
        "RecurrentGemmaConfig",
        without(DECODER, "max_position_embeddings", lru_width=16, attention_window_size=8),
        example="google/recurrentgemma-2b",
    ),
    "t5": Kind("T5Config", T5, special="behind", refused="encoder-decoder models (t5)", example="google-t5/t5-base"),
    "reformer": Kind(
        "ReformerConfig",
        {
            "hidden_size": 16,
            "attention_head_size": 8,
            "num_attention_heads": 2,
            "feed_forward_size": 32,
            "vocab_size": VOCABULARY,
            "axial_pos_shape": [8, 16],
            "axial_pos_embds_dim": [8, 8],
            "max_position_embeddings": 128,
            "attn_layers": ["local", "lsh"],
            "num_hashes": 2,
            "local_attn_chunk_length": 16,
            "lsh_attn_chunk_length": 16,
            "pad_token_id": 1,
        },
        refused="gives other states when it reads the same text again",
        example="google/reformer-enwik8",
    ),
    "vit": Kind(
        "ViTConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4},
        refused="of the kind vit",
        example="google/vit-base-patch16-224",
    ),
}
"""Name -> row. The library reads the special ids off the tokenizer; sizes are those of a model that fits a test."""


def words() -> list[str]:
    """The vocabulary, special tokens first."""
    listed = [word for group in json.loads(WORDS_FILE.read_text()).values() for word in group]
    known = list(dict.fromkeys([*SPECIAL, *MORE, *(word.lower() for word in listed)]))
    return known + [f"word{index}" for index in range(VOCABULARY - len(known))]


def make_tokenizer(special: str = "around", side: str = "right", pad: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `words` and names no limit of its own."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words())}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    shape = {"around": "<s> $A </s>", "before": "<s> $A", "behind": "$A </s>", "last": "$A:0 </s>:0 <s>:2"}.get(special)
    if shape:
        tokenizer.post_processor = processors.TemplateProcessing(single=shape, special_tokens=[("<s>", 0), ("</s>", 2)])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "padding_side": side}
    named |= {"pad_token": "<pad>"} if pad else {}
    named |= {"cls_token": "<s>", "sep_token": "</s>"} if special in ("around", "last") else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def make_model(name: str, folder: Path, **changes: object) -> Path:
    """Write a row of the table as a model folder; `changes` are further sizes."""
    kind = KINDS[name]
    config = getattr(transformers, kind.config)(**{**kind.sizes, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config) if kind.model == "AutoModel" else getattr(transformers, kind.model)(config)
    with torch.no_grad():  # a random model's positions and biases are near zero: make them matter
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    make_tokenizer(kind.special, kind.side, kind.pad).save_pretrained(folder)
    return folder
