"""Checkpoints that are whole or not there, and going on from the last good one."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...core.errors import RealignError
from ...core.files import advice, reason, write_whole
from ..loop.failures import out_of_memory
from ..settings import removed
from ..settings.arl import ranked
from .run_folder import CHECKPOINTS, set_aside

logger = logging.getLogger(__name__)
PATTERN = "step-*.pt"
_NAME = re.compile(r"step-(\d+)\.pt")
SAME = ("model", "train", "rank", "targets", "optimizer_8bit", "seed")
"""The settings that a run which goes on must have as before."""
DAMAGED = "it is cut off or damaged"
_DIRECTORY = 0x10
"""The attribute of an entry of an archive that says it is a folder."""


class Unusable(Exception):
    """Why a checkpoint cannot be gone on from, in a few words."""


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of `step`; the newest `keep` stay.

    It is written beside its place and put there when complete, so that a killed process or a full disk costs nothing
    that was saved before. Later checkpoints, which another run must have written, are moved to `before-N` beside the
    folder.

    Raises:
        RealignError: the disk is full or cannot be written.
    """
    file = folder / f"step-{step:08d}.pt"
    try:
        write_whole(file, lambda partial: _dump({"step": step, **state}, partial), durable=True)
    except RealignError as error:
        cause = error.__cause__ or error
        raise RealignError(
            f"The checkpoint of step {step} could not be written to '{folder}' ({reason(cause)}): {advice(cause)} and "
            "start again; the run goes on from the checkpoint before."
        ) from error
    put_aside_later(file)
    for old in [other for other in _numbered(folder) if step_of(other) < step][keep - 1 :]:
        try:
            old.unlink()
        except OSError as error:
            logger.warning("The old checkpoint %s could not be removed (%s).", old, reason(error))
    return file


def put_aside_later(file: Path) -> Path | None:
    """Move checkpoints of later steps than `file` to `before-N` beside their folder, so that no run goes on from them
    by mistake; None where there are none."""
    folder = file.parent
    later = [other for other in _numbered(folder) if step_of(other) > step_of(file)]
    aside = set_aside(folder.parent, [other.relative_to(folder.parent) for other in later])
    if aside:
        names = ", ".join(other.name for other in later)
        logger.warning("Kept in '%s', as this run does not go on from them: %s.", aside, names)
    return aside


def found(resume: str, output: Path) -> list[Path]:
    """The checkpoints that the setting `resume` means, the newest first; none where the run is to begin anew.

    Raises:
        RealignError: it names a place where there is none.
    """
    if resume == "never":
        return []
    if resume == "auto":
        return _numbered(output / CHECKPOINTS)
    place = Path(resume)
    try:
        if place.is_file():
            return [place]
        files = _numbered(place) or _numbered(place / CHECKPOINTS)
    except (OSError, ValueError):  # no path at all: too long, or with a NUL
        files = []
    if not files:
        raise RealignError(f"resume is '{resume}', where there is no checkpoint: give a run's folder, auto or never.")
    return files


def step_of(file: Path) -> int:
    """The step in the name of a checkpoint; -1 where it has none."""
    name = _NAME.fullmatch(file.name)
    return int(name[1]) if name else -1


class Candidates:
    """Checkpoints from the newest on, read when it is their turn; each that cannot be used is passed over with a
    warning.

    check: raises `Unusable` for one that is to be passed over, and `RealignError` where going on is refused.
    """

    def __init__(self, files: Sequence[Path], check: Callable[[Path, Any], None] = lambda file, state: None) -> None:
        self.files, self.check = files, check
        self.faults: list[str] = []
        self._usable = self._read()
        self.file, self.state = next(self._usable)

    def pass_over(self, why: Unusable) -> None:
        """Take the one before `file`, which has a fault."""
        self._blame(self.file, why)
        self.state = None  # its memory is free for the next
        self.file, self.state = next(self._usable)

    def _read(self) -> Iterator[tuple[Path, Any]]:
        for file in self.files:
            try:
                state = read(file)
                self.check(file, state)
            except Unusable as why:
                self._blame(file, why)
                continue
            yield file, state
            del state
        raise RealignError(
            f"No checkpoint in '{self.files[0].parent}' can be used ({'; '.join(self.faults)}): restore one, or set "
            "resume to never to begin anew, which deletes none of them."
        )

    def _blame(self, file: Path, why: Unusable) -> None:
        self.faults.append(f"{file.name}: {why}")
        if file != self.files[-1]:
            logger.warning("The checkpoint %s cannot be read (%s); an earlier one is taken.", file.name, why)


def load(files: Sequence[Path]) -> tuple[Path, Any]:
    """The first checkpoint that can be read; one that cannot is warned of and passed over.

    Raises:
        RealignError: none can.
    """
    candidates = Candidates(files)
    return candidates.file, candidates.state


def read(file: Path) -> Any:
    """What a checkpoint holds, on the CPU, after the checksums of its archive were compared with all of its bytes,
    which torch itself does not do.

    Raises:
        Unusable: it cannot be opened, is damaged, or holds something else than tensors, numbers and text.
        RealignError: the memory does not suffice.
    """
    try:
        _prove(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(reason(error)) from error
    except pickle.UnpicklingError as error:  # whose text advises to run what is in there
        raise Unusable("it holds something else than tensors, numbers and text") from error
    except Exception as error:  # torch and zip raise many kinds for a file that is damaged
        if out_of_memory(error):
            raise RealignError(f"The memory does not suffice to read the checkpoint '{file}': free some.") from error
        raise Unusable(DAMAGED) from error


def check_same(file: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """That a checkpoint's settings are those of this run where its weights and its lots depend on them.

    Raises:
        RealignError: one of `SAME` is not, or the checkpoint is of the other training script.
    """
    if before and ranked(before) != ranked(now):
        script = "arl_train.py" if ranked(before) else "refl_train.py"
        raise RealignError(f"The checkpoint {file} is of {script}: give another output, or set resume to never.")
    for name in SAME:
        if before.get(name, now[name]) != now[name]:
            refuse(file, f"whose {name} was {before[name]}, and now it is {now[name]}")
    if other := removed.other_weights(before):
        refuse(file, other, "go on with the version that wrote it")


def refuse(file: Path, what: str, to_do: str = "set it back") -> NoReturn:
    """Raise the sentence for a checkpoint of another run; `what` says how that one differs."""
    raise RealignError(
        f"The checkpoint {file} is of a run {what}: {to_do}, give another output, or set resume to never."
    )


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted((file for file in folder.glob(PATTERN) if step_of(file) >= 0), key=step_of, reverse=True)


def _dump(state: Mapping[str, Any], file: Path) -> None:
    try:
        torch.save(dict(state), file)
    except RuntimeError as error:  # how torch's writer reports a full disk
        raise OSError(str(error).splitlines()[0]) from error


def _prove(file: Path) -> None:
    """That the file is an archive as `torch.save` writes them, whose checksums are right."""
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\3\4":
            raise Unusable(DAMAGED)
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            names = {entry.filename.rpartition("/")[2] for entry in entries}
            if "data.pkl" not in names or "constants.pkl" in names or any(entry.compress_type for entry in entries):
                raise Unusable("it is no archive of torch.save")
            if any(entry.external_attr & _DIRECTORY for entry in entries):  # which torch takes without its bytes
                raise Unusable(DAMAGED)
            if archive.testzip() is not None:
                raise Unusable(DAMAGED)
