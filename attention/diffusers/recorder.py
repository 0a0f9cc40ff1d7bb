"""Attention maps of a diffusers UNet, for as long as a `with` lasts; what the UNet computes stays the same.

maps = AttentionMaps([phrase_positions(regions, tokenizer)])
with record(unet, maps, latents.shape[-2:]):
    for i, t in enumerate(timesteps):
        maps.step = i
        noise = unet(torch.cat([latents, latents]), t, torch.cat([uncond, cond])).sample
heat = maps.mean(latents.shape[-2:])
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...core.errors import RealignError
from ..equation.cells import grid_size
from ..equation.maps import AttentionMaps, token_matrix, word_attention
from .processor import LayerProcessor, Modulation, project, wrap_processors

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


def record(
    unet: UNet2DConditionModel, maps: AttentionMaps, latent_size: tuple[int, int], modulation: Modulation | None = None
) -> AbstractContextManager[None]:
    """Record what the last `len(maps.positions)` batch elements attend to; the unconditional ones stand before them.

    latent_size: (H, W) of the latents. modulation: that of a `modulate` around this `with`; the maps are then those of
    modulated attention.
    """
    processor = partial(RecordingProcessor, maps=maps, latent_size=latent_size, modulation=modulation)
    return wrap_processors(unet, processor)


class RecordingProcessor(LayerProcessor):
    """Adds a layer's attention to words to the maps, then calls the previous processor."""

    def __init__(
        self, previous: Any, maps: AttentionMaps, latent_size: tuple[int, int], modulation: Modulation | None
    ) -> None:
        super().__init__(previous)
        self.maps, self.latent_size, self.modulation = maps, latent_size, modulation

    def attend(self, attn, x, text, mask, previous):
        if text is not None:
            if mask is not None:
                raise RealignError("Attention is recorded without an attention mask; call the UNet without one.")
            self._record(attn, x, text)
        return previous()

    def _record(self, attn: Attention, x: Tensor, text: Tensor) -> None:
        images = len(self.maps.positions)
        if len(x) < images:
            raise RealignError(
                f"The UNet is called with {len(x)} batch elements, but words of {images} images are recorded."
            )
        last = slice(len(x) - images, None)
        layout, strength = None, 0.0
        if self.modulation is not None and (strength := self.modulation.strength(cross=True)):
            layout = self.modulation.layout(True, x, text).part(last)
        q, k, _ = project(attn, x[last], text[last])
        words = token_matrix(self.maps.positions, text.shape[1]).to(q.device)
        size = grid_size(x.shape[1], self.latent_size)
        self.maps.add(word_attention(q, k, words, layout, strength), size)
