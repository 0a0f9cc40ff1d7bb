"""What a pickle would import when it is loaded, read from its instructions: nothing in it runs."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

_TENSORS = ("torch.", "collections OrderedDict", "collections.OrderedDict")
"""How the names begin of what tensors are made of."""


def foreign_code(file: Path) -> str | None:
    """The first function or class that a file would import beside those of tensors; None if there is none."""
    try:
        names = [name for pickle in _pickles(file) for name in _imports(pickle)]
    except (OSError, zipfile.BadZipFile):
        return None
    return next((name for name in names if not name.startswith(_TENSORS)), None)


def _pickles(file: Path) -> Iterator[bytes]:
    """The pickles in a file: those in torch's zip, or the file itself, which may be several in a row."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield archive.read(name)
        return
    with file.open("rb") as stream:
        yield stream.read(2**26)  # what it imports stands before the weights


def _imports(data: bytes) -> Iterator[str]:
    """`module.name` of each import, as far as the instructions can be read."""
    rest, said, memo = data, [], {}
    while rest:
        stop = 0
        try:
            for code, argument, place in pickletools.genops(rest):
                stop = place + 1
                if code.name in ("GLOBAL", "INST"):
                    yield argument.replace(" ", ".", 1)
                elif code.name == "STACK_GLOBAL" and len(said) > 1:
                    yield ".".join(said[-2:])
                elif code.name == "MEMOIZE":
                    memo[len(memo)] = said[-1] if said else ""
                elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                    memo[argument] = said[-1] if said else ""
                elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                    said.append(memo.get(argument, ""))
                elif isinstance(argument, str):
                    said.append(argument)
        except Exception:  # here the pickles end and the weights begin, or the file is damaged
            return
        rest, said, memo = rest[stop:], [], {}
