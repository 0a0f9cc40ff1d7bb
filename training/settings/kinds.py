"""What a dataclass of settings says of each of its fields: the kind of its values, and the text under it.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        # Title of a section
        steps: Annotated[int, Range(1)] = 10
        "What the field is: its help on the command line and its comment in TOML."

        def __post_init__(self) -> None:
            check(self)

A field is a str, int, float, bool, tuple of str, or a `Literal` of texts; a number may be annotated with its `Range`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import sys
import textwrap
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ...core.errors import RealignError


class Range(NamedTuple):
    """The numbers that a setting may have."""

    low: float
    high: float = math.inf
    above: bool = False
    """`low` itself is not allowed."""

    def __contains__(self, value: object) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if not self.above and self.high < math.inf:
            return f"from {self.low} to {self.high}"
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        return low if self.high == math.inf else f"{low} and at most {self.high}"


AT_LEAST_0, AT_LEAST_1 = Range(0), Range(1)


class Kind(NamedTuple):
    """What a setting may be."""

    type: Any
    """str, int, float, bool or tuple."""
    choices: tuple[str, ...] = ()
    range: Range | None = None

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        noun = {
            str: "a text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "a list of texts",
        }
        return noun[self.type] + (f" {self.range}" if self.range else "")


class Documented(NamedTuple):
    """What the source of the dataclass says about a setting."""

    text: str
    section: str
    """Of the first setting of a section its title, otherwise empty."""


@cache
def kinds(settings: type) -> dict[str, Kind]:
    """The kind of each field of a dataclass, in their order."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(settings)}


def _kind(hint: Any) -> Kind:
    if get_origin(hint) is Annotated:
        return Kind(get_args(hint)[0], range=get_args(hint)[1])
    if get_origin(hint) is Literal:
        return Kind(str, choices=get_args(hint))
    return Kind(get_origin(hint) or hint)


@cache
def documentation(settings: type) -> dict[str, Documented]:
    """The text under each field and the section's comment above it, as they stand in the source of the dataclass.

    The fields of a dataclass that it extends come first, as `dataclasses.fields` has them, in their sections, also
    those that it describes anew.
    """
    out: dict[str, Documented] = {}
    for part in filter(dataclasses.is_dataclass, reversed(settings.__mro__)):
        source = textwrap.dedent(inspect.getsource(part))
        lines, body = source.splitlines(), ast.parse(source).body[0].body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign):
                above = lines[field.lineno - 2].strip()
                section = above[2:] if above[:1] == "#" else ""
                if (base := out.get(field.target.id)) is not None:  # it stays where it is
                    section = base.section
                out[field.target.id] = Documented(" ".join(text.value.value.split()), section)
    return out


def check(config: Any) -> None:
    """That each value of a dataclass is of its field's kind.

    Raises:
        RealignError: one is not; the sentence says what to give.
    """
    for name, kind in kinds(type(config)).items():
        _check(name, getattr(config, name), kind)


def _check(name: str, value: Any, kind: Kind) -> None:
    """That `value` is of its kind; the sentence says which that is."""
    texts = value if kind.type is tuple and isinstance(value, tuple) else (value,)
    for text in texts:
        if isinstance(text, str) and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise RealignError(
                f"{name} is {text!r}, which holds a line break or another control character; in TOML write Windows "
                "paths in 'single quotes'."
            )
    if kind.type is tuple:
        fits = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    elif kind.type is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    else:
        fits = type(value) is kind.type
    if fits and kind.choices:
        fits = value in kind.choices
    if fits and kind.range:
        fits = value in kind.range
    if not fits:
        given = list(value) if isinstance(value, tuple) else value
        raise RealignError(f"{name} is {given!r}; give {kind}.")
