"""A cache of a language model's answers on disk, so that no question is asked twice."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...core.files import write_whole

_FILE = re.compile(r"[0-9a-f]{64}\.json(\.\d+\.partial)?|realigndiff-part-.*")
"""The names of answers, and of half-written ones, also by older versions."""


class AnswerCache:
    """A folder with one small file per answer, named by the SHA-256 of its question.

    Any number of programs may share a folder: a file is moved to its place when it is complete. A file that cannot be
    read counts as no answer, one that cannot be written is not kept; nothing here raises an error. The folder holds
    `most` answers, and drops those that were used longest ago. An answer of more than `MAX_BYTES` is not kept.
    """

    MAX_BYTES = 16 * 1024

    def __init__(self, folder: str | Path, most: int = 1000) -> None:
        self.folder, self.most = Path(folder), most

    def get(self, question: str) -> dict[str, Any] | None:
        """The cached answer to a question, or None."""
        file = self._file(question)
        with suppress(OSError, ValueError, RecursionError):
            with file.open("rb") as opened:
                answer = json.loads(opened.read(self.MAX_BYTES))
            with suppress(OSError):
                os.utime(file)  # used now
            return answer if isinstance(answer, dict) else None
        return None

    def put(self, question: str, answer: dict[str, Any]) -> None:
        """Cache an answer."""
        with suppress(OSError, ValueError, RecursionError):  # RealignError is a ValueError
            data = json.dumps(answer).encode("ascii")
            if len(data) <= self.MAX_BYTES:
                write_whole(self._file(question), data)
                self._drop()

    def _file(self, question: str) -> Path:
        return self.folder / f"{sha256(question.encode('utf-8', 'replace')).hexdigest()}.json"

    def _drop(self) -> None:
        """Remove the answers beyond `most`, and files left half written; leave other files alone."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _FILE.fullmatch(entry.name):
                    with suppress(OSError):  # another program has just dropped it
                        files.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(files, reverse=True)[self.most :]:
            with suppress(OSError):
                os.unlink(path)
