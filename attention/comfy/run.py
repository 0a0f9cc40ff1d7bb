"""What one run of a ComfyUI sampler, and each call of its model, know of the regions."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..equation.cells import halve
from ..equation.layout import KeyBlock, Layout, as_slice
from ..equation.layout_cache import Batch, LayoutCache
from ..equation.settings import ModulationSettings
from .clock import Clock
from .families import UNET, Family, family_of
from .patches import (
    CALL,
    OVERRIDE,
    ModulatedAttention,
    ModulatedBlock,
    Site,
    add_patches,
    attention_levels,
    attention_sites,
)
from .payload import Chunks, Payload
from .token_spans import TokenCounts, count_tokens

logger = logging.getLogger(__name__)


class OneWarning:
    """Logs each reason once per run."""

    def __init__(self, message: str) -> None:
        self.message, self._reasons = message, set()

    def __call__(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning(self.message, reason)


class SamplingRun:
    """What one run of a sampler shares: the layouts for each resolution, and the patches."""

    def __init__(self, settings: ModulationSettings, clock: Clock, latent_size: tuple[int, int]) -> None:
        self.settings, self.clock, self.latent_size = settings, clock, latent_size
        self.warn = OneWarning("RealignDiff: attention is not re-weighted where %s.")
        self._layouts = LayoutCache(settings)
        self._images: list[tuple] = []  # kept alive, because layouts are found by their ids
        self._patches: dict[tuple, Any] = {}
        self._unets: dict[int, tuple[list[Site], list[int]]] = {}

    def patch(
        self, options: dict, network: Any, x: Tensor, sigma: float, context: Tensor, chunks: Chunks, conds: dict
    ) -> dict:
        """The transformer options for one call of the model: where it is modulated, with our patches over the others.

        x: latents [B, C, (T,) h, w] at noise level sigma; context: encoded text [B, n, *]; conds: its other arguments.
        """
        family, strengths = family_of(network), self.settings.strengths(*self.clock.at(sigma))
        if family is None or not any(strengths) or not self._knows_size(x, chunks):
            return options
        if family is UNET:
            return self._patch_unet(options, network, x, context, ModelCall(self, chunks, strengths, family))
        counts = count_tokens(network, x, context, conds)
        if counts.text < context.shape[1]:
            self.warn("the model leaves encoded words out")
            return options
        if counts.text == counts.image and not family.joint:
            self.warn("there are as many words as pixels, so that nothing tells them apart")
            return options
        call = ModelCall(self, chunks, strengths, family, counts)
        call.prepare_layouts([counts.size], counts.text, x.device)
        return {**options, CALL: call, OVERRIDE: self._reuse(OVERRIDE, ModulatedAttention, options.get(OVERRIDE))}

    def _patch_unet(self, options: dict, unet: Any, x: Tensor, context: Tensor, call: ModelCall) -> dict:
        if id(unet) not in self._unets:
            self._unets[id(unet)] = list(attention_sites(unet)), attention_levels(unet)
        sites, levels = self._unets[id(unet)]
        call.prepare_layouts([halve(x.shape[-2:], level) for level in levels], context.shape[1], x.device)
        for kind, is_on in zip(("attn2", "attn1"), call.is_on, strict=True):
            if is_on:
                make = partial(self._reuse, kind, partial(ModulatedBlock, kind == "attn2"))
                options = add_patches(options, kind, sites, make)
        return {**options, CALL: call}

    def layout(
        self,
        cross: bool,
        size: tuple[int, int],
        n_keys: int,
        device: torch.device,
        payloads: Sequence[Payload],
        frames: int = 1,
    ) -> Layout:
        """The layout of all batch elements of some conditionings, for queries on a (h, w) grid in each frame."""

        def batch() -> Batch:
            self._images += [payload.images for payload in payloads]
            elements = [(bound, payload) for payload in payloads for bound in payload.per_element(self.latent_size)]
            positions = [
                [] if bound is None else [repeat(tokens, n_keys, payload.tokens) for tokens in bound.positions]
                for bound, payload in elements
            ]
            text = [repeat(p.text_tokens or range(p.tokens), n_keys, p.tokens) for _, p in elements]
            return Batch([None if bound is None else bound.regions for bound, _ in elements], positions, text)

        key = tuple((id(p.images), p.tokens, p.rows, p.area) for p in payloads)
        return self._layouts.get(cross, size, n_keys, device, batch, key, frames)

    def _knows_size(self, x: Tensor, chunks: Chunks) -> bool:
        """Whether x is the whole latent or its conditioning's area, and no tile of another pack."""
        size = tuple(x.shape[-2:])
        known = all(size == (self.latent_size if p.area is None else p.area[:2]) for p in chunks)
        if not known:
            tile = f"the model is called with a tile of {size} cells of a latent of {self.latent_size}"
            self.warn(f"{tile}, as another node does")
        return known

    def _reuse(self, kind: str, make: Any, previous: Any) -> Any:
        """The same patch at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault((kind, id(previous)), make(previous))


class ModelCall:
    """One call of the model: which batch elements are modulated, and how strongly."""

    def __init__(
        self,
        run: SamplingRun,
        chunks: Chunks,
        strengths: tuple[float, float],
        family: Family,
        counts: TokenCounts | None = None,
    ) -> None:
        """counts: the tokens of a transformer; None for a UNet."""
        self.run, self.chunks, self.family, self.counts = run, chunks, family, counts
        self.frames = 1 if counts is None else counts.frames
        self.is_on = tuple(strength > 0 for strength in strengths)
        self.strengths = tuple(torch.tensor(strength) for strength in strengths)  # numbers would be compiled in
        self.modulated = [payload for payload in chunks if payload.active]
        payloads = [payload for payload in chunks for _ in range(payload.rows)]
        self.n_elements = len(payloads)
        self.elements = as_slice([element for element, payload in enumerate(payloads) if payload.active])

    def prepare_layouts(self, sizes: Sequence[tuple[int, int]], n_text: int, device: torch.device) -> None:
        """Make all layouts that the layers will ask for: a compiled model would otherwise compile that."""
        for size, (cross, is_on) in itertools.product(sizes, zip((True, False), self.is_on, strict=True)):
            if is_on:
                n_keys = n_text if cross else self.frames * math.prod(size)
                self.run.layout(cross, size, n_keys, device, self.modulated, self.frames)

    def blocks_in_unet(self, cross: bool, q: Tensor, k: Tensor, options: dict) -> list[KeyBlock]:
        """How a UNet's attention of q to k [B, N, C] is modulated in `elements`; empty: not at all."""
        size = tuple(options["activations_shape"][-2:])
        n_image = size[0] * size[1]
        if len(q) != self.n_elements:
            return self._leave_alone("the model is called with a part of the batch, as another node does")
        if q.shape[1] != n_image or (not cross and k.shape[1] != n_image):
            return self._leave_alone("pixels are merged or tiled in attention, as another node does")
        everything = slice(0, k.shape[1])
        return self._blocks(size, *((everything, None) if cross else (None, everything)), q.device)

    def blocks_in_transformer(self, q: Tensor, k: Tensor, dim: int, special: bool) -> tuple[slice, list[KeyBlock]]:
        """Which queries of a transformer's attention of q to k are modulated in `elements`, and how.

        dim: of the tokens. special: the attention has a mask, a scale of its own or fewer heads of keys.
        """
        assert self.counts is not None  # it is a transformer's call
        n_queries, n_keys = q.shape[dim], k.shape[dim]
        spans = self.counts.locate(self.family, n_queries, n_keys)
        queries = slice(0, n_queries) if spans is None else spans.queries
        if len(q) != self.n_elements:
            return queries, self._leave_alone("the model is called with a part of the batch, as another node does")
        if spans is None:
            if not self.counts.is_known(n_queries):
                self._leave_alone("tokens are added, merged or left out, as another node does")
            return queries, []
        if special:
            return queries, self._leave_alone("attention is masked")
        return queries, self._blocks(self.counts.size, spans.text, spans.image, q.device)

    def _blocks(
        self, size: tuple[int, int], text: slice | None, image: slice | None, device: torch.device
    ) -> list[KeyBlock]:
        blocks = []
        for i, keys in enumerate((text, image)):
            if keys is not None and self.is_on[i]:
                n_keys = keys.stop - keys.start
                layout = self.run.layout(i == 0, size, n_keys, device, self.modulated, self.frames)
                if layout.modulated:
                    blocks.append(KeyBlock(keys, layout, self.strengths[i]))
        return blocks

    def _leave_alone(self, reason: str) -> list[KeyBlock]:
        self.run.warn(reason)
        return []


def repeat(positions: Sequence[int], n_keys: int, tokens: int) -> list[int]:
    """Positions among so many tokens, wherever ComfyUI repeated them to share a batch with a longer conditioning."""
    return [position + start for start in range(0, n_keys - tokens + 1, tokens or n_keys + 1) for position in positions]
