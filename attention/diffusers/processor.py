"""Modulated attention in a diffusers UNet, for as long as a `with` lasts.

with modulate(unet, [None, regions], tokenizer, latents.shape[-2:], settings) as modulation:
    for i, t in enumerate(timesteps):
        modulation.at(float(t) / 1000, i / len(timesteps))
        noise = unet(torch.cat([latents, latents]), t, torch.cat([empty, text])).sample
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from ...core.errors import RealignError
from ...core.regions import RegionSet
from ..equation.layout import Layout, Positions, cross_layout, map_size, self_layout
from ..equation.modulated import modulated_attention
from ..equation.settings import ModulationSettings, strength
from ..equation.tokens import token_positions

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention
    from transformers import CLIPTokenizer

_BLOCK_ATTENTION = re.compile(r"\.transformer_blocks\.\d+\.attn[12]$")
_STOCK = (AttnProcessor, AttnProcessor2_0)
"""Processors that compute plain attention and nothing else."""


@contextmanager
def modulate(
    unet: UNet2DConditionModel,
    region_sets: Sequence[RegionSet | None],
    tokenizer: CLIPTokenizer,
    latent_size: tuple[int, int],
    settings: ModulationSettings | None = None,
) -> Iterator[Modulation]:
    """Re-weight the UNet's attention by regions, one set for each row of the batch it is called with.

    region_sets: None leaves a row alone; for guidance in one batch that is `[None] * n + sets`.
    latent_size: (H, W) of the latents. Call `at` of what is returned before each call of the UNet.

    Raises:
        RealignError: a phrase cannot be found in its prompt.
    """
    positions = [phrase_positions(regions, tokenizer) for regions in region_sets]
    modulation = Modulation(region_sets, positions, latent_size, settings or ModulationSettings())
    with wrapped(unet, lambda previous: ModulatedProcessor(previous, modulation)):
        yield modulation


@contextmanager
def wrapped(unet: UNet2DConditionModel, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Put `wrap(processor)` in the place of the processor of each attention layer in the UNet's transformer blocks."""
    layers = [module for name, module in unet.named_modules() if _BLOCK_ATTENTION.search(name)]
    previous = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(wrap(layer.processor))
        yield
    finally:
        for layer, processor in zip(layers, previous, strict=True):
            layer.set_processor(processor)


class Modulation:
    """What one run's attention layers share: the regions laid out for each resolution, and the present λ_t."""

    def __init__(
        self,
        region_sets: Sequence[RegionSet | None],
        positions: Sequence[Positions],
        latent_size: tuple[int, int],
        settings: ModulationSettings,
    ) -> None:
        self.region_sets, self.positions = region_sets, positions
        self.latent_size, self.settings = latent_size, settings
        self.strengths: tuple[float, float] | None = None
        self._layouts: dict[tuple[bool, int, int], Layout] = {}

    def at(self, t: float, progress: float) -> None:
        """Say where the sampling is: t = timestep / T in [0, 1], progress = step index / number of steps in [0, 1)."""
        self.strengths = strength(self.settings, t, progress)

    def strength(self, cross: bool) -> float:
        """λ_t for cross- or self-attention at the step last told."""
        if self.strengths is None:
            raise RealignError(
                "The UNet was called before `modulation.at(t, progress)`; say where the sampling is first."
            )
        return self.strengths[0 if cross else 1]

    def layout(self, cross: bool, queries: Tensor, keys: Tensor) -> Layout:
        """The layout for queries [B, Nq, C] and keys [B, Nk, C], made once for each size."""
        (rows, n_queries, _), n_keys = queries.shape, keys.shape[1]
        if rows != len(self.region_sets):
            raise RealignError(
                f"The UNet is called with {rows} rows but `modulate` was given {len(self.region_sets)} region sets; "
                "give one for each row of the batch, None for a row to leave alone."
            )
        key = cross, n_queries, n_keys
        if key not in self._layouts:
            size = map_size(n_queries, self.latent_size)
            made = (
                cross_layout(self.region_sets, self.positions, size, n_keys, self.settings)
                if cross
                else self_layout(self.region_sets, size, self.settings)
            )
            self._layouts[key] = made.to(queries.device)
        return self._layouts[key]


class ModulatedProcessor:
    """Modulated attention in place of, or on top of, a layer's previous processor."""

    def __init__(self, previous: Any, modulation: Modulation) -> None:
        self.previous, self.modulation = previous, modulation

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
        cross = text is not None
        now = self.modulation.strength(cross)
        layout = self.modulation.layout(cross, hidden_states, text if cross else hidden_states) if now else None
        stock = type(self.previous) in _STOCK
        plain = None
        if layout is None or not layout.active or not stock:
            masks = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
            plain = self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **masks)
        if layout is None or not layout.active:
            return plain
        if attention_mask is not None:
            raise RealignError("Modulated attention takes no attention mask; call the UNet without one.")
        q, k, v = project(attn, hidden_states, text)
        biased = modulated_attention(q, k, v, layout, now)
        if stock:
            return output(attn, biased, hidden_states)
        # Whatever else the previous processor does stays; only attention's own part is exchanged.
        unbiased = F.scaled_dot_product_attention(q, k, v)
        return plain + (_merge(attn, biased) - _merge(attn, unbiased)) / attn.rescale_output_factor


def phrase_positions(regions: RegionSet | None, tokenizer: CLIPTokenizer) -> Positions:
    """Token positions of each active region's phrase."""
    if regions is None:
        return []
    return [token_positions(r.phrase, regions.prompt, tokenizer, r.occurrence) for r in regions.active]


def project(attn: Attention, x: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, d], as diffusers' own processors make them; the layers are called, so LoRA is in."""
    context = x if text is None else text
    if text is not None and attn.norm_cross:
        context = attn.norm_encoder_hidden_states(text)
    q, k, v = (
        projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for projected in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
    )
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)
    return q, k, v


def _merge(attn: Attention, x: Tensor) -> Tensor:
    """Heads [B, H, N, d] → [B, N, C], through the output projection."""
    return attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))


def output(attn: Attention, x: Tensor, residual: Tensor) -> Tensor:
    """What diffusers' own processors do after attention."""
    out = _merge(attn, x)
    if attn.residual_connection:
        out = out + residual
    return out / attn.rescale_output_factor
