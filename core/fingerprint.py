"""What something was made of: one value for the contents of files, one for a list of texts."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from .errors import RealignError
from .files import PARTIAL, reason

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
SETTINGS = (".json", ".txt", ".model", ".vocab", ".merges", ".jinja", ".yaml", ".yml")
"""How the names of the files end that make a model, weights apart: configuration, tokenizer, lists of words."""
READ_BESIDE = ("ram_tag_list.txt", "ram_tag_list_threshold.txt", "tokenizer.json", "vocab.txt")
"""What the reader of a tagger or detector that is a single file looks for beside it."""
FRESH = 2 * 10**9
"""ns: a file that was changed so lately may change again within the clock's resolution, so its digest is not kept."""


def fingerprint_of_texts(texts: Sequence[str]) -> str:
    """SHA-256 of the texts in their order, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def fingerprint_of_files(path: Path, beside: Collection[str] = ()) -> str:
    """SHA-256 of a model's files, in hexadecimal digits: equal for copies, whatever their path and times.

    path: a file, whatever it is called; or a folder, of which weights, configuration and tokenizer count, with their
        names in it. Hidden files, notes and pictures do not count. What is not there counts as an empty folder.
    beside: names of files that belong to a single file and lie beside it.

    Raises:
        RealignError: a file cannot be read.
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
    """The folder's files that count, each with its name in it; folders behind links too, each once."""
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(root, name)
            counts = file.suffix.lower() in (*WEIGHTS, *SETTINGS) and not name.startswith(".")
            if counts and not name.endswith(PARTIAL) and file.is_file():
                yield file.relative_to(folder).as_posix(), file


def _digest(file: Path) -> str:
    state = file.stat()
    times = state.st_mtime_ns, state.st_ctime_ns
    key = (str(file.resolve()), state.st_ino, state.st_size, *times)
    return _read(*key) if time.time_ns() - max(times) > FRESH else _read.__wrapped__(*key)


@lru_cache(maxsize=4096)
def _read(path: str, *state: int) -> str:
    """The digest of a file; kept for the process, for as long as its state stays what it is."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
