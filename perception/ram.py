"""RAM (Recognize Anything): the architecture, on transformers' Swin and BERT blocks.

Paper: "Recognize Anything: A Strong Image Tagging Model" (arXiv 2306.03514). The image tokens of a Swin are asked, by
one label query a tag, whether the tag is there. Parameter names follow the published checkpoints where the blocks
allow it, so that a key conversion stays a renaming.

Shapes: B images, T image tokens (the first is the mean of the others), K tags.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, SwinConfig, SwinModel
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput


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
    """The tagging head, as `BertConfig` keywords."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CrossAttention(nn.Module):
    """Label queries look at image tokens; the block that BERT calls `crossattention.self`."""

    def __init__(self, config: BertConfig, encoder_width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(encoder_width, config.hidden_size)
        self.value = nn.Linear(encoder_width, config.hidden_size)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """queries [B, K, D], tokens [B, T, E] → [B, K, D]."""
        split = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, tokens), (self.value, tokens))
        )
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class TaggingLayer(nn.Module):
    """A BERT layer without self-attention: cross-attention to the image, then the feed-forward part."""

    def __init__(self, config: BertConfig, encoder_width: int) -> None:
        super().__init__()
        self.crossattention = nn.ModuleDict(
            {"self": CrossAttention(config, encoder_width), "output": BertSelfOutput(config)}
        )
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        seen = self.crossattention["output"](self.crossattention["self"](queries, tokens), queries)
        return self.output(self.intermediate(seen), seen)


class Ram(nn.Module):
    """Images → one logit a tag."""

    def __init__(self, config: RamConfig) -> None:
        super().__init__()
        self.config = config
        head = BertConfig(**config.head, hidden_dropout_prob=0.0)
        swin = SwinConfig(
            image_size=config.image_size,
            patch_size=4,
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window_size,
            drop_path_rate=0.0,
        )
        self.visual_encoder = SwinModel(swin)
        self.image_proj = nn.Linear(self.visual_encoder.num_features, config.image_width)
        self.label_embed = nn.Parameter(torch.randn(config.num_tags, config.label_width) * config.label_width**-0.5)
        self.wordvec_proj = nn.Linear(config.label_width, head.hidden_size)
        self.tagging_head = nn.ModuleList(TaggingLayer(head, config.image_width) for _ in range(head.num_hidden_layers))
        self.fc = nn.Linear(head.hidden_size, 1)

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] normalised → [B, T, image_width]; the first token is the mean of the others."""
        encoded = self.visual_encoder(pixel_values=pixel_values)
        return self.image_proj(torch.cat([encoded.pooler_output[:, None], encoded.last_hidden_state], dim=1))

    def classify(self, tokens: Tensor) -> Tensor:
        """Image tokens [B, T, image_width] → logits [B, K]."""
        queries = F.relu(self.wordvec_proj(self.label_embed)).expand(len(tokens), -1, -1)  # [B, K, D]
        for layer in self.tagging_head:
            queries = layer(queries, tokens)
        return self.fc(queries).squeeze(-1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] normalised → logits [B, K]."""
        return self.classify(self.image_tokens(pixel_values))
