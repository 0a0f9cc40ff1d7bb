"""Names of tensors: from the ones that a model's authors gave to those of its published transformers folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


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
    """How many layers a list of them has, whose names begin with `start` and a number."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})
