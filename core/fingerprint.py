"""Fingerprints: equal for equal contents, of a model's files or of a list of texts."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from .errors import RealignError
from .files import PARTIAL, WEIGHT_FILES, reason

SETTINGS = (".json", ".txt", ".model", ".vocab", ".merges", ".jinja", ".yaml", ".yml")
"""The suffixes of a model's other files: configuration, tokenizer, lists of words."""
READ_BESIDE = ("ram_tag_list.txt", "ram_tag_list_threshold.txt", "tokenizer.json", "vocab.txt")
"""Files that are read from beside a tagger or detector that is a single file."""
FRESH = 2 * 10**9
"""ns. A younger file may change again within the clock's resolution, so its digest is not cached."""


def fingerprint_of_texts(texts: Sequence[str]) -> str:
    """SHA-256 of the texts in their order, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def fingerprint_of_files(path: Path, beside: Collection[str] = ()) -> str:
    """SHA-256 of a model's files, in hexadecimal digits: equal for copies, whatever their paths and times.

    path: a file; or a folder, whose weights, configuration and tokenizer count, by name and content. Hidden files,
        notes and pictures do not count. A missing path counts as an empty folder.
    beside: names of files that belong to a single file and lie beside it.
    """
    try:
        if path.is_file():
            others = [path.with_name(name) for name in sorted(beside)]
            files = [("", path), *((file.name, file) for file in others if file.is_file())]
        else:
            files = sorted(_files(path))
        digests = [(name, _digest(file)) for name, file in files]
    except OSError as error:
        raise RealignError(f"The model '{path}' cannot be read ({reason(error)}): check its files.") from error
    return hashlib.sha256(json.dumps(digests).encode("utf-8", "surrogatepass")).hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder that count, by their paths in it. Links to folders are followed, each folder once."""
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(root, name)
            counts = file.suffix.lower() in (*WEIGHT_FILES, *SETTINGS) and not name.startswith(".")
            if counts and not name.endswith(PARTIAL) and file.is_file():
                yield file.relative_to(folder).as_posix(), file


def _digest(file: Path) -> str:
    state = file.stat()
    times = state.st_mtime_ns, state.st_ctime_ns
    key = (str(file.resolve()), state.st_ino, state.st_size, *times)
    return _read(*key) if time.time_ns() - max(times) > FRESH else _read.__wrapped__(*key)


@lru_cache(maxsize=4096)
def _read(path: str, *state: int) -> str:
    """The digest of a file, cached for as long as its state is the same."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
