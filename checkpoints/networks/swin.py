"""Swin: an image → tokens, by self-attention in windows that shift from block to block.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030). transformers has
one too, but its parameter names differ between versions; here they are those of the published checkpoints, so files
are read with any version.

Shapes: B images, H × W a stage's feature map, C its channels, N = window² tokens per window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4  # pixels per side of a patch
_APART = -100.0  # added to the score of two tokens that a shift brought into one window but that are not neighbours


class PatchEmbed(nn.Module):
    """[B, 3, S, S] → [B, S / 4, S / 4, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.norm(self.proj(pixel_values).permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per offset between two tokens (eq. 4)."""

    offsets: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        self.register_buffer("offsets", _offsets(window), persistent=False)  # [N, N]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, windows, N, C], mask [1 or windows, N, N] added to the scores → [B, windows, N, C]."""
        windows = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.relative_position_bias_table[self.offsets].permute(2, 0, 1)  # [heads, N, N]
        bias = (bias + mask[:, None]).expand(windows, -1, -1, -1).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])  # [B, windows × heads, N, C / heads]
        return self.proj(mixed.unflatten(1, (windows, self.heads)).transpose(2, 3).flatten(3))


class Block(nn.Module):
    """Attention, then an MLP, both pre-norm and residual; [B, H, W, C] → the same."""

    def __init__(self, channels: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})
        self.register_buffer("mask", _shift_mask(side, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.norm1(x).roll((-self.shift, -self.shift), (1, 2))
        shifted = _unwindow(self.attn(_windows(shifted, self.window), self.mask), x.shape[1] // self.window)
        x = x + shifted.roll((self.shift, self.shift), (1, 2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PatchMerging(nn.Module):
    """Merge 2 × 2 tokens into one: [B, H, W, C] → [B, H / 2, W / 2, 2 C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        four = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, dim=-1)))


class Stage(nn.Module):
    """Blocks, every second one shifted by half a window, then a patch merging except in the last stage."""

    def __init__(self, channels: int, depth: int, heads: int, side: int, window: int, last: bool) -> None:
        super().__init__()
        window = min(window, side)
        shift = window // 2 if side > window else 0
        self.blocks = nn.ModuleList(Block(channels, heads, side, window, shift if i % 2 else 0) for i in range(depth))
        self.downsample = nn.Identity() if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class Swin(nn.Module):
    """Images [B, 3, S, S] → tokens [B, T, num_features]."""

    def __init__(
        self, image_size: int, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim)
        side, last = image_size // PATCH, len(depths) - 1
        self.layers = nn.ModuleList(
            Stage(embed_dim * 2**i, depth, heads, side // 2**i, window_size, i == last)
            for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
        )
        self.num_features = embed_dim * 2**last
        self.norm = nn.LayerNorm(self.num_features)
        self.apply(_initialise)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embed(pixel_values)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x.flatten(1, 2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] → [B, windows, N, C]."""
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _unwindow(x: Tensor, rows: int) -> Tensor:
    """[B, windows, N, C], `rows` rows of windows → [B, H, W, C]."""
    window = round(x.shape[2] ** 0.5)
    return x.unflatten(2, (window, window)).unflatten(1, (rows, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _offsets(window: int) -> Tensor:
    """[N, N]: the row of the bias table for each pair of tokens in a window."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [N, 2]
    offset = place[:, None] - place[None] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """[windows, N, N]: 0 for tokens that are neighbours in the image, `_APART` for pairs that only the shift
    brought together; [1, 1, 1] of 0 without a shift."""
    if not shift:
        return torch.zeros(1, 1, 1)
    band = torch.zeros(side, dtype=torch.long)
    band[-window:-shift], band[-shift:] = 1, 2
    region = _windows((3 * band[:, None] + band[None])[None, ..., None], window)[0, ..., 0]  # [windows, N]
    return (region[:, :, None] != region[:, None]).float() * _APART
