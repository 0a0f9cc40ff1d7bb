"""The demo world: scenes of coloured shapes with captions and ground truth.

A scene is one to three shapes of different colours on a light background, 64 x 64. Its caption names them in any
order: `a red circle and a blue square`. Some pairs of objects are held out: no training scene contains them.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from PIL import Image, ImageDraw

from ..core.words import words_of

SIZE = 64
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 215, 40),
    "purple": (140, 45, 175),
    "orange": (245, 135, 30),
    "pink": (250, 140, 200),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
TAGS = (*SHAPES, *COLORS)
"""The tags of the demo tagger."""
HELD_OUT_PERCENT = 28
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """One shape: `x`, `y` its centre and `r` its half-size in pixels."""

    color: str
    shape: str
    x: float
    y: float
    r: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) as fractions of the image."""
        x, y, r = self.x, self.y, self.r
        return (x - r) / SIZE, (y - r) / SIZE, (x + r) / SIZE, (y + r) / SIZE


@dataclass(frozen=True)
class Scene:
    """An image with everything that is known about it."""

    image: np.ndarray
    """[64, 64, 3] uint8, RGB."""
    things: tuple[Thing, ...]
    masks: np.ndarray
    """[n, 64, 64] float32 in [0, 1], one per thing."""


def phrase(pair: tuple[str, str]) -> str:
    """`("orange", "ring")` -> `an orange ring`."""
    article = "an" if pair[0][0] in "aeiou" else "a"
    return f"{article} {pair[0]} {pair[1]}"


def caption(pairs: list[tuple[str, str]]) -> str:
    """`[("red", "circle"), ("blue", "square")]` -> `a red circle and a blue square`."""
    return " and ".join(phrase(pair) for pair in pairs)


def parse(text: str) -> list[tuple[str, str]]:
    """The (color, shape) pairs that a caption names, in order; case and punctuation do not matter."""
    words = words_of(text)
    return [(a, b) for a, b in pairwise(words) if a in COLORS and b in SHAPES]


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    """Fill `shape` with 255 on a mode-L canvas."""
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
    elif shape == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=255)
    elif shape == "cross":
        w = r * 0.36
        draw.rectangle([x - w, y - r, x + w, y + r], fill=255)
        draw.rectangle([x - r, y - w, x + r, y + w], fill=255)
    elif shape == "ring":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=255)
        hole = r * 0.52
        draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
    elif shape == "diamond":
        draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=255)


def is_held_out(pairs: list[tuple[str, str]]) -> bool:
    """Whether any two of these objects are a pair that no training scene contains (28 % of all pairs, by hash)."""
    return any(
        zlib.crc32("|".join(sorted(map(" ".join, two))).encode()) % 100 < HELD_OUT_PERCENT
        for two in combinations(pairs, 2)
    )


def render(things: tuple[Thing, ...], rng: random.Random) -> Scene:
    """Paint the things, anti-aliased, on a light background that is sometimes textured."""
    image = np.full((SIZE, SIZE, 3), rng.randint(205, 245), np.float32)
    image += np.array([rng.uniform(-6, 6) for _ in range(3)], np.float32)
    if rng.random() < 0.4:
        texture = np.array([[rng.gauss(0, 5) for _ in range(8)] for _ in range(8)], np.float32)
        image += np.asarray(Image.fromarray(texture).resize((SIZE, SIZE), Image.Resampling.BILINEAR))[..., None]
    masks = []
    for thing in things:
        canvas = Image.new("L", (SIZE * _SUPERSAMPLING, SIZE * _SUPERSAMPLING), 0)
        draw_shape(ImageDraw.Draw(canvas), thing.shape, *(v * _SUPERSAMPLING for v in (thing.x, thing.y, thing.r)))
        mask = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
        color = np.array(COLORS[thing.color], np.float32) + np.array([rng.uniform(-8, 8) for _ in range(3)], np.float32)
        image = image * (1 - mask[..., None]) + color * mask[..., None]
        masks.append(mask)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), things, np.stack(masks))


def random_things(rng: random.Random, count: int) -> tuple[Thing, ...]:
    """`count` things of different colours that do not touch."""
    while True:
        colors = rng.sample(list(COLORS), count)
        things: list[Thing] = []
        for color in colors:
            for _ in range(60):
                r = rng.uniform(7, 13) if count < 3 else rng.uniform(6.5, 10)
                x, y = (rng.uniform(r + 1.5, SIZE - r - 1.5) for _ in range(2))
                if all(max(abs(x - o.x), abs(y - o.y)) > r + o.r + 2 for o in things):
                    things.append(Thing(color, rng.choice(SHAPES), x, y, r))
                    break
        if len(things) == count:
            return tuple(things)


def scene_of(pairs: list[tuple[str, str]], rng: random.Random) -> Scene:
    """A scene of these one to three things, at random places: a real image of a prompt."""
    places = random_things(rng, len(pairs))
    things = [Thing(*pair, place.x, place.y, place.r) for pair, place in zip(pairs, places, strict=True)]
    return render(tuple(things), rng)


def random_scene(rng: random.Random, count: int | None = None, *, held_out: bool | None = False) -> Scene:
    """A scene of `count` things (by default one, two or three: 30, 60 and 10 %).

    `held_out` False: never a held-out pair; True: always one, so never a single thing; None: either.
    """
    if count is None:
        count = rng.choices((1, 2, 3), (0 if held_out else 30, 60, 10))[0]  # one thing alone cannot be a held-out pair
    while True:
        things = random_things(rng, count)
        if held_out is None or is_held_out([t.pair for t in things]) == held_out:
            return render(things, rng)
