"""One fine-tuning run, from its settings to its files; what a step learns from is the subclass's.

`refl_train.py` and `arl_train.py` each add a dozen lines that make a gradient; steps, checkpoints, evaluation, samples,
log, report and export are here.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import RealignError
from ...core.files import advice, partial_path, reason
from ...core.images import to_pil
from ...lora_files.export import save_lora, save_unet
from ...lora_files.metadata import run_metadata
from ...sampling.settings import SamplingSettings
from ..data.prompts import load_prompts
from ..settings.common import TrainingConfig
from ..settings.files import parse_command
from ..state import checkpoints, origin, proof
from ..state.resuming import Resumption, keep_earlier_run
from ..state.run_folder import CHECKPOINTS, RunFolder, set_aside
from ..watch import trackers
from ..watch.watching import Watcher
from . import failures
from .models import Trained, load
from .optimization import accelerator, adamw, averaged, lower_scale, moving_average
from .plan import checkpoint_bytes, plan, size
from .stopping import asked_by_signals

logger = logging.getLogger(__name__)
SEED_OF_EVALUATION = 10**7
LOWER = "lower learning_rate or train in fp32"
MAX_GRAD_NORM = 1.0
MAX_BAD_BATCHES = 10
"""More steps in a row whose loss or gradient is not finite end the run."""
INTERRUPTED = 130
"""The exit status of a process that Ctrl-C ended at once."""


def main(run: type[Run], settings: type[TrainingConfig], name: str, description: str) -> None:
    """What a training script does: read its settings, and run or tell what it would do."""
    try:
        config, dry_run = parse_command(settings, description=description)
        trackers.check(config.watch.log_with)
        if dry_run:
            print(plan(config))
        else:
            run(config).train()
    except RealignError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: stopped at once; what was saved before is there.", file=sys.stderr)
        sys.exit(INTERRUPTED)


class Run:
    """One run; a subclass says in `add_gradient` what a step learns from.

    Raises:
        RealignError: the output cannot be written or another run holds it, a prompt or a model is missing, or the
            checkpoint is of another run; all that can be found out before the models are read is.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.output = config, Path(config.run.output)
        self.accelerator = accelerator(config)
        self.step, self.bad, self.rewards, self.best = 0, 0, [], float("-inf")
        self.best_step = 0
        self.saved, self.sound = 0, True
        """The step of the newest checkpoint; whether weights and moments are all those of `step`."""
        self.asked_to_stop = self.stopping = False
        self.folder = RunFolder(self.output) if self._main else None
        try:
            self._set_up()
        except BaseException as error:
            self._release()
            if failures.of_the_device(error):
                raise RealignError(f"{failures.sentence(error, 'reading the models')}.") from error
            raise

    def _set_up(self) -> None:
        config = self.config
        self.prompts, self.held_out = load_prompts(config)
        for problem in (*self.prompts.problems, *self.held_out.problems):
            self.accelerator.print(problem)
        processes = self.accelerator.num_processes
        self.origin = origin.origin_of(config, self.prompts, self.held_out, processes) if self._main else None
        self.resumption = Resumption(config, self.origin)
        self.models: Trained = load(config, self.accelerator.device)
        self.optimizer = adamw(self.models.weights, config)
        self.unet, self.optimizer = self.accelerator.prepare(self.models.sampler.unet, self.optimizer)
        self.average = moving_average(self.models.weights, config.optimizer.ema)
        self.resumption.prove({"step": self.step, **self._state()})
        self._make_room()
        self.watcher = Watcher(config, self.accelerator)
        self.prepare()

    def train(self) -> None:
        """All steps, then the files.

        Raises:
            RealignError: a step, an evaluation or a file failed; what was trained until then is saved where it can be.
        """
        try:
            with asked_by_signals(self._stop):
                self._restore()
                self.watcher.begin(self.step)
                self._take_all_steps()
                kept = self._save()
                self.watcher.end()
                if self.step < self.config.optimizer.steps:
                    self.accelerator.print(f"Stopped at step {self.step}; {self._same_command()} goes on from {kept}.")
                    return
                if self.config.lora.train == "unet":
                    self._export_folder()
                name = "best" if self.best_step else "last"  # the best may be the model before training
                self.accelerator.print(f"Trained; load {self.output / f'{name}.safetensors'} in ComfyUI.")
        finally:
            self._release()

    def prepare(self) -> None:
        """What a subclass makes of the models before training; they have not been trained yet, also where the run goes
        on."""

    def prepare_step(self) -> None:
        """Whatever must be there before a step and is not counted as its time; may set `stopping`."""

    def add_gradient(self, part: int) -> Tensor:
        """Add the gradient of batch `part` of the step to that of the weights; (reward, loss, L_pre) as [3], NaN for
        what there is not."""
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """What the subclass keeps in a checkpoint."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `own_state` gave."""

    def agree_to_stop(self) -> None:
        """Set `stopping` on all devices where one was asked to stop; all wait for each other here."""
        asked = torch.tensor(float(self.asked_to_stop), device=self.accelerator.device)
        self.stopping = bool(self.accelerator.reduce(asked, "sum"))

    def _stop(self) -> None:
        """End with this step; one process alone leaves out a step that it is in, as schedulers do not wait for long."""
        self.asked_to_stop = True

    def _take_all_steps(self) -> None:
        """Until the last, or until the run is asked to stop."""
        config = self.config
        if not self.step:
            with self._kept("the evaluation before training"):
                self._draw()
                self.watcher.log({"step": 0, **self._look()})
        while self.step < config.optimizer.steps and not self.stopping:
            with self._kept(f"step {self.step + 1}"):
                self.prepare_step()
                began = time.monotonic()
                row = None if self.stopping else self._take_step()
                if row is None:
                    return
                self.step += 1
                self.sound = True
            with self._kept(f"the evaluation at step {self.step}"):
                row |= {"step": self.step, "seconds": time.monotonic() - began, "bad_batches": self.bad}
                self.watcher.show(row)
                if self._due(config.watch.sample_every):
                    self._draw()  # before the evaluation: the best weights' thumbnail is then of their own step
                row |= self._look() if self._due(config.watch.evaluate_every) else {}
                self.watcher.log(row)
            if self._due(config.run.save_every):
                self._save()

    @contextmanager
    def _kept(self, doing: str) -> Iterator[None]:
        """Where something fails, save what was trained until then, and say in one sentence what failed."""
        try:
            yield
        except Exception as error:
            kept = self._save_what_is_sound()
            told = str(error) if isinstance(error, RealignError) else failures.sentence(error, doing)
            if told is None:  # of which the traceback says more
                self.accelerator.print(f"{doing[:1].upper()}{doing[1:]} failed; {kept}.")
                raise
            raise RealignError(f"{told.rstrip('.')}; {kept}.") from error

    def _save_what_is_sound(self) -> str:
        """After a failure; what the run goes on from, in words."""
        if self.sound and self.step > self.saved:
            with suppress(Exception):  # the first failure is what is reported
                self._save()
        with suppress(Exception):
            self.watcher.end()
        return self._saved_so_far()

    def _saved_so_far(self) -> str:
        if not self.saved:
            return "no step was saved yet"
        return f"step {self.saved} is saved, and {self._same_command()} goes on from it"

    def _same_command(self) -> str:
        auto = self.config.run.resume == "auto"
        return "the same command" if auto else "the same command with resume set to auto"

    def _take_step(self) -> dict[str, float] | None:
        """One step of the optimiser; a batch that is not finite is left out and counted. None where the run was asked
        to stop and nothing has changed."""
        config = self.config
        self._set_learning_rate()
        self.optimizer.zero_grad()
        totals = torch.zeros(4)
        for part in range(config.optimizer.gradient_accumulation):
            if self.asked_to_stop and self.accelerator.num_processes == 1:
                return None
            totals[:3] += self.add_gradient(part) / config.optimizer.gradient_accumulation
        totals[3] = self.asked_to_stop
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), "mean").cpu()  # one mind on all devices
        self.stopping = bool(totals[3])
        norm = self.accelerator.clip_grad_norm_(self.models.weights, MAX_GRAD_NORM)
        finite = bool(torch.isfinite(totals[1:2]).all())
        if finite and torch.isfinite(norm):
            self.bad, self.sound = 0, False
            self.optimizer.step()
            if self.average is not None:
                self.average.step(self.models.weights)
            self._check_weights()
        elif not (lower_scale(self.accelerator) and finite):
            self.bad += 1
            if self.bad > MAX_BAD_BATCHES:
                self.sound = False  # weights that give no finite batch any more
                raise RealignError(f"{self.bad} batches in a row were not finite: {LOWER}.")
        row = dict(zip(("reward", "loss", "prior_loss"), totals[:3].tolist(), strict=True))
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def seeds(self, part: int, count: int) -> list[int]:
        """Of the images of a pass on this device.

        Everything random in a step follows from them, so from the seed, the step and the image's number: a run that is
        resumed, or split over more devices, draws the same.
        """
        at = (self.step * self.config.optimizer.gradient_accumulation + part) * self.accelerator.num_processes
        first = (at + self.accelerator.process_index) * count
        return [self.config.run.seed * 10**9 + first + i for i in range(count)]

    def _look(self) -> dict[str, float]:
        """The reward on held-out prompts from seeds of their own; the best weights so far are kept."""
        texts = self.held_out.texts[: self.config.watch.evaluate_prompts]
        if not self._main or not texts or not self.config.watch.evaluate_every:
            return {}
        scores = []
        count = self.models.sampler.max_batch
        for start in range(0, len(texts), count):
            some = texts[start : start + count]
            images = self._images(some, start)
            with self.models.judging():
                scores += self.models.reward(images, some).tolist()
        reward = sum(scores) / len(scores)
        self.rewards.append(reward)
        if reward > self.best:
            self.best, self.best_step = reward, self.step
            self._export("best")
        return {"held_out_reward": reward}

    def _draw(self) -> None:
        """A grid of samples of fixed prompts and seeds."""
        if self.config.watch.sample_every:
            texts = self.held_out.texts[:4]
            self.watcher.draw(self.step, texts, lambda: to_pil(self._images(texts, 0)))

    def _images(self, texts: Sequence[str], first: int) -> Tensor:
        """One image a text, as the rollout samples, from seeds that no training step uses."""
        settings = SamplingSettings(steps=self.config.rollout.rollout_steps, cfg=self.config.rollout.cfg)
        noise = self.models.sampler.noise([SEED_OF_EVALUATION + first + i for i in range(len(texts))])
        with averaged(self.models.weights, self.average):
            return self.models.sampler.sample(texts, noise, settings)

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.models.weights):
            raise RealignError(f"The weights after step {self.step + 1} are not finite: {LOWER}.")

    def _make_room(self) -> None:
        """Keep the files of an earlier run that this one does not go on from, and see to the disk."""
        self.accelerator.wait_for_everyone()  # all have read the checkpoint
        if not self._main:
            return
        needed, free = checkpoint_bytes(self.config, self.models), shutil.disk_usage(self.output).free
        if free < 2 * needed:
            print(f"Only {size(free)} are free in '{self.output}', and a checkpoint takes {size(needed)}: make room.")
        if kept := keep_earlier_run(self.config, self.resumption.file):
            print(kept)

    def _restore(self) -> None:
        """Take the state of the checkpoint, which was proved."""
        if self.resumption.file is None:
            return
        file, state = self.resumption.take()
        for weight, kept in zip(self.models.weights, state["weights"], strict=True):
            weight.data.copy_(kept)
        groups = self.optimizer.state_dict()["param_groups"]  # no setting of AdamW comes from a file
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.average = moving_average(self.models.weights, self.config.optimizer.ema, state["average"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.bad, self.rewards, self.best = (state[k] for k in ("step", "bad", "rewards", "best"))
        self.best_step, self.saved = state.get("best_step", 0), self.step
        self.restore(state)
        self.accelerator.print(f"Going on from {file}, step {self.step} of {self.config.optimizer.steps}.")
        if self._main:
            self._report_changes()

    def _report_changes(self) -> None:
        """What is not as it was; the best weights are chosen anew where rewards cannot be compared any more."""
        changes = self.resumption.changes
        if changes.sentences:
            print(f"Changed since then: {'; '.join(changes.sentences)}.")
        if not changes.best_is_comparable:
            self.best, self.best_step, self.rewards = float("-inf"), 0, []
            aside = set_aside(self.output, ["best.safetensors"])
            kept = f"; the one so far is kept in '{aside}'" if aside else ""
            print(f"Its rewards cannot be compared with those to come: best.safetensors is chosen anew{kept}.")

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds besides the step."""
        return {
            "weights": [weight.detach() for weight in self.models.weights],
            "optimizer": self.optimizer.state_dict(),
            "average": self.average and self.average.state_dict(),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            "bad": self.bad,
            "rewards": self.rewards,
            "best": self.best,
            "best_step": self.best_step,
            "config": self.config.to_dict(),
            origin.KEY: self.origin,
            **self.own_state(),
        }

    def _save(self) -> Path:
        """Write the checkpoint of this step and `last.safetensors`; the checkpoint's path.

        Raises:
            RealignError: they cannot be written, or are not finite; the checkpoints before stay as they are.
        """
        if not self._main:
            self.saved = self.step
            return self.output
        state = self._state()
        state["weights"] = [weight.cpu() for weight in state["weights"]]
        try:
            proof.check_finite(state)
        except checkpoints.Unusable as why:
            raise RealignError(f"Step {self.step} is not kept, as {why}: {LOWER}; {self._saved_so_far()}.") from why
        file = checkpoints.save(self.output / CHECKPOINTS, self.step, state, self.config.run.keep_last)
        self.saved = self.step
        self._export("last")
        return file

    def _export(self, name: str) -> None:
        """The weights as ComfyUI loads them."""
        rewards = self.rewards or [None]
        told = run_metadata(
            f"{self.output.name}-{name}",
            steps=self.step,
            learning_rate=self.config.optimizer.learning_rate,
            config=self.config.to_dict(),
            prompts=self.prompts.texts,
            reward_before=rewards[0],
            reward_after=rewards[-1],
            resolution=self.models.resolution,
            prediction_type=self.models.sampler.scheduler.config.prediction_type,
            thumbnail=self.watcher.thumbnail(self.step),
        )
        self.output.mkdir(parents=True, exist_ok=True)
        write = save_lora if self.config.lora.train == "lora" else save_unet
        with averaged(self.models.weights, self.average):
            write(self.models.sampler.unet, self.output / f"{name}.safetensors", told)

    def _export_folder(self) -> None:
        """The whole UNet in the diffusers layout, each file whole or not there."""
        if not self._main:
            return
        folder = self.output / "unet"
        partial = partial_path(folder)
        try:
            with averaged(self.models.weights, self.average):
                self.models.sampler.unet.save_pretrained(partial)
            folder.mkdir(exist_ok=True)
            for file in partial.iterdir():
                file.replace(folder / file.name)
        except (OSError, SafetensorError) as error:
            raise RealignError(
                f"The UNet's folder could not be written to '{self.output}' ({reason(error)}): {advice(error)} and "
                "start again; last.safetensors is there."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _set_learning_rate(self) -> None:
        """Linear warm-up, constant, linear decay."""
        rise = min(1.0, (self.step + 1) / max(1, self.config.optimizer.warmup_steps))
        fall = min(1.0, (self.config.optimizer.steps - self.step) / max(1, self.config.optimizer.decay_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.learning_rate * min(rise, fall)

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _release(self) -> None:
        if self.folder is not None:
            self.folder.release()

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process
