"""Attention maps of a diffusers UNet, for as long as a `with` lasts; what the UNet computes stays the same.

maps = AttentionMaps([phrase_positions(regions, tokenizer)])
with record(unet, maps, latents.shape[-2:]):
    for i, t in enumerate(timesteps):
        maps.step = i
        noise = unet(torch.cat([latents, latents]), t, torch.cat([empty, text])).sample
heat = maps.mean(latents.shape[-2:])
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...core.errors import RealignError
from ..equation.layout import map_size
from ..equation.maps import AttentionMaps, token_matrix, word_attention
from .processor import Modulation, project, wrapped

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


@contextmanager
def record(
    unet: UNet2DConditionModel,
    maps: AttentionMaps,
    latent_size: tuple[int, int],
    modulation: Modulation | None = None,
) -> Iterator[None]:
    """Add what the last `len(maps.words)` rows of the UNet's batch attend to; the unconditional ones stand before them.

    latent_size: (H, W) of the latents. modulation: what `modulate` gave, if its `with` is around this one; the maps are
    then of modulated attention.
    """
    with wrapped(unet, lambda previous: RecordingProcessor(previous, maps, latent_size, modulation)):
        yield


class RecordingProcessor:
    """A layer's previous processor, beside which its attention to words is added to the maps."""

    def __init__(
        self, previous: Any, maps: AttentionMaps, latent_size: tuple[int, int], modulation: Modulation | None
    ) -> None:
        self.previous, self.maps = previous, maps
        self.latent_size, self.modulation = latent_size, modulation

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Any] | None = None,
        attention_mask: Tensor | None = None,
        ip_adapter_masks: Any = None,  # named, because diffusers passes on only what a processor names
    ) -> Tensor:
        """hidden_states: [B, Nq, C]; encoder_hidden_states: [B, Nk, C'], with IP-Adapter (that, images)."""
        text = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        if text is not None:
            if attention_mask is not None:
                raise RealignError("Attention is recorded without an attention mask; call the UNet without one.")
            self._record(attn, hidden_states, text)
        masks = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
        return self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **masks)

    def _record(self, attn: Attention, x: Tensor, text: Tensor) -> None:
        count = len(self.maps.words)
        if len(x) < count:
            raise RealignError(f"The UNet is called with {len(x)} rows, but words of {count} images are recorded.")
        rows = slice(len(x) - count, None)
        now = 0.0 if self.modulation is None else self.modulation.strength(cross=True)
        layout = self.modulation.layout(True, x, text).part(rows) if now else None
        q, k, _ = project(attn, x[rows], text[rows])
        words = token_matrix(self.maps.words, text.shape[1]).to(q.device)
        self.maps.add(word_attention(q, k, words, layout, now), map_size(x.shape[1], self.latent_size))
