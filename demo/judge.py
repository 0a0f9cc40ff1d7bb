"""The judge: which coloured shapes does an image show? It has no trained parts.

Saturated pixels get the nearest palette colour; connected components of one colour are objects; an object has the shape
whose template overlaps most with it. A shape that is half one colour, half another is no shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .world import COLORS, SHAPES, draw_shape

MIN_SATURATION = 70
MIN_AREA = 28
MIN_CORE = 6
"""Pixels of a component that must survive a 3 x 3 erosion: anti-aliasing rims do not."""
MIN_OVERLAP = 0.62
MAX_ASPECT = 1.7
_GRID = 16


class Verdict(NamedTuple):
    """How well an image agrees with its prompt's (color, shape) pairs; every field in [0, 1]."""

    bind: float
    """Fraction of the pairs that are in the image."""
    both_right: float
    """1 if all of them are."""
    exact: float
    """1 if all of them are, and nothing else."""


@cache
def _templates() -> np.ndarray:
    """[n_shapes, 16, 16] in [0, 1]."""
    out = []
    for shape in SHAPES:
        canvas = Image.new("L", (120, 120), 0)
        draw_shape(ImageDraw.Draw(canvas), shape, 60, 60, 59.5)
        out.append(np.asarray(canvas.resize((_GRID, _GRID), Image.Resampling.BOX), np.float32) / 255)
    return np.stack(out)


def _shape_of(component: np.ndarray) -> str:
    """The shape of a boolean [H, W] component, or `?`."""
    ys, xs = np.where(component)
    crop = component[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    height, width = crop.shape
    if max(height, width) > MAX_ASPECT * min(height, width):
        return "?"
    small = Image.fromarray(crop.astype(np.uint8) * 255).resize((_GRID, _GRID), Image.Resampling.BOX)
    grid = np.asarray(small, np.float32) / 255
    overlap = np.minimum(grid, _templates()).sum((1, 2)) / np.maximum(grid, _templates()).sum((1, 2))
    return SHAPES[overlap.argmax()] if overlap.max() >= MIN_OVERLAP else "?"


def detect(image: np.ndarray) -> list[tuple[str, str]]:
    """The (color, shape) pairs in an image [64, 64, 3] uint8; shape `?` for any other object."""
    pixels = image.astype(np.float32)
    saturated = pixels.max(-1) - pixels.min(-1) > MIN_SATURATION
    palette = np.array(list(COLORS.values()), np.float32)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    found = []
    for index, color in enumerate(COLORS):
        components: Any = ndimage.label(saturated & (nearest == index), structure=np.ones((3, 3)))
        labels, count = components
        for label in range(1, count + 1):
            component = labels == label
            if component.sum() >= MIN_AREA and ndimage.binary_erosion(component).sum() >= MIN_CORE:
                found.append((color, _shape_of(component)))
    return found


def judge(image: np.ndarray, pairs: list[tuple[str, str]]) -> Verdict:
    """Compare an image [64, 64, 3] uint8 with the pairs of its prompt."""
    found = Counter(detect(image))
    wanted = Counter(pairs)
    hits = sum((found & wanted).values())
    return Verdict(hits / max(1, len(pairs)), float(hits == len(pairs)), float(found == wanted))


def judge_all(images: Iterable[np.ndarray], wanted: Iterable[list[tuple[str, str]]]) -> dict[str, np.ndarray]:
    """`judge` for N images: each field of `Verdict` as an array [N]."""
    rows = np.array([judge(image, pairs) for image, pairs in zip(images, wanted, strict=True)])
    return dict(zip(Verdict._fields, rows.T, strict=True))
