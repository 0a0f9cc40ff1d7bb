"""Regions as an attention layer sees them: which query may see which key, and how strongly that is enforced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.errors import RealignError
from ...core.regions import RegionSet
from .settings import ModulationSettings

MAX_BITS = 31
"""Of an int32, without its sign."""
Positions = Sequence[Sequence[int]]
"""For each active region of a set, the positions of its phrase's tokens."""


@dataclass(frozen=True)
class Layout:
    """R, S and B of eq. 8-9 in factors: R_ij = any_r query_regions_ir · key_regions_jr and
    S·(1 − B) = query_gain_i · key_gain_j, for the B rows of a batch."""

    query_regions: Tensor
    """[B, Nq, R] bool: region r covers query i."""
    key_regions: Tensor
    """[B, Nk, R] bool: key j belongs to region r."""
    query_gain: Tensor
    """[B, Nq] float32, at least 0; 0 leaves the query alone."""
    key_gain: Tensor
    """[B, Nk] float32, at least 0; or [B, 1] when all keys share one."""
    gain_limit: float = math.inf
    """The largest product of both gains and the strength."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, Nq, Nk)."""
        return (*self.query_regions.shape[:2], self.key_regions.shape[1])

    @cached_property
    def active(self) -> list[int]:
        """The batch rows that are modulated at all."""
        gains = self.query_gain.amax(1) * self.key_gain.amax(1)
        return gains.nonzero().flatten().tolist()

    @cached_property
    def _of_rows(self) -> dict[tuple[int, ...], Layout]:
        return {}

    def of_rows(self, rows: Sequence[int]) -> Layout:
        """The layout of some batch rows; made once."""
        if len(rows) == len(self.query_gain):
            return self
        key = tuple(rows)
        if key not in self._of_rows:
            self._of_rows[key] = self.part(span(rows))
        return self._of_rows[key]

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """R once more, its keys sorted into groups that belong to the very same regions.

        Returns `sees` [B, Nq, P] and `member` [B, Nk, P], bool, with R = sees @ memberᵀ an exact 0 or 1 also where
        regions overlap, because a key is in one group at most.
        """
        keys = self.key_regions.flatten(0, 1)  # [B·Nk, R]
        if self.bits is None:
            kinds, kind = keys.unique(dim=0, return_inverse=True)  # [P, R], [B·Nk]
        else:  # numbers are sorted sooner than rows
            values, kind = self.bits[1].flatten().unique(return_inverse=True)
            kinds = (values[:, None] >> torch.arange(keys.shape[1], device=keys.device)) % 2 > 0
        member = torch.arange(len(kinds), device=kind.device) == kind[:, None]
        sees = (self.query_regions.float() @ kinds.float().T) > 0
        some = kinds.any(1)  # keys of no region need no group
        return sees[..., some], member.view(*self.key_regions.shape[:2], -1)[..., some]

    @cached_property
    def bits(self) -> tuple[Tensor, Tensor] | None:
        """R once more, a bit a region: R_ij = (queries_i & keys_j) != 0, int32 [B, Nq] and [B, Nk].

        None with more regions than an int32 has bits.
        """
        regions = self.key_regions.shape[-1]
        if regions > MAX_BITS:
            return None
        values = 2 ** torch.arange(regions, dtype=torch.int32, device=self.key_regions.device)
        queries, keys = (x.to(torch.int32) * values for x in (self.query_regions, self.key_regions))
        return queries.sum(-1, dtype=torch.int32), keys.sum(-1, dtype=torch.int32)

    def gain(self, strength: float | Tensor) -> Tensor:
        """a = S·λ_t·(1 − B): [B, Nq, Nk], or [B, Nq, 1] when all keys share one gain."""
        return (strength * self.query_gain[:, :, None] * self.key_gain[:, None]).clamp(max=self.gain_limit)

    def related(self) -> Tensor:
        """R: [B, Nq, Nk] bool."""
        return (self.query_regions.float() @ self.key_regions.float().mT) > 0

    def part(self, rows: list[int] | slice, queries: slice = slice(None)) -> Layout:
        """The layout of some batch rows and some queries."""
        return Layout(
            self.query_regions[rows, queries],
            self.key_regions[rows],
            self.query_gain[rows, queries],
            self.key_gain[rows],
            self.gain_limit,
        )

    def repeated(self, times: int, *, keys: bool) -> Layout:
        """The layout of so many frames that share one map: each query, and on demand each key, that often."""
        key_regions = self.key_regions.repeat(1, times, 1) if keys else self.key_regions
        queries = self.query_regions.repeat(1, times, 1), self.query_gain.repeat(1, times)
        return Layout(queries[0], key_regions, queries[1], self.key_gain, self.gain_limit)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device, with what is derived from it: there that would wait for the queue."""
        parts = (self.query_regions, self.key_regions, self.query_gain, self.key_gain)
        moved = Layout(*(part.to(device) for part in parts), self.gain_limit)
        for name in ("bits", "groups") if self.key_gain.shape[1] == 1 else ("bits",):
            pair = getattr(self, name)
            vars(moved)[name] = pair and tuple(x.to(device) for x in pair)
        vars(moved)["active"] = self.active
        if 0 < len(self.active) < len(self.query_gain):
            moved._of_rows[tuple(self.active)] = self.of_rows(self.active).to(device)
        return moved


def span(rows: Sequence[int]) -> slice | list[int]:
    """Rows as a slice where they are neighbours: a slice copies nothing and needs no index on the device."""
    neighbours = rows[-1] - rows[0] == len(rows) - 1
    return slice(rows[0], rows[-1] + 1) if neighbours else list(rows)


class Block(NamedTuple):
    """Neighbouring keys that are modulated together: eq. 9 takes its extrema over these keys alone.

    Cross- and self-attention have one block of all keys; joint attention has the words as one, the pixels as another.
    """

    keys: slice
    layout: Layout
    """[B, Nq, number of these keys]."""
    strength: float | Tensor
    """λ_t, at least 0; a tensor without dimensions spares a compiled model a compilation a step."""


def cross_layout(
    region_sets: Sequence[RegionSet | None],
    token_positions: Sequence[Positions],
    size: tuple[int, int],
    n_tokens: int,
    settings: ModulationSettings,
    text: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """Pixels of a (h, w) map against tokens; one region set a batch row, None for a row that is left alone.

    token_positions: for each batch row, the token positions of each of its set's active regions. text: for each batch
    row, the tokens that were made of its text; others, as those of images, are left alone. None: all were.
    """
    maps = _region_maps(region_sets, size, settings)  # [B, R, h·w]
    keys = torch.zeros(*maps.shape[:2], n_tokens, dtype=torch.bool)  # [B, R, Nk]
    scores = torch.zeros(maps.shape[:2])  # [B, R]
    on = torch.zeros(len(maps), 1)  # [B, 1]
    for row, regions in enumerate(_active(region_sets)):
        for r, (region, positions) in enumerate(zip(regions, token_positions[row], strict=True)):
            _check_positions(region.phrase, positions, n_tokens)
            keys[row, r, list(positions)] = True
            scores[row, r] = region.likelihood
        on[row] = bool(regions)
    area = maps.float().mean(-1, keepdim=True)  # [B, R, 1]
    B = (maps * area).amax(1)  # of overlapping regions, the largest counts
    S = torch.where(keys.any(1), (keys * scores[:, :, None]).amax(1), settings.outside)
    for row, own in enumerate(text or ()):
        S[row, [token for token in range(n_tokens) if token not in own]] = 0
    return Layout(maps.mT, keys.mT, 1 - B, on * S, _limit(settings))


def self_layout(region_sets: Sequence[RegionSet | None], size: tuple[int, int], settings: ModulationSettings) -> Layout:
    """Pixels of a (h, w) map against each other; the pixels of no region are one more segment, with S = 1."""
    maps = _region_maps(region_sets, size, settings)
    background = ~maps.any(1, keepdim=True)
    segments = torch.cat([maps, background], 1)  # [B, R + 1, h·w]
    scores = torch.ones(segments.shape[:2])
    on = torch.zeros(len(maps), 1)
    for row, regions in enumerate(_active(region_sets)):
        scores[row, : len(regions)] = torch.tensor([region.likelihood for region in regions])
        on[row] = bool(regions)
    area = segments.float().mean(-1, keepdim=True)
    B = (segments * area).amax(1)
    S = (segments * scores[:, :, None]).amax(1)
    return Layout(segments.mT, segments.mT, S * (1 - B), on, _limit(settings))


def mask_to_map(mask: Tensor, size: tuple[int, int], coverage: float = 0.5) -> Tensor:
    """A mask [H, W] in [0, 1] as the cells [h, w] (bool) of which it covers at least `coverage`.

    A mask with any pixel keeps at least the cell it covers most, so that no small thing is lost on a coarse map.
    """
    covered = cover(mask, size)
    enough = covered.max().clamp(max=coverage)
    return (covered >= enough * (1 - 1e-4)) & (covered > 0)  # 1e-4: for rounding, so that equal cells fare equally


def cover(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [H, W] in [0, 1] → the share of each cell that it covers, [h, w] in [0, 1]."""
    rows, columns = (_overlap(n, m).to(mask.device) for n, m in zip(size, mask.shape, strict=True))
    return rows @ mask.float() @ columns.T


def _overlap(cells: int, pixels: int) -> Tensor:
    """[cells, pixels]: the share of each cell that each pixel takes, both dividing the same unit length."""
    cell = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64) / pixels
    shared = torch.minimum(cell + 1 / cells, pixel + 1 / pixels) - torch.maximum(cell, pixel)
    return (shared.clamp(min=0) * cells).float()


def map_size(n_queries: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) of an attention map with `n_queries` pixels in a UNet that halves a latent (H, W) again and again."""
    height, width = latent_size
    for level in range(max(latent_size).bit_length() + 1):
        size = halved(latent_size, level)
        if math.prod(size) == n_queries:
            return size
    raise RealignError(
        f"An attention layer has {n_queries} queries, which is no halving of the latent {height}x{width}; "
        "give the size of the latent that the model is sampling."
    )


def halved(size: Sequence[int], times: int) -> tuple[int, int]:
    """The (h, w) of what is left of (H, W) after so many halvings."""
    return tuple(-(-side // 2**times) for side in size)


def _active(region_sets: Sequence[RegionSet | None]) -> list[tuple]:
    return [() if regions is None else regions.active for regions in region_sets]


def _region_maps(
    region_sets: Sequence[RegionSet | None], size: tuple[int, int], settings: ModulationSettings
) -> Tensor:
    """[B, R, h·w] bool; rows with fewer regions are filled up with empty ones."""
    active = _active(region_sets)
    maps = torch.zeros(len(active), max([1, *map(len, active)]), size[0] * size[1], dtype=torch.bool)
    for row, regions in enumerate(active):
        for r, region in enumerate(regions):
            maps[row, r] = mask_to_map(region.mask, size, settings.coverage).flatten()
    return maps


def _check_positions(phrase: str, positions: Sequence[int], n_tokens: int) -> None:
    if any(not 0 <= position < n_tokens for position in positions):
        raise RealignError(
            f"The words '{phrase}' are tokens {list(positions)}, but the text encoding has only {n_tokens}; "
            "encode the prompt padded to the tokenizer's full length."
        )


def _limit(settings: ModulationSettings) -> float:
    return math.inf if settings.gain_limit is None else settings.gain_limit
