"""Names of tensors: from the ones that a model's authors gave to those of its published transformers folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

MAX_LAYERS = 256  # layers in one list of a single file; the supported models have up to 48
MAX_WINDOW = 64  # side of a Swin's window; published ones have 7 or 12
_FUSED = re.compile(r"(.+\.)(?:qkv\.|in_proj_)(weight|bias)")


def rename(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Apply the first row of the table that matches the name's beginning, up to a dot or the end.

    A name that no row matches stays as it is.
    table: (regular expression, in which a dot stands for itself; replacement, with `\\1` for groups).
    """
    for old, new in table:
        place = re.match(old.replace(".", r"\.") + r"(?=\.|$)", name)
        if place:
            return place.expand(new) + name[place.end() :]
    return name


def split_qkv(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    """Split `x.qkv.weight` or `x.in_proj_bias` [3 D, …] into three [D, …] named by `parts`, e.g. `x.q_proj.weight`."""
    out = {}
    for name, tensor in tensors.items():
        if fused := _FUSED.fullmatch(name):
            out |= {f"{fused[1]}{part}.{fused[2]}": x for part, x in zip(parts, tensor.chunk(3), strict=True)}
        else:
            out[name] = tensor
    return out


def count(names: Iterable[str], start: str) -> int:
    """The number of layers whose tensors' names begin with `start` and the layer's number; see `check_most`."""
    layers = {name[len(start) :].split(".")[0] for name in names if name.startswith(start)}
    return check_most(len(layers), MAX_LAYERS, f"layers '{start}…'")


def window_of(rows: int) -> int:
    """The side of a Swin's window, from the (2 side - 1)² rows of its relative position biases; see `check_most`."""
    return check_most((math.isqrt(rows) + 1) // 2, MAX_WINDOW, "tokens per side of a window")


def check_most(number: int, most: int, what: str) -> int:
    """The number, or a ValueError above `most`: a broken file's model could take hours to build."""
    if number > most:
        raise ValueError(f"it has {number:,} {what}, more than {most}")
    return number
