"""Makes text from outside (a server, a workflow, a file name) fit for messages, terminals and files."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_PRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MOST_MESSAGE = 4000
"""Characters of a message; a longer one loses its middle."""


def encodable(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates, which UTF-8 cannot hold. No other character moves.

    JSON and file names may hold them; printing one raises UnicodeEncodeError, which ends ComfyUI's queue.
    """
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates and of control characters other than tab and line ends."""
    return _NOT_PRINTABLE.sub("\ufffd", text)


def message(text: str) -> str:
    """The text as a message: `printable`, and cut in the middle to about MOST_MESSAGE characters."""
    half = MOST_MESSAGE // 2
    return printable(text if len(text) <= MOST_MESSAGE else f"{text[:half]} … {text[-half:]}")


def shorten(value: Any, most: int = 60) -> str:
    """A value for a message: one line of at most `most` characters."""
    text = " ".join(printable(value[: 4 * most] if isinstance(value, str) else reprlib.repr(value)).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quote(value: Any) -> str:
    """`shorten`, with a string in quotation marks, so that an empty one is visible."""
    return f"'{shorten(value)}'" if isinstance(value, str) else shorten(value)
