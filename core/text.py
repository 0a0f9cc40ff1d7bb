"""Text from outside (a server, a workflow, a file's name), made fit for messages, terminals and files."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_PRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MOST_MESSAGE = 4000
"""Characters of a message; what is longer loses its middle."""


def encodable(text: str) -> str:
    """The text, with U+FFFD in place of what UTF-8 cannot hold: a surrogate without its partner.

    Python makes such strings of JSON like `"\\ud83d"` and of file names that are not UTF-8; printing one raises
    UnicodeEncodeError, which ends ComfyUI's queue. Each character stays where it is.
    """
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """The text, `encodable` and with U+FFFD also in place of control characters other than tab and line ends."""
    return _NOT_PRINTABLE.sub("\ufffd", text)


def message(text: str) -> str:
    """The text as a message: `printable`, and at most MOST_MESSAGE characters, of which its beginning and its end."""
    half = MOST_MESSAGE // 2
    return printable(text if len(text) <= MOST_MESSAGE else f"{text[:half]} … {text[-half:]}")


def short(value: Any, most: int = 60) -> str:
    """A value for a message: one line of at most `most` characters, however long or deep it is."""
    text = " ".join(printable(value[: 4 * most] if isinstance(value, str) else reprlib.repr(value)).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: Any) -> str:
    """`short`, a string in quotation marks, so that an empty one is seen."""
    return f"'{short(value)}'" if isinstance(value, str) else short(value)
