"""Which checkpoint a run resumes from, and what happens to the files that it does not resume from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import RealignError
from ..loop.plan import format_bytes
from ..settings.common import TrainingConfig
from . import checkpoints, provenance, validation
from .run_folder import CHECKPOINTS, RESULTS, holds_a_run, set_aside


class Resumption(checkpoints.Candidates):
    """The newest usable checkpoint that the setting `resume` selects; `file` is None if the run starts over.

    made_of: this run's `provenance`; None in a process that leaves the comparison to the main one.

    Raises:
        RealignError: `resume` names a place without a checkpoint, none can be used, or it is of another run.
    """

    def __init__(self, config: TrainingConfig, made_of: Mapping[str, Any] | None) -> None:
        self.config, self.made_of = config, made_of
        self.changes = provenance.Changes((), True)
        """How this run differs from the one that wrote the checkpoint."""
        super().__init__(checkpoints.list_checkpoints(config.run.resume, Path(config.run.output)))

    def validate(self, like: Mapping[str, Any]) -> None:
        """Skip checkpoints that do not fit this run; see `validation.check_state`."""
        while self.file is not None:
            try:
                validation.check_state(self.state, like)
                return
            except checkpoints.Unusable as why:
                self.reject(why)

    def check(self, file: Path, state: Any) -> None:
        validation.check_settings(file, state)
        try:
            if self.made_of is None:
                provenance.check_fixed_settings(file, state["config"], self.config.to_dict())
            else:
                self.changes = provenance.compare(file, state, self.config, self.made_of)
        except RealignError:
            raise
        except Exception as error:  # the file may hold any nonsense
            raise checkpoints.Unusable("its settings are of another form") from error


def make_room(config: TrainingConfig, needed: float, file: Path | None) -> None:
    """Move what this run would overwrite to `before-N` in the output, and warn if the disk is nearly full.

    needed: the bytes of a checkpoint. file: the one from which the run resumes; None if it starts over.
    """
    output = Path(config.run.output)
    free = shutil.disk_usage(output).free
    if free < 2 * needed:
        sizes = f"{format_bytes(free)} are free in '{config.run.output}', and a checkpoint takes {format_bytes(needed)}"
        print(f"Only {sizes}: make room.")
    if file is not None and file.resolve().parent == (output / CHECKPOINTS).resolve():
        checkpoints.set_later_aside(file)
    elif holds_a_run(output):
        aside = set_aside(output, RESULTS if config.run.resume == "auto" else (*RESULTS, "rounds"))
        print(f"The files of the run that was in '{output}' are kept in '{aside}'.")
