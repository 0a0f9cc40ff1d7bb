"""The layouts of one sampling run, each made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from ...core.regions import RegionSet
from .layout import Layout, Positions, cross_layout, self_layout
from .settings import ModulationSettings


class Batch(NamedTuple):
    """The regions of each batch element of a call of the model; see `cross_layout`."""

    region_sets: Sequence[RegionSet | None]
    token_positions: Sequence[Positions]
    text: Sequence[Sequence[int]] | None = None


class LayoutCache:
    """Lays regions out for each kind and size of attention that a model has, once per sampling run."""

    def __init__(self, settings: ModulationSettings) -> None:
        self.settings = settings
        self._layouts: dict[tuple, Layout] = {}

    def get(
        self,
        cross: bool,
        size: tuple[int, int],
        n_keys: int,
        device: torch.device,
        batch: Callable[[], Batch],
        key: Hashable = None,
        frames: int = 1,
    ) -> Layout:
        """The layout of image tokens on a (h, w) grid, in each frame, against text tokens (cross) or each other.

        batch: makes the batch's regions where the layout is new. key: differs between batches of the run.
        """
        known = cross, size, n_keys, device, frames, key
        if known not in self._layouts:
            sets, positions, text = batch()
            if cross:
                layout = cross_layout(sets, positions, size, n_keys, self.settings, text)
            else:
                layout = self_layout(sets, size, self.settings)
            self._layouts[known] = layout.repeat(frames, keys=not cross).to(device)
        return self._layouts[known]
