"""Share work between the processes that `accelerate launch` starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")


class Processes:
    """The processes of this run: `count` of them, of which this is `number`; one without `accelerate launch`."""

    def __init__(self) -> None:
        self.count, self.number, self.device, self._state = 1, 0, None, None
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import PartialState

            cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
            # One process may still be sampling long after the others have finished.
            state = PartialState(cpu=cpu, timeout=timedelta(days=7))
            self._state, self.count, self.number = state, state.num_processes, state.process_index
            self.device = str(state.device)
        self.first = self.number == 0
        """Whether this is the process that prints and that writes the tables."""

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process's share: every `count`-th item."""
        return work[self.number :: self.count]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def end(self) -> None:
        """Leave the group of processes."""
        if self._state is not None:
            self._state.destroy_process_group()
