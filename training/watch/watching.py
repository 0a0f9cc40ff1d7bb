"""What a run shows while it trains: progress bar, log.csv, tracker, sample grids and, at the end, a report.

Nothing in here may end a training: if something cannot be written or drawn, a message says so, and training goes on.
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
    """Shows one run. In all but the main process the methods do nothing."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.accelerator, self.output = accelerator, Path(config.run.output)
        self.images = config.optimizer.batch_size * config.optimizer.gradient_accumulation * accelerator.num_processes
        self.steps = config.optimizer.steps
        self.unwritten: list[dict[str, Any]] = []
        self.bar = tqdm(disable=True)
        trackers.start(accelerator, self.output, report.displayed_settings(config.to_dict()))

    def begin(self, step: int) -> None:
        """Show the progress bar of a run that is at `step`."""
        self.bar = tqdm(total=self.steps, initial=step, disable=not self.accelerator.is_main_process)

    def show(self, row: dict[str, Any]) -> None:
        """Show a step in the progress bar; adds images_per_second to the `row` that goes into the log."""
        row["images_per_second"] = self.images / row["seconds"]
        self.bar.update()
        values = [f"{name} {row[name]:.4f}" for name in ("reward", "loss") if name in row]
        self.bar.set_postfix_str(", ".join([*values, f"{row['images_per_second']:.2f} images/s"]))

    def log(self, row: dict[str, Any]) -> None:
        """Write one row. If the file cannot be written, as while Excel holds it, the row waits for the next one."""
        if not self.accelerator.is_main_process:
            return
        self.unwritten.append(row)
        self._write()
        self._track(lambda: self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"]))

    def draw(self, step: int, prompts: Sequence[str], sample: Callable[[], Sequence[Image.Image]]) -> None:
        """Save the pictures that `sample` draws for `prompts`. An error in it is printed and does not end the run."""
        if not self.accelerator.is_main_process or not prompts:
            return
        try:
            pictures = sample()
            samples.save(self.output / "samples", step, pictures, prompts)
        except Exception as error:  # hours of training are worth more than a picture
            tqdm.write(f"The samples of step {step} could not be drawn ({error}); training goes on.")
            return
        self._track(lambda: trackers.log_picture(self.accelerator, samples.in_rows(pictures), step))

    def end(self) -> None:
        """Close the bar and the tracker, and write the report."""
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
        except (OSError, ValueError, csv.Error) as error:  # the last two: the file is no log
            tqdm.write(f"log.csv cannot be written ({error}); its rows are kept until it can.")

    def _track(self, send: Callable[[], Any]) -> None:
        """Send something to the tracker. One that fails is reported once and no longer used."""
        try:
            if self.accelerator.trackers:
                send()
        except Exception as error:
            tqdm.write(f"{self.accelerator.trackers[0].name} failed ({error}) and is left; log.csv has everything.")
            self.accelerator.trackers = []
