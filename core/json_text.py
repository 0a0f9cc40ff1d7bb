"""JSON in text that a person, a node or a language model wrote: bare, in a fence, in prose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_START = re.compile(r"""\{(?=\s*["}])|\[(?=\s*[\[\]{"\d\-tfnNI])""")
"""A bracket that may begin a value: to try the others costs time where a text has many."""


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, in order; `{` and `[` that begin none, as in prose, are passed over.

    Nothing is read from inside a value that breaks off where the text ends, nor from one too deep to be read.
    """
    stop = 0
    for start in _START.finditer(text):
        if start.start() < stop:
            continue
        try:
            value, stop = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
                return
            continue
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            return
        yield value
