"""Which checkpoint a run goes on from, and what becomes of the files that it does not go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import RealignError
from ..settings.common import TrainingConfig
from . import checkpoints, proof
from .origin import Changes, changes, check_settings
from .run_folder import CHECKPOINTS, RESULTS, holds_a_run, set_aside


class Resumption:
    """The newest whole checkpoint of those that the setting `resume` means, read before the models are.

    made_of: this run's `origin_of`; None in a process that leaves the comparison to the main one.

    Raises:
        RealignError: there is none where one is asked for, none that can be used, or it is of another run.
    """

    def __init__(self, config: TrainingConfig, made_of: Mapping[str, Any] | None) -> None:
        self.config, self.made_of = config, made_of
        self.changes = Changes((), True)
        """What differs from the run that wrote it."""
        files = checkpoints.found(config.run.resume, Path(config.run.output))
        self._candidates = checkpoints.Candidates(files, self._check) if files else None

    @property
    def file(self) -> Path | None:
        """None where the run begins anew."""
        return self._candidates and self._candidates.file

    def prove(self, like: Mapping[str, Any]) -> None:
        """Pass over checkpoints that lack something or do not fit; see `proof.check`.

        Raises:
            RealignError: none is left, or the one before is of another run.
        """
        proved = self._candidates is None
        while not proved:
            try:
                proof.check(self._candidates.state, like)
                proved = True
            except checkpoints.Unusable as why:
                self._candidates.pass_over(why)

    def take(self) -> tuple[Path, Mapping[str, Any]]:
        """The checkpoint and its state, which is not held any longer."""
        file, state = self._candidates.file, self._candidates.state
        self._candidates = None
        return file, state

    def _check(self, file: Path, state: Any) -> None:
        check_settings(file, state)
        try:
            if self.made_of is None:
                checkpoints.check_same(file, state["config"], self.config.to_dict())
            else:
                self.changes = changes(file, state, self.config, self.made_of)
        except RealignError:
            raise
        except Exception as error:  # any nonsense may be in there
            raise checkpoints.Unusable("its settings are of another form") from error


def keep_earlier_run(config: TrainingConfig, file: Path | None) -> str | None:
    """Move what a run that begins anew, or goes on from `file`, would write over to `before-N` in the output; a
    sentence about it, None where there was nothing.

    Raises:
        RealignError: it cannot be moved.
    """
    output = Path(config.run.output)
    if file is not None and file.resolve().parent == (output / CHECKPOINTS).resolve():
        checkpoints.put_aside_later(file)
        return None
    if not holds_a_run(output):
        return None
    again = () if config.run.resume == "auto" else ("rounds",)
    aside = set_aside(output, (*RESULTS, *again))
    return f"The files of the run that was in '{output}' are kept in '{aside}'."
