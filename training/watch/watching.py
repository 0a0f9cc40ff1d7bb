"""What a run shows of itself while it goes on: progress bar, log.csv, tracker, sample grids and, at the end, a report.

Nothing in here may end a training: what cannot be written or drawn is told, and the steps go on.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from .. import report
from ..settings.common import TrainingConfig
from . import log, samples, trackers


class Watcher:
    """The watching of one run; the methods do nothing in a process that is not the main one.

    Raises:
        RealignError: the tracker refuses to start; before anything was trained.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.accelerator, self.output = accelerator, Path(config.run.output)
        self.images = config.optimizer.batch_size * config.optimizer.gradient_accumulation * accelerator.num_processes
        self.steps = config.optimizer.steps
        self.unwritten: list[dict[str, Any]] = []
        self.bar: tqdm | None = None
        trackers.start(accelerator, self.output, report.shown(config.to_dict()))

    def begin(self, step: int) -> None:
        """Show the progress bar, of a run that stands at `step`."""
        self.bar = tqdm(total=self.steps, initial=step, disable=not self.accelerator.is_main_process)

    def show(self, row: dict[str, Any]) -> None:
        """A step was taken: `row` is what goes into the log, and gets the images a second here."""
        row["images_per_second"] = self.images / row["seconds"]
        self.bar.update()
        told = [f"{name} {row[name]:.4f}" for name in ("reward", "loss") if name in row]
        self.bar.set_postfix_str(", ".join([*told, f"{row['images_per_second']:.2f} images/s"]))

    def log(self, row: dict[str, Any]) -> None:
        """Write one row of numbers; one that cannot be written, as while Excel has the file, waits for the next."""
        if not self.accelerator.is_main_process:
            return
        self.unwritten.append(row)
        self._write()
        self._track(lambda: self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"]))

    def draw(self, step: int, prompts: Sequence[str], sample: Callable[[], Sequence[Image.Image]]) -> None:
        """Keep the pictures that `sample` draws of `prompts`; whatever it raises is told and ends nothing."""
        if not self.accelerator.is_main_process or not prompts:
            return
        try:
            pictures = sample()
            samples.save(self.output / "samples", step, pictures, prompts)
        except Exception as error:  # whatever it is, hours of training are worth more than a picture
            tqdm.write(f"The samples of step {step} could not be drawn ({error}); training goes on.")
            return
        self._track(lambda: trackers.log_picture(self.accelerator, samples.in_rows(pictures), step))

    def thumbnail(self, step: int) -> Image.Image | None:
        """The first picture of the newest grid."""
        return samples.newest_picture(self.output / "samples", step)

    def end(self) -> None:
        """Close bar and tracker, and write the report."""
        self.bar.close()
        self._track(lambda: [tracker.finish() for tracker in self.accelerator.trackers])
        if not self.accelerator.is_main_process:
            return
        if self.unwritten:
            self._write()
        try:
            print(f"See {report.write(self.output)}.")
        except Exception as error:  # the weights are saved; the report can be made again
            print(f"The report could not be made ({error}); python training/report.py {self.output} makes it.")

    def _write(self) -> None:
        try:
            log.append(self.output / "log.csv", self.unwritten)
            self.unwritten = []
        except (OSError, ValueError, csv.Error) as error:  # the last two: what is there is no log
            tqdm.write(f"log.csv cannot be written ({error}); its rows are kept until it can.")

    def _track(self, send: Callable[[], Any]) -> None:
        """Send something to the tracker; one that fails is told once and then left."""
        try:
            if self.accelerator.trackers:
                send()
        except Exception as error:
            tqdm.write(f"{self.accelerator.trackers[0].name} failed ({error}) and is left; log.csv has everything.")
            self.accelerator.trackers = []
