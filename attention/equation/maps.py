"""Cross-attention maps (DAAM, arXiv 2210.04885): which image tokens attend to a word.

A map is the probability that softmax(QKᵀ/√d), or its modulated form (eq. 8), gives to the word's tokens: summed over
the tokens, averaged over heads, layers and steps, in [0, 1]. Layers see the image at different resolutions; each has
the same weight, scaled up to one size.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import RealignError
from .cells import covered_fractions
from .layout import Layout, Positions
from .modulated import modulated_attention


class AttentionMaps:
    """The maps of some words of each image, summed up layer by layer while a model samples."""

    def __init__(self, positions: Sequence[Positions]) -> None:
        """positions: for each image of the batch, the token positions of each of its words."""
        self.positions = positions
        self.step = 0
        """The step that is being sampled; the caller sets it."""
        self._sums: dict[tuple[int, int, int], Tensor] = {}  # (step, h, w) → [B, W, h, w]
        self._layers: Counter[int] = Counter()  # step → how many layers were added
        self._lock = threading.Lock()  # hosts with several devices call a model in threads

    def add(self, maps: Tensor, size: tuple[int, int]) -> None:
        """Add the maps of one layer, [B, W, h·w] on a (h, w) grid."""
        maps, key = maps.unflatten(-1, size), (self.step, *size)
        with self._lock:
            total = self._sums.get(key)
            self._sums[key] = maps if total is None else total + maps.to(total.device)
            self._layers[self.step] += 1

    def mean(self, size: tuple[int, int], steps: Collection[int] | None = None) -> Tensor:
        """[B, W, h, w] in [0, 1] on the CPU, at a size no smaller than the layers'; an image with fewer words than
        others has zeros as its last maps.

        steps: average over these only; None: over all.

        Raises:
            RealignError: nothing was recorded in these steps.
        """
        sums = [(key, total) for key, total in self._sums.items() if steps is None or key[0] in steps]
        if not sums:
            raise RealignError(
                "No attention was recorded: sample at least one step, with the words' conditioning on the whole latent."
            )
        layers = sum(self._layers[step] for step in {key[0] for key, _ in sums})
        first, *rest = [F.interpolate(total.float().cpu(), size, mode="bilinear") for _, total in sums]
        return sum(rest, first) / layers


def token_matrix(positions: Sequence[Positions], n_tokens: int) -> Tensor:
    """[B, Nk, W] float32: 1 where a token is part of a word, else 0."""
    matrix = torch.zeros(len(positions), n_tokens, max([1, *map(len, positions)]))
    for image, words in enumerate(positions):
        for word, tokens in enumerate(words):
            matrix[image, list(tokens), word] = 1
    return matrix


def word_attention(
    q: Tensor, k: Tensor, words: Tensor, layout: Layout | None = None, strength: float | Tensor = 0.0
) -> Tensor:
    """The probability with which each image token attends to each word: [B, W, Nq] in [0, 1], the mean over heads.

    q: [B, H, Nq, d], k: [B, H, Nk, d], words: [B, Nk, W], see `token_matrix`. With a layout and λ_t (`strength`), the
    probabilities are those of modulated attention.
    """
    q, k = q.float(), k.float()  # small probabilities add up
    # Attention gives each query the mean of the values by probability. If a value says which word its token is part of,
    # the result is the word's probability, and no Nq x Nk tensor is held. Fused kernels want values as long as queries.
    v = F.pad(words.to(q), (0, max(0, q.shape[-1] - words.shape[-1])))
    v = v[:, None].expand(-1, q.shape[1], -1, -1)
    if layout is None:
        attended = F.scaled_dot_product_attention(q, k, v)
    else:
        attended = modulated_attention(q, k, v, layout, strength)
    return attended[..., : words.shape[-1]].mean(1).mT


def attention_mass(heat: Tensor, mask: Tensor) -> float:
    """The fraction of a map [h, w] that lies on a mask [H, W] in [0, 1]; 0 for an empty map."""
    inside = heat * covered_fractions(mask, (heat.shape[0], heat.shape[1])).to(heat)
    return float(inside.sum() / heat.sum().clamp(min=torch.finfo(heat.dtype).tiny))


def scale_to_max(heat: Tensor) -> Tensor:
    """Maps [..., h, w], each divided by its largest value, for viewing; an empty one stays empty."""
    return heat / heat.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
