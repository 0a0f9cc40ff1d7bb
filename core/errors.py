"""The exception that users see, and what to say of those of libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .text import message


class RealignError(ValueError):
    """Bad input, in one printable sentence (see `core.text.message`): what is wrong, and how to fix it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(message(sentence))


class NoAnswer(RealignError):
    """A language model cannot answer; the offline scorer may answer in its place."""


@contextmanager
def exit_on_error(program: str, stopped: str | None = None) -> Iterator[None]:
    """End the process with one line on stderr and status 1 if the body raises a RealignError or an OSError.

    stopped: the line for Ctrl-C; None: Ctrl-C is not caught.
    """
    try:
        yield
    except (RealignError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        if stopped is None:
            raise
        sys.exit(f"{program}: {stopped}")


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's message, blank ones skipped, cut after `most` characters; without a message the
    name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]
