"""Names of tensors: from the ones that a model's authors gave to those of its published transformers folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

MAX_LAYERS = 256
"""In one list of layers of a single file; the models that are read so have up to 48."""
MAX_WINDOW = 64
"""Of a Swin; published ones have 7 or 12."""


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """The name after the first row that matches its beginning, up to a dot or its end; as it is where none does.

    table: regular expressions, in which a dot stands for itself, and what takes their place.
    """
    for old, new in table:
        place = re.match(old.replace(".", r"\.") + r"(?=\.|$)", name)
        if place:
            return place.expand(new) + name[place.end() :]
    return name


def count(names: Iterable[str], start: str) -> int:
    """How many layers a list of them has, whose names begin with `start` and a number.

    Raises:
        ValueError: more than any model has.
    """
    return check_layers(len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)}), start)


def check_layers(number: int, start: str) -> int:
    """The number of layers whose names begin with `start`, which would take hours to build if it were of no model.

    Raises:
        ValueError: it is above `MAX_LAYERS`.
    """
    if number > MAX_LAYERS:
        raise ValueError(f"it has {number:,} layers '{start}…', more than {MAX_LAYERS}")
    return number


def window_of(rows: int) -> int:
    """The side of a Swin's window, of whose table of biases with (2 window - 1)² rows the number is given.

    Raises:
        ValueError: it is above `MAX_WINDOW`.
    """
    return check_window((math.isqrt(rows) + 1) // 2)


def check_window(side: int) -> int:
    """The side of a Swin's window. The index of its table has side⁴ entries.

    Raises:
        ValueError: it is above `MAX_WINDOW`.
    """
    if side > MAX_WINDOW:
        raise ValueError(f"its windows are {side} wide, more than {MAX_WINDOW}")
    return side
