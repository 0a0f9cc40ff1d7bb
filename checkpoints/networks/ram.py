"""RAM and RAM++ (Recognize Anything): the architectures, with the parameter names of the published checkpoints.

Papers: "Recognize Anything: A Strong Image Tagging Model" (arXiv 2306.03514) and "Open-Set Image Tagging with
Multi-Grained Text Supervision" (RAM++, arXiv 2310.15200). One query per tag attends to a Swin's image tokens and
becomes the tag's logit. RAM makes the query from one text embedding per tag; RAM++ from several, each of another
description of the tag, weighted by their similarity to the image.

Shapes: B images, T image tokens (the first is the mean of the others), K tags, N descriptions per tag, D the width of
the tagging head.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .swin import Swin


@dataclass(frozen=True, kw_only=True)
class RamConfig:
    """The sizes of a RAM; the defaults are those of `ram_swin_large_14m`."""

    image_size: int = 384
    num_tags: int = 4585
    embed_dim: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (6, 12, 24, 48)
    window_size: int = 12
    image_width: int = 512
    label_width: int = 512
    head: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 768,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 3072,
        }
    )
    """The tagging head's sizes, with the keys of a BERT config."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CrossAttention(nn.Module):
    """Label queries attend to image tokens; BERT calls this block `crossattention.self`."""

    def __init__(self, width: int, heads: int, encoder_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(encoder_width, width)
        self.value = nn.Linear(encoder_width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """queries [B, K, D], tokens [B, T, E] → [B, K, D]."""
        split = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, tokens), (self.value, tokens))
        )
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class AddNorm(nn.Module):
    """A linear layer, the residual sum, a normalisation: the end of both parts of a BERT layer."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class TaggingLayer(nn.Module):
    """A BERT layer without self-attention: cross-attention to the image, then the feed-forward part."""

    def __init__(self, width: int, heads: int, inner_width: int, encoder_width: int) -> None:
        super().__init__()
        self.crossattention = nn.ModuleDict(
            {"self": CrossAttention(width, heads, encoder_width), "output": AddNorm(width, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner_width)})
        self.output = AddNorm(inner_width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        x = self.crossattention["output"](self.crossattention["self"](queries, tokens), queries)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Ram(nn.Module):
    """Images → one logit per tag."""

    def __init__(self, config: RamConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.head["hidden_size"], config.head["num_attention_heads"]
        self.visual_encoder = Swin(
            config.image_size, config.embed_dim, config.depths, config.num_heads, config.window_size
        )
        self.image_proj = nn.Linear(self.visual_encoder.num_features, config.image_width)
        self.label_embed = nn.Parameter(torch.empty(config.num_tags, config.label_width))
        nn.init.normal_(self.label_embed, std=config.label_width**-0.5)
        self.wordvec_proj = nn.Linear(config.label_width, width)
        self.tagging_head = nn.ModuleList(
            TaggingLayer(width, heads, config.head["intermediate_size"], config.image_width)
            for _ in range(config.head["num_hidden_layers"])
        )
        self.fc = nn.Linear(width, 1)

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] normalised → [B, T, image_width]; the first token is the mean of the others."""
        encoded = self.visual_encoder(pixel_values)
        return self.image_proj(torch.cat([encoded.mean(dim=1, keepdim=True), encoded], dim=1))

    def label_vectors(self, tokens: Tensor) -> Tensor:
        """The tags' text embeddings for these image tokens: [1 or B, K, label_width]."""
        return self.label_embed[None]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] normalised → logits [B, K]."""
        return self.classify(self.image_tokens(pixel_values))

    def classify(self, tokens: Tensor) -> Tensor:
        """Image tokens [B, T, image_width] → logits [B, K]."""
        queries = F.relu(self.wordvec_proj(self.label_vectors(tokens))).expand(len(tokens), -1, -1)  # [B, K, D]
        for layer in self.tagging_head:
            queries = layer(queries, tokens)
        return self.fc(queries).squeeze(-1)


class RamPlus(Ram):
    """RAM++: several descriptions per tag, weighted for each image by their similarity to it."""

    def __init__(self, config: RamConfig, descriptions: int = 51) -> None:
        super().__init__(config)
        self.label_embed = nn.Parameter(torch.empty(config.num_tags, descriptions, config.label_width))  # [K, N, W]
        nn.init.normal_(self.label_embed, std=config.label_width**-0.5)
        self.reweight_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def label_vectors(self, tokens: Tensor) -> Tensor:
        """The tags' descriptions, averaged with weights for each image: [B, K, label_width]."""
        image = F.normalize(tokens[:, 0].float(), dim=-1).to(tokens.dtype)  # [B, W]
        cosines = (image @ self.label_embed.flatten(0, 1).T).float()  # [B, K · N]
        cosines = cosines.unflatten(1, self.label_embed.shape[:2])  # [B, K, N]
        # in fp32, because the scale is large
        weights = (self.reweight_scale.float().exp() * cosines).softmax(dim=-1).to(tokens.dtype)
        return torch.einsum("bkn,knw->bkw", weights, self.label_embed)
