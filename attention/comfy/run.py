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
from .conditioning import Chunks, Payload
from .families import UNET, Family, Tokens, family_of, tokens_of
from .patches import CALL, OVERRIDE, ModulatedAttention, ModulatedBlock, Rows, Site, levels, sites, with_patches

logger = logging.getLogger(__name__)


class Run:
    """What one run of a sampler shares: masks laid out for each resolution, and one patch a place."""

    def __init__(self, settings: ModulationSettings, clock: Clock, latent_size: tuple[int, int]) -> None:
        self.settings, self.clock, self.latent_size = settings, clock, latent_size
        self._layouts = LayoutCache(settings)
        self._alive: list = []  # the images by whose ids layouts are known
        self._patches: dict[tuple, Any] = {}
        self._unets: dict[int, tuple[list[Site], list[int]]] = {}
        self._warned: set[str] = set()

    def patched(
        self, options: dict, network: Any, x: Tensor, sigma: float, context: Tensor, chunks: Chunks, conds: dict
    ) -> dict:
        """The transformer options for one call of the model: where it is modulated, with our patches over those there.

        x: latents [rows, C, (T,) h, w] at noise level sigma; context: encoded words [rows, n, *]; conds: its other
        arguments.
        """
        family, strengths = family_of(network), self.settings.strengths(*self.clock.at(sigma))
        if family is None or not any(strengths) or not self._knows_size(x, chunks):
            return options
        if family is UNET:
            call = Call(self, chunks, strengths, family, None)
            there, halvings = self._unet(network)
            call.lay_out([halve(x.shape[-2:], level) for level in halvings], context.shape[1], x.device)
            for kind, now in zip(("attn2", "attn1"), call.on, strict=True):
                if now:
                    make = partial(self._patch, kind, partial(ModulatedBlock, kind == "attn2"))
                    options = with_patches(options, kind, there, make)
            return {**options, CALL: call}
        tokens = tokens_of(network, x, context, conds)
        if tokens.words < context.shape[1]:
            self.warn("the model leaves encoded words out")
            return options
        if tokens.words == tokens.pixels and not family.joint:
            self.warn("there are as many words as pixels, so that nothing tells them apart")
            return options
        call = Call(self, chunks, strengths, family, tokens)
        call.lay_out([tokens.size], tokens.words, x.device)
        return {**options, CALL: call, OVERRIDE: self._patch(OVERRIDE, ModulatedAttention, options.get(OVERRIDE))}

    def layout(
        self,
        cross: bool,
        size: tuple[int, int],
        n_keys: int,
        device: torch.device,
        chunks: Sequence[Payload],
        frames: int = 1,
    ) -> Layout:
        """The layout of all rows of some conditionings for queries on a (h, w) map; made once a run."""

        def batch() -> Batch:
            self._alive += [payload.images for payload in chunks]
            rows = [(row, payload) for payload in chunks for row in payload.of_rows(self.latent_size)]
            positions = [
                [] if bound is None else [_repeated(tokens, n_keys, payload.tokens) for tokens in bound.positions]
                for bound, payload in rows
            ]
            text = [_repeated(payload.read or range(payload.tokens), n_keys, payload.tokens) for _, payload in rows]
            return Batch([None if bound is None else bound.regions for bound, _ in rows], positions, text)

        key = tuple((id(p.images), p.tokens, p.rows, p.area) for p in chunks)
        return self._layouts.get(cross, size, n_keys, device, batch, key, frames)

    def warn(self, why: str) -> None:
        """Say once a run why some calls are not modulated."""
        if why not in self._warned:
            self._warned.add(why)
            logger.warning("RealignDiff: attention is not re-weighted where %s.", why)

    def _knows_size(self, x: Tensor, chunks: Chunks) -> bool:
        """Whether x is the whole latent or its conditioning's area, and no tile of another pack."""
        size = tuple(x.shape[-2:])
        known = all(size == (self.latent_size if p.area is None else p.area[:2]) for p in chunks)
        if not known:
            tile = f"the model is called with a tile of {size} cells of a latent of {self.latent_size}"
            self.warn(f"{tile}, as another node does")
        return known

    def _unet(self, unet: Any) -> tuple[list[Site], list[int]]:
        if id(unet) not in self._unets:
            self._unets[id(unet)] = list(sites(unet)), levels(unet)
        return self._unets[id(unet)]

    def _patch(self, kind: str, make: Any, previous: Any) -> Any:
        """The same object at each step, so that a compiled model is not compiled again."""
        return self._patches.setdefault((kind, id(previous)), make(previous))


class Call:
    """One call of the model: which of its rows are modulated, and how strongly."""

    def __init__(
        self, run: Run, chunks: Chunks, strengths: tuple[float, float], family: Family, tokens: Tokens | None
    ) -> None:
        self.run, self.chunks, self.family, self.tokens = run, chunks, family, tokens
        self.frames = 1 if tokens is None else tokens.frames
        self.on = tuple(now > 0 for now in strengths)
        self.strengths = tuple(torch.tensor(now) for now in strengths)  # numbers would be compiled into a model
        self.modulated = [payload for payload in chunks if payload.active]
        whose = [payload for payload in chunks for _ in range(payload.rows)]
        self.n_rows = len(whose)
        self.rows: Rows = as_slice([row for row, payload in enumerate(whose) if payload.active])

    def lay_out(self, sizes: Sequence[tuple[int, int]], words: int, device: torch.device) -> None:
        """Have all masks laid out that the model's layers will ask for, or a compiled model would have it compiled."""
        for size, (cross, on) in itertools.product(sizes, zip((True, False), self.on, strict=True)):
            if on:
                n_keys = words if cross else self.frames * math.prod(size)
                self.run.layout(cross, size, n_keys, device, self.modulated, self.frames)

    def of_block(self, cross: bool, q: Tensor, k: Tensor, options: dict) -> list[KeyBlock]:
        """How a UNet's attention of q to k [B, N, C] is modulated in the call's rows; not at all: no block."""
        size = tuple(options["activations_shape"][-2:])
        pixels = size[0] * size[1]
        if len(q) != self.n_rows:
            return self._left_alone("the model is called with a part of the batch, as another node does")
        if q.shape[1] != pixels or (not cross and k.shape[1] != pixels):
            return self._left_alone("pixels are merged or tiled in attention, as another node does")
        everything = slice(0, k.shape[1])
        return self._blocks(size, *((everything, None) if cross else (None, everything)), q.device)

    def of_attention(self, q: Tensor, k: Tensor, axis: int, special: bool) -> tuple[slice, list[KeyBlock]]:
        """Which queries of a transformer's attention of q to k are modulated in the call's rows, and how.

        axis: of the tokens. special: the attention has a mask, a scale of its own or fewer heads of keys.
        """
        n_queries, n_keys = q.shape[axis], k.shape[axis]
        place = self.tokens.place(self.family, n_queries, n_keys)
        queries = slice(0, n_queries) if place is None else place.queries
        if len(q) != self.n_rows:
            return queries, self._left_alone("the model is called with a part of the batch, as another node does")
        if place is None:
            if not self.tokens.known(n_queries):
                self._left_alone("tokens are added, merged or left out, as another node does")
            return queries, []
        if special:
            return queries, self._left_alone("attention is masked")
        return queries, self._blocks(self.tokens.size, place.words, place.pixels, q.device)

    def _blocks(
        self, size: tuple[int, int], words: slice | None, pixels: slice | None, device: torch.device
    ) -> list[KeyBlock]:
        blocks = []
        for now, keys in enumerate((words, pixels)):
            if keys is not None and self.on[now]:
                n_keys = keys.stop - keys.start
                layout = self.run.layout(now == 0, size, n_keys, device, self.modulated, self.frames)
                if layout.modulated:
                    blocks.append(KeyBlock(keys, layout, self.strengths[now]))
        return blocks

    def _left_alone(self, why: str) -> list[KeyBlock]:
        self.run.warn(why)
        return []


def _repeated(positions: Sequence[int], n_keys: int, tokens: int) -> list[int]:
    """Positions among so many tokens, wherever ComfyUI repeated them to share a batch with a longer conditioning."""
    return [position + start for start in range(0, n_keys - tokens + 1, tokens or n_keys + 1) for position in positions]
