"""What travels inside a ComfyUI CONDITIONING to the attention layers: ComfyUI itself then says whose batch elements
are whose.

Neither `cond_or_uncond` nor `uuids` tells that (DualCFG and area conditionings reorder and copy them); what stands in a
conditioning's `model_conds` is cut to its area, batched in its order and handed to the model with its batch elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.conds
from torch import Tensor

from ...core.regions import RegionSet
from ..equation.cells import covered_fractions
from .encoded_text import resolve_positions

KEY = "realign"
Area = tuple[int, int, int, int]
"""(height, width, y, x) in latent cells."""


class BoundRegions(NamedTuple):
    """The active regions of one image and, for each, the positions of its phrase's tokens in the conditioning.

    In a `Payload` no position is negative.
    """

    regions: RegionSet
    positions: tuple[tuple[int, ...], ...]

    def resolve(self, n_tokens: int) -> BoundRegions:
        """With no negative position, in a conditioning of so many tokens."""
        return self._replace(positions=tuple(resolve_positions(p, n_tokens) for p in self.positions))

    def crop(self, area: Area, latent_size: tuple[int, int]) -> BoundRegions:
        """What of the regions lies in an area of a latent (H, W)."""
        height, width, y, x = area
        kept = []
        for region, positions in zip(self.regions.active, self.positions, strict=True):
            assert region.mask is not None  # the region is active
            mask = covered_fractions(region.mask, latent_size)[y : y + height, x : x + width]
            if mask.any():
                kept.append((replace(region, mask=mask), positions))
        return BoundRegions(self.regions.with_regions([r for r, _ in kept]), tuple(p for _, p in kept))


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """What one conditioning tells the attention layers. ComfyUI fills in `images` and `area` for each call."""

    tokens: int = 0
    """How many tokens the conditioning has."""
    rows: int = 1
    """Its batch elements in the call."""
    area: Area | None = None


@dataclass(frozen=True, eq=False)
class Payload(Entry):
    """The regions of a conditioning."""

    images: tuple[BoundRegions, ...] = ()
    """One per image of the batch, or one for all; empty: nothing is modulated."""
    text: str = ""
    """The prompt that was encoded."""
    text_tokens: range | None = None
    """The tokens that were made of the text; None: all."""
    isolated: bool = False
    """Whether its phrases were encoded alone, so that it is no longer the encoding of `text`."""

    @property
    def active(self) -> bool:
        return any(bound.positions for bound in self.images)

    def per_element(self, latent_size: tuple[int, int]) -> list[BoundRegions | None]:
        """The regions of each of the `rows` batch elements, None for an image without."""
        if not self.images:
            return [None] * self.rows
        images = self.images if self.area is None else tuple(b.crop(self.area, latent_size) for b in self.images)
        return [images[row % len(images)] for row in range(self.rows)]


class Chunks(tuple):
    """The entries of the conditionings that share a call of the model, in their order."""


class CONDEntry(comfy.conds.CONDRegular):
    """An `Entry` as ComfyUI carries it in `model_conds`."""

    cond: Entry

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> CONDEntry:
        """Called for each step: `area` is ((t,) h, w, (t0,) y, x) of the latent, None for all of it."""
        if area is not None:
            dims = len(area) // 2
            area = (*area[dims - 2 : dims], *area[-2:])
        return self._copy_with(replace(self.cond, rows=batch_size, area=area))

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return True

    def concat(self, others: Sequence[CONDEntry]) -> Chunks:
        return Chunks([self.cond, *(other.cond for other in others)])

    def size(self) -> list[int]:
        return [1]


def get_entry(options: dict, key: str = KEY) -> Entry | None:
    """The entry that a conditioning's options carry; None where they carry none."""
    carried = options.get("model_conds", {}).get(key)
    return None if carried is None else carried.cond


def put_entry(options: dict, key: str, entry: Entry) -> dict:
    """A conditioning's options that carry an entry."""
    return {**options, "model_conds": {**options.get("model_conds", {}), key: CONDEntry(entry)}}


def complete(cond: dict, key: str, default: Entry, keep_zeroed: bool = False) -> dict:
    """A sampler's conditioning whose entry, or `default`, knows its number of tokens; without one it would share no
    batch with others.

    keep_zeroed: whether an encoding of zeros, in which no text is left, keeps its entry.
    """
    context = getattr(cond.get("model_conds", {}).get("c_crossattn"), "cond", None)
    entry, tokens = get_entry(cond, key), 0
    if isinstance(context, Tensor):
        tokens = context.shape[1]
        entry = entry if keep_zeroed or context.any() else None
    return put_entry(cond, key, replace(entry or default, tokens=tokens))
