"""JSON in text that a person, a node or a language model wrote: bare, in a fence, in prose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
MOST_FALSE_STARTS = 1000
"""Brackets that begin no value until a text is given up: each costs a look at all that stands before it."""


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, in order; `{` and `[` that begin none, as in prose, are passed over.

    Nothing is read from inside a value that breaks off where the text ends, nor from one too deep to be read.
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
