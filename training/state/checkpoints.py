"""Checkpoint files: written whole or not at all, listed, and read after their checksums were verified."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...core.errors import RealignError
from ...core.files import advice, reason, write_whole
from ..loop.ending import is_out_of_memory
from .run_folder import CHECKPOINTS, set_aside

logger = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.pt")
DAMAGED = "it is cut off or damaged"
_FOLDER_ATTRIBUTE = 0x10  # marks an entry of an archive as a folder


class Unusable(Exception):
    """Why a run cannot resume from a checkpoint, in a few words."""


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of `step` and delete all but the newest `keep`.

    A killed process or a full disk costs nothing that was saved before. Checkpoints of later steps, which another run
    must have written, are moved to `before-N` beside the folder.
    """
    file = folder / f"step-{step:08d}.pt"

    def write(partial: Path) -> None:
        try:
            torch.save({"step": step, **state}, partial)
        except RuntimeError as error:  # how torch's writer reports a full disk
            raise OSError(str(error).splitlines()[0]) from error

    try:
        write_whole(file, write, durable=True)
    except RealignError as error:
        cause = error.__cause__ or error
        raise RealignError(
            f"The checkpoint of step {step} could not be written to '{folder}' ({reason(cause)}): {advice(cause)} and "
            "start again; the run goes on from the checkpoint before."
        ) from error
    set_later_aside(file)
    for old in [other for other in _newest_first(folder) if step_of(other) < step][keep - 1 :]:
        try:
            old.unlink()
        except OSError as error:
            logger.warning("The old checkpoint %s could not be removed (%s).", old, reason(error))
    return file


def set_later_aside(file: Path) -> None:
    """Move checkpoints of later steps than `file` to `before-N`, so that no run resumes from them by mistake."""
    folder = file.parent
    later = [other for other in _newest_first(folder) if step_of(other) > step_of(file)]
    if aside := set_aside(folder.parent, [other.relative_to(folder.parent) for other in later]):
        names = ", ".join(other.name for other in later)
        logger.warning("Kept in '%s', as this run does not go on from them: %s.", aside, names)


def list_checkpoints(resume: str, output: Path) -> list[Path]:
    """The checkpoints that the setting `resume` selects, the newest first; none if the run is to start over."""
    if resume == "never":
        return []
    if resume == "auto":
        return _newest_first(output / CHECKPOINTS)
    place = Path(resume)
    try:
        if place.is_file():
            return [place]
        files = _newest_first(place) or _newest_first(place / CHECKPOINTS)
    except (OSError, ValueError):  # no path at all: too long, or with a NUL
        files = []
    if not files:
        raise RealignError(f"resume is '{resume}', where there is no checkpoint: give a run's folder, auto or never.")
    return files


def step_of(file: Path) -> int:
    """The step in the name of a checkpoint; -1 if it has none."""
    name = _NAME.fullmatch(file.name)
    return int(name[1]) if name else -1


class Candidates:
    """Reads checkpoints from the newest on, each only when it is needed; `file` and `state` are the current one's.

    Raises:
        RealignError: no checkpoint is left.
    """

    file: Path | None = None
    state: Any = None

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.faults = files, list[str]()
        if files:
            self._read_next()

    def check(self, file: Path, state: Any) -> None:
        """For subclasses: raise `Unusable` to skip a checkpoint with a warning, `RealignError` not to resume at all."""

    def reject(self, why: Unusable) -> None:
        """Go on to the checkpoint before the current one."""
        self._record_fault(why)
        self._read_next()

    def _read_next(self) -> None:
        for file in self.files[len(self.faults) :]:
            try:
                self.file, self.state = file, read(file)
                self.check(file, self.state)
                return
            except Unusable as why:
                self._record_fault(why)
        raise RealignError(
            f"No checkpoint in '{self.files[0].parent}' can be used ({'; '.join(self.faults)}): restore one, or set "
            "resume to never to begin anew, which deletes none of them."
        )

    def _record_fault(self, why: Unusable) -> None:
        file = self.files[len(self.faults)]
        self.faults.append(f"{file.name}: {why}")
        self.state = None  # frees its memory for the next
        if file != self.files[-1]:
            logger.warning("The checkpoint %s cannot be read (%s); an earlier one is taken.", file.name, why)


def read(file: Path) -> Any:
    """The content of a checkpoint, on the CPU. All bytes are compared with the archive's checksums first, which torch
    does not do.

    Raises:
        Unusable: it cannot be opened, is damaged, or holds something else than tensors, numbers and text.
        RealignError: there is not enough memory.
    """
    try:
        _verify_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(reason(error)) from error
    except pickle.UnpicklingError as error:  # whose text suggests to run the code in the file
        raise Unusable("it holds something else than tensors, numbers and text") from error
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        if is_out_of_memory(error):
            raise RealignError(f"The memory does not suffice to read the checkpoint '{file}': free some.") from error
        raise Unusable(DAMAGED) from error


def _newest_first(folder: Path) -> list[Path]:
    return sorted((file for file in folder.glob("step-*.pt") if step_of(file) >= 0), key=step_of, reverse=True)


def _verify_archive(file: Path) -> None:
    """Raise `Unusable` unless the file is an archive as `torch.save` writes them, with correct checksums."""
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\3\4":
            raise Unusable(DAMAGED)
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            names = {entry.filename.rpartition("/")[2] for entry in entries}
            if "data.pkl" not in names or "constants.pkl" in names or any(entry.compress_type for entry in entries):
                raise Unusable("it is no archive of torch.save")
            # torch reads a folder without its bytes
            if any(entry.external_attr & _FOLDER_ATTRIBUTE for entry in entries) or archive.testzip() is not None:
                raise Unusable(DAMAGED)
