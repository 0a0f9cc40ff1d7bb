"""Text from outside (a server, a workflow, a file's name), made fit for messages, terminals and files."""

from __future__ import annotations

import re

_NOT_PRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text, with U+FFFD in place of what UTF-8 cannot hold (a surrogate without its partner) and of control
    characters other than tab and line ends.

    Python makes such strings of JSON like `"\\ud83d"` and of file names that are not UTF-8; printing one raises
    UnicodeEncodeError, which ends ComfyUI's queue.
    """
    return _NOT_PRINTABLE.sub("\ufffd", text)
