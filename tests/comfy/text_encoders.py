"""The text encoders of the model families in miniature, as CLIPs: ComfyUI's own classes and tokenizers, with few and
narrow layers and random weights. Where ComfyUI has its tokenizer in a checkpoint, a small one is trained."""

from __future__ import annotations

import io
from functools import cache
from typing import Any
from unittest.mock import patch

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.cosmos
import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import sentencepiece
import torch
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer

WIDTH, POOLED = 48, 32
"""Of an encoded word, and of an encoded prompt."""
SD3_WIDTH = 4096
"""ComfyUI writes it into its code."""
SENTENCES = (
    "a red circle and a blue square, the black photo of a green dog on the table",
    "A Blue SQUARE with color, shape, size and texture; You are an assistant designed to generate images",
)
"""Each of these words is one token of `sentence_pieces`; others fall into letters or bytes."""


def sdxl_clip(width: int = WIDTH, pooled: int = POOLED) -> comfy.sd.CLIP:
    """Two CLIPs side by side; the second gives the pooled vector."""
    module = comfy.sdxl_clip
    configs = {"clip_l": _clip_config(width - pooled), "clip_g": _clip_config(pooled)}
    return _clip(module.SDXLTokenizer, module.SDXLClipModel, **configs)


def flux_clip(width: int = WIDTH, pooled: int = POOLED) -> comfy.sd.CLIP:
    """CLIP for the pooled vector, and T5 padded to 256 tokens."""
    module = comfy.text_encoders.flux
    return _clip(module.FluxTokenizer, module.FluxClipModel, clip_l=_clip_config(pooled), t5xxl=_t5_config(width))


def chroma_clip(width: int = WIDTH) -> comfy.sd.CLIP:
    """T5 without padding."""
    module = comfy.text_encoders.pixart_t5
    return _clip(module.PixArtTokenizer, module.PixArtT5XXL, t5xxl=_t5_config(width))


def sd3_clip(clip_l: bool = True, clip_g: bool = True, t5: bool = True, pooled: int = POOLED) -> comfy.sd.CLIP:
    """Two CLIPs of half the pooled vector each, and T5; each may be missing."""
    module = comfy.text_encoders.sd3_clip
    clips = {"clip_l": _clip_config(pooled // 2), "clip_g": _clip_config(pooled // 2)}
    encoder = module.sd3_clip(clip_l=clip_l, clip_g=clip_g, t5=t5)
    return _clip(module.SD3Tokenizer, encoder, **clips, t5xxl=_t5_config(SD3_WIDTH))


def qwen_clip(width: int = WIDTH) -> comfy.sd.CLIP:
    """Qwen-Image's language model with a small eye."""
    module = comfy.text_encoders.qwen_image

    def eye(hidden_size: int, **options: Any) -> torch.nn.Module:
        return Qwen2VLVisionTransformer(32, intermediate_size=32, num_heads=2, num_layers=1, **options)

    with patch.object(comfy.text_encoders.qwen_vl, "Qwen2VLVisionTransformer", eye):
        return _clip(module.QwenImageTokenizer, module.QwenImageTEModel, qwen25_7b=_language_config(width))


def lumina_clip(width: int = WIDTH) -> comfy.sd.CLIP:
    """Lumina 2's Gemma."""
    module = comfy.text_encoders.lumina2
    config = {**_language_config(width), "num_hidden_layers": 3, "num_attention_heads": 1, "vocab_size": 1024}
    return _clip(module.LuminaTokenizer, module.LuminaModel, sentence_pieces(gemma=True), gemma2_2b=config)


def wan_clip(width: int = WIDTH) -> comfy.sd.CLIP:
    """Wan's umT5, padded to 512 tokens."""
    module = comfy.text_encoders.wan
    config = {**_t5_config(width), "vocab_size": 1024}
    return _clip(module.WanT5Tokenizer, module.WanT5Model, sentence_pieces(gemma=False), umt5xxl=config)


def cosmos_clip(width: int = WIDTH) -> comfy.sd.CLIP:
    """Cosmos' first T5, padded to 512 tokens."""
    module = comfy.text_encoders.cosmos
    return _clip(module.CosmosT5Tokenizer, module.CosmosT5XXL, t5xxl=_t5_config(width))


def _clip(tokenizer: Any, encoder: Any, pieces: bytes | None = None, **configs: dict) -> comfy.sd.CLIP:
    """configs: what of each encoder's sizes differs from ComfyUI's."""
    options = {"dtype": torch.float32, **{f"{name}_model_config": config for name, config in configs.items()}}
    data = {} if pieces is None else {"spiece_model": pieces}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, encoder), model_options=options, tokenizer_data=data)
    fill(clip.cond_stage_model)
    return clip


def _clip_config(width: int) -> dict:
    return {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 2, "num_hidden_layers": 3}


def _t5_config(width: int) -> dict:
    return {"d_model": width, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}


def _language_config(width: int) -> dict:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, **heads}


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """ComfyUI leaves parameters as the memory was. Layers add little, so that each token remains what it is."""
    random = torch.Generator().manual_seed(3)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.Embedding):
                # Rows that overlap in memory: random all the same, and Qwen's 152 064 of them are small.
                rows, width = parameter.shape
                parameter.data = torch.randn(rows + width, generator=random).unfold(0, width, 1)[:rows]
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=random) / fan_in**0.5
                if parameter.ndim < 2 and name != "bias":  # of norms
                    parameter.data += 1
    return network


@cache
def sentence_pieces(gemma: bool) -> bytes:
    """A SentencePiece model of a few words, made as Gemma's or as umT5's is."""
    model = io.BytesIO()
    marks = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3} if gemma else {"pad_id": 0, "eos_id": 1, "unk_id": 2}
    options = (
        {"add_dummy_prefix": False, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        if gemma
        else {"bos_id": -1}
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=1000,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **marks,
        **options,
    )
    return model.getvalue()
