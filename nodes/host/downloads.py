"""Downloads of models from Hugging Face. An interrupt stops them; the next run resumes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import RealignError
from .interrupts import map_with_progress, run_interruptibly

PARTIAL = ".partial"
"""The suffix of a folder while its download is incomplete."""
_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]


def download(repository: str, target: Path) -> Path:
    """Download a repository's files into `<target>.partial`, which becomes `target` once all are there.

    Files that are already there are not downloaded again. An interrupt stops between two files and does not wait for
    the current one. What cannot be downloaded or written is a RealignError.
    """
    from huggingface_hub import hf_hub_download

    partial = target.with_name(target.name + PARTIAL)
    revision, files = run_interruptibly(lambda: _files_of(repository))

    def fetch(i: int) -> None:
        with _download_errors(repository):
            hf_hub_download(repository, files[i], revision=revision, local_dir=partial)

    with _download_errors(repository):
        if target.is_dir() and not partial.exists():  # a manual copy without a config.json
            target.rename(partial)
    map_with_progress(len(files), lambda i: run_interruptibly(lambda: fetch(i)))
    with _download_errors(repository):
        partial.rename(target)
    return target


def _files_of(repository: str) -> tuple[str | None, list[str]]:
    """The newest revision of a repository, and the names of the files to download."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    with _download_errors(repository):
        info = HfApi().model_info(repository)
        names = [file.rfilename for file in info.siblings or ()]
        return info.sha, list(filter_repo_objects(names, allow_patterns=_PATTERNS))


@contextmanager
def _download_errors(repository: str) -> Iterator[None]:
    """Turn every error of the network or the disk into one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RealignError(
            f"'{repository}' could not be downloaded ({reason}): try again, or copy it there."
        ) from error
