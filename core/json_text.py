"""JSON in text by a person, a node or a language model: bare, in a fence, or in prose."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
MOST_FALSE_STARTS = 1000
"""After so many brackets that begin no value the text is given up: each costs time in proportion to the text before."""


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, in order. A `{` or `[` that begins none, as in prose, is skipped.

    Nothing is read from inside a value that is cut off at the end of the text, or that is nested too deeply.
    """
    stop = false_starts = 0
    for start in re.finditer(r"[{\[]", text):
        if start.start() < stop:
            continue
        try:
            value, stop = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
                return
            false_starts += 1
            if false_starts == MOST_FALSE_STARTS:
                return
            continue
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            return
        yield value


def finite_number(value: Any) -> float | None:
    """A value as a finite number, also one that is written as a string; else None, as for True and False."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
