"""Models from Hugging Face: whole or not there at all, stopped by an interrupt, gone on with where they stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import RealignError
from .hosting import each, waiting

PARTIAL = ".partial"
"""How the name of a folder ends while its download is not complete."""
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]


def fetched(repository: str, target: Path) -> Path:
    """Fetch a repository's files into `<target>.partial`, which becomes `target` when all are there.

    Files that are already there are not fetched again. An interrupt stops it between two files and does not wait for
    the one that is being fetched.

    Raises:
        RealignError: the repository or one of its files could not be fetched or written.
    """
    from huggingface_hub import hf_hub_download

    partial = target.with_name(target.name + PARTIAL)
    revision, files = waiting(lambda: _contents(repository))

    def fetch(i: int) -> None:
        with _telling(repository):
            hf_hub_download(repository, files[i], revision=revision, local_dir=partial)

    with _telling(repository):
        if target.is_dir() and not partial.exists():  # begun by hand, without a config.json
            target.rename(partial)
    each(len(files), lambda i: waiting(lambda: fetch(i)))
    with _telling(repository):
        partial.rename(target)
    return target


def _contents(repository: str) -> tuple[str | None, list[str]]:
    """The newest revision of a repository, and its files that are wanted."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    with _telling(repository):
        found = HfApi().model_info(repository)
        names = [file.rfilename for file in found.siblings or ()]
        return found.sha, list(filter_repo_objects(names, allow_patterns=_WANTED))


@contextmanager
def _telling(repository: str) -> Iterator[None]:
    """Whatever goes wrong, on the network or on the disk, in one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RealignError(
            f"'{repository}' could not be downloaded ({reason}): try again, or copy it there."
        ) from error
