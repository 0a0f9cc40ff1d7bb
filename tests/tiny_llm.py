"""Causal language models of the true classes with random weights, which read bytes."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,  # so that answers differ clearly
}
KINDS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=64),
    "gpt2": GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5),
    "opt": OPTConfig(vocab_size=257, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
}
if hasattr(transformers, "Lfm2Config"):  # a hybrid, whose cache also holds the states of convolutions
    KINDS["lfm2"] = transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])


def tokenizer(**options):
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | {"<s>": 256}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, bos_token="<s>", **options)


def language_model(kind="llama"):
    """One of KINDS."""
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(KINDS[kind])


def save_language_model(folder, kind="llama"):
    """A folder as Hugging Face has them."""
    language_model(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
