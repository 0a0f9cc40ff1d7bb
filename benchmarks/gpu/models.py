"""A captioner of its true size with random weights, and how such models are made: nothing is downloaded.

Weights are N(0, 1 / inputs), so that activations keep their size and stay finite in half precision.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from ...checkpoints.filling import empty_weights
from ...checkpoints.folders import from_folder
from ...core.embedded import embedded
from ...perception.captioner import Captioner

T = TypeVar("T", bound=nn.Module)
TEXT = {"opt-2.7b": (2560, 32, 32), "opt-125m": (768, 12, 12)}
"""Width, layers and heads of language models."""


def captioner(device: torch.device, dtype: torch.dtype, quick: bool = False, text: str = "opt-2.7b") -> Captioner:
    """BLIP-2 with a language model of `TEXT`, which reads with the demo captioner's tokenizer; `quick`: the demo's."""
    torch.manual_seed(0)
    folder = embedded("captioner")
    if quick:
        return Captioner.load(folder, device, dtype)
    words, images = from_folder(AutoTokenizer, folder), from_folder(AutoImageProcessor, folder)
    images.size = {"height": 224, "width": 224}
    config = blip2_config(*TEXT[text], bos=words.bos_token_id, eos=words.eos_token_id, pad=words.pad_token_id)
    model = random(Blip2ForConditionalGeneration, device, dtype, config)
    model.qformer.float()  # as transformers reads it
    model.query_tokens.data = model.query_tokens.data.float()
    return Captioner(model, words, images)


def blip2_config(width: int, layers: int, heads: int, *, bos: int, eos: int, pad: int) -> Blip2Config:
    """BLIP-2 with an OPT of these sizes and tokens."""
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width, "num_hidden_layers": layers}
    tokens = {"vocab_size": 50304, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    language = OPTConfig(num_attention_heads=heads, **sizes, **tokens)
    return Blip2Config(text_config=language.to_dict(), image_token_index=50265)


def random(kind: type[T], device: torch.device, dtype: torch.dtype, *args: Any, **options: Any) -> T:
    """A model with random weights that never was in the computer's memory, frozen and in evaluation mode."""
    with empty_weights():
        model = kind(*args, **options)
    for module in model.modules():
        for name, empty in module.named_parameters(recurse=False):
            if empty.ndim < 2:
                weight = torch.full(empty.shape, float(name == "weight"), device=device, dtype=dtype)
            else:
                weight = torch.randn(empty.shape, device=device, dtype=dtype) * empty[0].numel() ** -0.5
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
    getattr(model, "tie_weights", lambda: None)()
    nn.Module.to(model, device, dtype)  # buffers; the classes' own methods warn
    return model.eval()
