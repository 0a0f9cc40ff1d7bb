"""The output folder of a run: checked to be writable, locked against other runs, and nothing in it lost."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ...core.errors import RealignError
from ...core.files import advice, make_folder, reason, remove_partial_files, write_whole
from ..watch import log

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
FOLDERS = (CHECKPOINTS, "samples", "rounds", "unet", "tensorboard", "wandb", "answers")
"""The folders that a run may make in its output."""
FILES = ("last.safetensors", "best.safetensors", "prior.safetensors", "log.csv", "report.html")
RESULTS = ("log.csv", CHECKPOINTS, "samples", "last.safetensors", "best.safetensors", "report.html", "unet")
RESULTS += ("tensorboard", "wandb")
"""What belongs to one run alone. `prior.safetensors`, `rounds/` and `answers/` may serve another run: they record what
they were made of."""
ASIDE = "before-"  # the prefix of folders that keep the files of an earlier run
_OLD_PARTIAL = re.compile(r"(step-\d+|report|prior|\d{6})\.part")  # the names of half-written files in older versions
_LOCK, _HOLDER = ".lock", ".lock-holder"


class RunFolder:
    """The output folder, locked by this process until `release` or its death: a killed process leaves no lock behind.

    Raises:
        RealignError: another run holds it, or it cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        check_writable(output)
        self.lock = FileLock(output / _LOCK, timeout=0, thread_local=False)
        self._acquire()
        for folder in (output, *(output / name for name in FOLDERS), *(output / "rounds").glob("*")):
            remove_partial_files(folder)
            with suppress(OSError):
                for left in list(folder.iterdir()):
                    if _OLD_PARTIAL.fullmatch(left.name) and left.is_file():
                        left.unlink()

    def release(self) -> None:
        """Let another run have the folder."""
        if self.lock.is_locked:
            with suppress(OSError):
                (self.output / _HOLDER).unlink()
            self.lock.release(force=True)

    def _acquire(self) -> None:
        holder = self.output / _HOLDER
        try:
            self.lock.acquire()
        except Timeout as error:
            line = ""
            with suppress(OSError):
                line = " ".join(holder.read_text(encoding="utf-8", errors="replace").split())
            raise RealignError(
                f"Another run writes to '{self.output}' ({line or 'no holder is recorded'}): wait for it, or give "
                "another output."
            ) from error
        except (OSError, NotImplementedError) as error:  # a file system without locks
            logger.warning("'%s' cannot be locked (%s): see to it that no other run writes there.", self.output, error)
        since = datetime.now().strftime("%Y-%m-%d %H:%M")
        with suppress(RealignError):  # it is only for people
            write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}, since {since}")


def check_writable(output: Path) -> None:
    """Check that a run can write its files, also in folders that exist already."""
    make_folder(output, "output")
    for folder in (output / name for name in FOLDERS):
        if os.path.lexists(folder):
            make_folder(folder, "output")
    for file in (output / name for name in FILES):
        if file.is_dir():
            raise RealignError(f"'{file}' is a folder, where the run writes a file: move it, or give another output.")


def holds_a_run(output: Path) -> bool:
    """Whether a run in the folder got further than its first evaluation."""
    files = (output / "last.safetensors", output / "unet", *(output / CHECKPOINTS).glob("step-*.pt"))
    rows, _ = log.read(output / "log.csv")
    return any(file.exists() for file in files) or (bool(rows) and rows[-1]["step"] > 0)


def set_aside(output: Path, names: Iterable[str | Path]) -> Path | None:
    """Move those of `names`, paths below `output`, that exist into a new folder `before-N`; None if none exists."""
    existing = [name for name in map(Path, names) if os.path.lexists(output / name)]
    if not existing:
        return None
    numbers = (folder.name.removeprefix(ASIDE) for folder in output.glob(f"{ASIDE}*"))
    aside = output / f"{ASIDE}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
    try:
        for name in existing:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(output / name, aside / name)
    except OSError as error:
        raise RealignError(
            f"The earlier run's files in '{output}' cannot be moved to '{aside}' ({reason(error)}): {advice(error)}, "
            "or give another output."
        ) from error
    return aside
