"""The exceptions users see, one and a special case of it, and what those of libraries say."""

from __future__ import annotations

from .text import message


class RealignError(ValueError):
    """Bad input, told in one sentence: what is wrong, with which value, and how to mend it.

    The sentence can be printed and written whatever the value holds (`core.text.message`).
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(message(sentence))


class NoAnswer(RealignError):
    """A language model cannot be asked, and the offline scorer may answer in its place."""


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's message that is not blank, at most so many characters of it; its class where the
    message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]
