"""Modulated attention in a diffusers UNet, for as long as a `with` lasts.

with modulate(unet, [None, regions], tokenizer, latents.shape[-2:], settings) as modulation:
    for i, t in enumerate(timesteps):
        modulation.at(float(t) / 1000, i / len(timesteps))
        noise = unet(torch.cat([latents, latents]), t, torch.cat([uncond, cond])).sample
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from ...core.errors import RealignError
from ...core.regions import RegionSet
from ..equation.cells import grid_size
from ..equation.layout import Layout, Positions
from ..equation.layout_cache import Batch, LayoutCache
from ..equation.modulated import modulated_attention
from ..equation.settings import ModulationSettings
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
    """Re-weight the UNet's attention by regions, one set per batch element that it is called with.

    region_sets: None leaves an element alone; for guidance in one batch that is `[None] * n + sets`.
    latent_size: (H, W) of the latents. Call `at` of the modulation before each call of the UNet.

    Raises:
        RealignError: a phrase cannot be found in its prompt.
    """
    batch = Batch(region_sets, [phrase_positions(regions, tokenizer) for regions in region_sets])
    modulation = Modulation(batch, latent_size, settings or ModulationSettings())
    with wrap_processors(unet, partial(ModulatedProcessor, modulation=modulation)):
        yield modulation


@contextmanager
def wrap_processors(unet: UNet2DConditionModel, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the processor of each attention layer in the UNet's transformer blocks by `wrap(processor)`."""
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
    """What the attention layers of one run share: the layouts of its regions, and λ_t of the current step."""

    def __init__(self, batch: Batch, latent_size: tuple[int, int], settings: ModulationSettings) -> None:
        self.batch, self.latent_size, self.settings = batch, latent_size, settings
        self.strengths: tuple[float, float] | None = None
        self._layouts = LayoutCache(settings)

    def at(self, t: float, progress: float) -> None:
        """Set the step: t = timestep / T in [0, 1], progress = step index / number of steps in [0, 1)."""
        self.strengths = self.settings.strengths(t, progress)

    def strength(self, cross: bool) -> float:
        """λ_t of the current step for cross- or self-attention."""
        if self.strengths is None:
            raise RealignError(
                "The UNet was called before `modulation.at(t, progress)`; say where the sampling is first."
            )
        return self.strengths[0 if cross else 1]

    def layout(self, cross: bool, queries: Tensor, keys: Tensor) -> Layout:
        """The layout for queries [B, Nq, C] and keys [B, Nk, C]."""
        elements = len(self.batch.region_sets)
        if len(queries) != elements:
            raise RealignError(
                f"The UNet is called with {len(queries)} batch elements but `modulate` was given {elements} region "
                "sets; give one for each element, None for one to leave alone."
            )
        size = grid_size(queries.shape[1], self.latent_size)
        return self._layouts.get(cross, size, keys.shape[1], queries.device, lambda: self.batch)


class LayerProcessor:
    """A processor around an attention layer's previous one. diffusers passes on only what `__call__` names."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Any] | None = None,
        attention_mask: Tensor | None = None,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        """hidden_states: [B, Nq, C]; encoder_hidden_states: [B, Nk, C'], with IP-Adapter (that, images)."""
        text = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        masks = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
        previous = partial(self.previous, attn, hidden_states, encoder_hidden_states, attention_mask, **masks)
        return self.attend(attn, hidden_states, text, attention_mask, previous)

    def attend(
        self, attn: Attention, x: Tensor, text: Tensor | None, mask: Tensor | None, previous: Callable[[], Tensor]
    ) -> Tensor:
        """The layer's output for image tokens x [B, Nq, C]; `previous()` is that of the previous processor."""
        raise NotImplementedError


class ModulatedProcessor(LayerProcessor):
    """Modulated attention in place of, or on top of, a layer's previous processor."""

    def __init__(self, previous: Any, modulation: Modulation) -> None:
        super().__init__(previous)
        self.modulation = modulation

    def attend(self, attn, x, text, mask, previous):
        cross = text is not None
        strength = self.modulation.strength(cross)
        layout = self.modulation.layout(cross, x, text if cross else x) if strength else None
        if layout is None or not layout.modulated:
            return previous()
        if mask is not None:
            raise RealignError("Modulated attention takes no attention mask; call the UNet without one.")
        q, k, v = project(attn, x, text)
        modulated = modulated_attention(q, k, v, layout, strength)
        if type(self.previous) in _STOCK:
            return project_output(attn, modulated, x)
        # Whatever else the previous processor does stays; only attention's own part is exchanged.
        plain = _merge_heads(attn, F.scaled_dot_product_attention(q, k, v))
        return previous() + (_merge_heads(attn, modulated) - plain) / attn.rescale_output_factor


def phrase_positions(regions: RegionSet | None, tokenizer: CLIPTokenizer) -> Positions:
    """Token positions of each active region's phrase."""
    if regions is None:
        return []
    return [token_positions(r.phrase, regions.prompt, tokenizer, r.occurrence) for r in regions.active]


def project(attn: Attention, x: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, d], as diffusers' own processors make them; the layers are called, so LoRA is included."""
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


def _merge_heads(attn: Attention, x: Tensor) -> Tensor:
    """Heads [B, H, N, d] → [B, N, C], through the output projection."""
    return attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))


def project_output(attn: Attention, x: Tensor, residual: Tensor) -> Tensor:
    """Heads [B, H, N, d] → the layer's output [B, N, C], as diffusers' own processors make it."""
    out = _merge_heads(attn, x)
    if attn.residual_connection:
        out = out + residual
    return out / attn.rescale_output_factor
