"""Regions as R, S and B of eq. 7-9 for one attention layer; S·(1 − B) and R are all that the modulation needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import RealignError
from ...core.regions import Region, RegionSet
from .cells import mask_to_cells
from .relation import Elements, Relation
from .settings import ModulationSettings

Positions = Sequence[Sequence[int]]
"""For each active region of a set, the positions of its phrase's tokens."""


@dataclass(frozen=True)
class Layout:
    """R, S and B of eq. 8-9 for a batch, with Nq queries, which are image tokens, and Nk keys.

    In shapes, B is the batch size; elsewhere it is the area of eq. 9.
    """

    R: Relation
    """[B, Nq, Nk]: query and key share a region."""
    S: Tensor
    """float32, at least 0; 0 switches the modulation off. Where keys are text tokens [B, 1, Nk]: the likelihood of the
    phrase that the key is part of. Where keys are image tokens [B, Nq, 1]: that of the query's region."""
    B: Tensor
    """[B, Nq, 1] float32 in [0, 1]: the fraction of the image that the query's region covers."""
    gain_limit: float = math.inf
    """The largest S·λ_t·(1 − B)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, Nq, Nk)."""
        batch, queries = self.R.queries.shape[:2]
        return batch, queries, self.R.keys.shape[1]

    @property
    def per_query(self) -> bool:
        """Whether S·(1 − B) is the same for all keys of a query."""
        return self.S.shape[2] == 1

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """S·(1 − B) as a product of one factor per query [B, Nq] and one per key [B, Nk].

        With `per_query` the second factor is 1, [B, 1].
        """
        weight = 1 - self.B
        if self.per_query:
            return (self.S * weight)[..., 0], torch.ones_like(self.S[:, 0])
        return weight[..., 0], self.S[:, 0]

    def a(self, strength: float | Tensor) -> Tensor:
        """a = S·λ_t·(1 − B), at most `gain_limit`: [B, Nq, Nk], or [B, Nq, 1] where it is `per_query`."""
        per_query, per_key = self.weights
        return (strength * per_query[:, :, None] * per_key[:, None]).clamp(max=self.gain_limit)

    @cached_property
    def modulated(self) -> list[int]:
        """The batch elements that are modulated at all."""
        per_query, per_key = self.weights
        return (per_query.amax(1) * per_key.amax(1)).nonzero().flatten().tolist()

    def part(self, elements: Elements, queries: slice = slice(None)) -> Layout:
        """The layout of some batch elements and some queries."""
        S = self.S[elements] if self.S.shape[1] == 1 else self.S[elements, queries]
        return Layout(self.R.part(elements, queries), S, self.B[elements, queries], self.gain_limit)

    @cached_property
    def _selected(self) -> dict[tuple[int, ...], Layout]:
        return {}

    def select(self, elements: Sequence[int]) -> Layout:
        """The layout of some batch elements; made once."""
        if len(elements) == len(self.B):
            return self
        key = tuple(elements)
        if key not in self._selected:
            self._selected[key] = self.part(as_slice(elements))
        return self._selected[key]

    def repeat(self, frames: int, *, keys: bool) -> Layout:
        """The layout of a video whose frames share this one: the queries, and with `keys` the keys, once per frame."""
        queries, B = (x.repeat(1, frames, 1) for x in (self.R.queries, self.B))
        if keys:
            return Layout(Relation(queries, queries), self.S.repeat(1, frames, 1), B, self.gain_limit)
        return Layout(Relation(queries, self.R.keys), self.S, B, self.gain_limit)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device. What is derived from it is computed here and copied: computed on a GPU, it
        would wait for the work queued there."""
        R = self.R.to(device, factors=self.per_query)
        moved = Layout(R, self.S.to(device), self.B.to(device), self.gain_limit)
        vars(moved)["weights"] = tuple(x.to(device) for x in self.weights)
        vars(moved)["modulated"] = self.modulated
        if 0 < len(self.modulated) < len(self.B):
            moved._selected[tuple(self.modulated)] = self.select(self.modulated).to(device)
        return moved


def as_slice(elements: Sequence[int]) -> Elements:
    """Batch elements as a slice where they are neighbours."""
    neighbours = elements[-1] - elements[0] == len(elements) - 1
    return slice(elements[0], elements[-1] + 1) if neighbours else list(elements)


class KeyBlock(NamedTuple):
    """Neighbouring keys that are modulated together: eq. 9 takes its extrema over these keys alone.

    Cross- and self-attention have one block of all keys; joint attention has one of text and one of image tokens.
    """

    keys: slice
    layout: Layout
    """[B, Nq, number of these keys]."""
    strength: float | Tensor
    """λ_t, at least 0; as a tensor without dimensions it spares a compiled model a recompilation at each step."""


def cross_layout(
    region_sets: Sequence[RegionSet | None],
    token_positions: Sequence[Positions],
    size: tuple[int, int],
    n_tokens: int,
    settings: ModulationSettings,
    text: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """Image tokens on a (h, w) grid as queries, text tokens as keys.

    region_sets: one per batch element; None leaves it alone. token_positions: for each batch element, the token
    positions of each of its active regions. text: for each batch element, the positions of the tokens that come from
    its text; others, such as those of images, are left alone. None: all come from the text.

    Raises:
        RealignError: a position is beyond the tokens.
    """
    cells, likelihoods, is_modulated = _regions_on_grid(region_sets, size, settings)
    tokens = torch.zeros(*cells.shape[:2], n_tokens, dtype=torch.bool)  # [B, regions, Nk]
    for element, regions in enumerate(region_sets):
        for r, (region, positions) in enumerate(zip(_active(regions), token_positions[element], strict=True)):
            if any(not 0 <= position < n_tokens for position in positions):
                raise RealignError(
                    f"The words '{region.phrase}' are tokens {list(positions)}, but the text encoding has only "
                    f"{n_tokens}; encode the prompt padded to the tokenizer's full length."
                )
            tokens[element, r, list(positions)] = True
    S = torch.where(tokens.any(1), (tokens * likelihoods).amax(1), settings.outside) * is_modulated
    for element, of_text in enumerate(text or ()):
        S[element, [token for token in range(n_tokens) if token not in of_text]] = 0
    return Layout(Relation(cells.mT, tokens.mT), S[:, None], _largest_area(cells), _limit(settings))


def self_layout(region_sets: Sequence[RegionSet | None], size: tuple[int, int], settings: ModulationSettings) -> Layout:
    """Image tokens on a (h, w) grid as queries and keys; those of no region are one more segment, with S = 1."""
    cells, likelihoods, is_modulated = _regions_on_grid(region_sets, size, settings)
    segments = torch.cat([cells, ~cells.any(1, keepdim=True)], 1)  # [B, regions + 1, h·w]
    S = (segments * F.pad(likelihoods, (0, 0, 0, 1), value=1.0)).amax(1) * is_modulated
    return Layout(Relation(segments.mT, segments.mT), S[..., None], _largest_area(segments), _limit(settings))


def _regions_on_grid(
    region_sets: Sequence[RegionSet | None], size: tuple[int, int], settings: ModulationSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 7: the cells of each region, [B, regions, h·w] bool; its likelihood, [B, regions, 1]; and whether a batch
    element has regions, [B, 1]. Elements with fewer regions than others are filled up with empty ones."""
    active = [_active(regions) for regions in region_sets]
    most = max([1, *map(len, active)])
    cells = torch.zeros(len(active), most, size[0] * size[1], dtype=torch.bool)
    likelihoods = torch.zeros(len(active), most, 1)
    for element, regions in enumerate(active):
        for r, region in enumerate(regions):
            assert region.mask is not None  # the region is active
            cells[element, r] = mask_to_cells(region.mask, size, settings.coverage).flatten()
            likelihoods[element, r] = region.likelihood
    return cells, likelihoods, torch.tensor([[float(bool(regions))] for regions in active])


def _active(regions: RegionSet | None) -> tuple[Region, ...]:
    return () if regions is None else regions.active


def _largest_area(cells: Tensor) -> Tensor:
    """B: of the regions [B, regions, h·w] that cover a query, the largest one's fraction of the image, [B, h·w, 1]."""
    return (cells * cells.float().mean(-1, keepdim=True)).amax(1)[..., None]


def _limit(settings: ModulationSettings) -> float:
    return math.inf if settings.gain_limit is None else settings.gain_limit
