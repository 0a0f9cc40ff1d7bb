"""One fine-tuning run: the training loop, its checkpoints, and how it ends.

`refl_train.py` and `arl_train.py` have its subclasses, which add the gradient of a batch.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
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
from ..state import checkpoints, provenance, validation
from ..state.resuming import Resumption, make_room
from ..state.run_folder import CHECKPOINTS, RunFolder, set_aside
from ..watch import samples, trackers
from ..watch.watching import Watcher
from .ending import describe_failure, handle_stop_signals, is_device_failure
from .models import RunModels, load_models
from .optimization import (
    lower_scale,
    make_accelerator,
    make_average,
    make_optimizer,
    set_learning_rate,
    swap_in_average,
)
from .plan import checkpoint_bytes, plan

MAX_NONFINITE_STEPS = 10  # more steps in a row without a finite loss and gradient end the run
ADVICE = "lower learning_rate or train in fp32"
INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended at once


class Run:
    """One run; a subclass implements `add_gradient`.

    Raises:
        RealignError: the output cannot be written or another run holds it, prompts or a model are missing, or the
            checkpoint is of another run. What can be checked without the models is checked before they are read.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.output = config, Path(config.run.output)
        self.accelerator = make_accelerator(config)
        self.step, self.nonfinite, self.rewards, self.best, self.best_step = 0, 0, [], float("-inf"), 0
        self.saved, self.consistent = 0, True
        """The step of the newest checkpoint; whether all weights and moments are those after `step` steps."""
        self.asked_to_stop = self.stopping = False
        self.folder = RunFolder(self.output) if self._main else None
        try:
            self._set_up()
        except BaseException as error:
            self._release()
            if is_device_failure(error):
                raise RealignError(f"{describe_failure(error, 'reading the models')}.") from error
            raise

    def _set_up(self) -> None:
        config = self.config
        self.prompts, self.held_out = load_prompts(config)
        for problem in (*self.prompts.problems, *self.held_out.problems):
            self.accelerator.print(problem)
        processes = self.accelerator.num_processes
        self.origin = provenance.provenance(config, self.prompts, self.held_out, processes) if self._main else None
        self.resumption = Resumption(config, self.origin)
        self.sampling = SamplingSettings(steps=config.rollout.rollout_steps, cfg=config.rollout.cfg)
        self.models: RunModels = load_models(config, self.accelerator.device)
        self.optimizer = make_optimizer(self.models.weights, config)
        self.unet, self.optimizer = self.accelerator.prepare(self.models.sampler.unet, self.optimizer)
        self.average = make_average(self.models.weights, config.optimizer.ema)
        self.resumption.validate({"step": self.step, **self._state()})
        self.accelerator.wait_for_everyone()  # all have read the checkpoint
        if self._main:
            make_room(config, checkpoint_bytes(config, self.models), self.resumption.file)
        self.watcher = Watcher(config, self.accelerator)
        self.prepare()

    def train(self) -> None:
        """Take all steps and write the files."""
        try:
            with handle_stop_signals(self.request_stop):
                self._restore()
                self.watcher.begin(self.step)
                self._loop()
                file = self._save()
                self.watcher.end()
                if self.step < self.config.optimizer.steps:
                    self.accelerator.print(f"Stopped at step {self.step}; {self._same_command()} goes on from {file}.")
                    return
                if self.config.lora.train == "unet":
                    self._export_folder()
                name = "best" if self.best_step else "last"  # the best may be the model before training
                self.accelerator.print(f"Trained; load {self.output / f'{name}.safetensors'} in ComfyUI.")
        finally:
            self._release()

    def prepare(self) -> None:
        """For subclasses: called once before the first step. The weights are still untrained, even if the run
        resumes: the checkpoint's are loaded later."""

    def prepare_step(self) -> None:
        """For subclasses: called before each step and not counted in its time; may set `stopping`."""

    def add_gradient(self, part: int) -> Tensor:
        """Add the gradient of batch `part` of the step to that of the weights; (reward, loss, L_pre) as [3], NaN for
        missing values."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """For subclasses: further values for the checkpoint."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """For subclasses: take the values of `extra_state` from a checkpoint."""

    def agree_to_stop(self) -> None:
        """Set `stopping` on all devices if one was asked to stop; all must call this together."""
        asked = torch.tensor(float(self.asked_to_stop), device=self.accelerator.device)
        self.stopping = bool(self.accelerator.reduce(asked, "sum"))

    def request_stop(self) -> None:
        """End after this step. A single process abandons the step, as schedulers do not wait for long."""
        self.asked_to_stop = True

    def _loop(self) -> None:
        """All steps until the last, or until the run is asked to stop."""
        config = self.config
        if not self.step:
            with self._save_on_failure("the evaluation before training"):
                self._log_samples()
                self.watcher.log({"step": 0, **self._evaluate()})
        while self.step < config.optimizer.steps and not self.stopping:
            with self._save_on_failure(f"step {self.step + 1}"):
                self.prepare_step()
                began = time.monotonic()
                row = None if self.stopping else self.train_step()
                if row is None:
                    return
                self.step += 1
                self.consistent = True
            with self._save_on_failure(f"the evaluation at step {self.step}"):
                row |= {"step": self.step, "seconds": time.monotonic() - began, "bad_batches": self.nonfinite}
                self.watcher.show(row)
                if self._due(config.watch.sample_every):
                    self._log_samples()  # before the evaluation: the best weights' thumbnail is then of their own step
                row |= self._evaluate() if self._due(config.watch.evaluate_every) else {}
                self.watcher.log(row)
            if self._due(config.run.save_every):
                self._save()

    @contextmanager
    def _save_on_failure(self, activity: str) -> Iterator[None]:
        """If the body of the `with` block fails, save the steps so far and describe the failure in one sentence."""
        try:
            yield
        except Exception as error:
            if self.consistent and self.step > self.saved:
                with suppress(Exception):  # the first failure is the one to report
                    self._save()
            with suppress(Exception):
                self.watcher.end()
            saved = self._saved_so_far()
            message = str(error) if isinstance(error, RealignError) else describe_failure(error, activity)
            if message is None:  # the traceback says more
                self.accelerator.print(f"{activity[:1].upper()}{activity[1:]} failed; {saved}.")
                raise
            raise RealignError(f"{message.rstrip('.')}; {saved}.") from error

    def _saved_so_far(self) -> str:
        if not self.saved:
            return "no step was saved yet"
        return f"step {self.saved} is saved, and {self._same_command()} goes on from it"

    def _same_command(self) -> str:
        auto = self.config.run.resume == "auto"
        return "the same command" if auto else "the same command with resume set to auto"

    def train_step(self) -> dict[str, float] | None:
        """One step of the optimizer; returns its row for the log, or None if the run was asked to stop and nothing has
        changed.

        A step whose loss or gradient is not finite is left out, and counted unless fp16's loss scale may be the cause.
        """
        config = self.config
        set_learning_rate(self.optimizer, config, self.step)
        self.optimizer.zero_grad()
        totals = torch.zeros(4)
        for part in range(config.optimizer.gradient_accumulation):
            if self.asked_to_stop and self.accelerator.num_processes == 1:
                return None
            totals[:3] += self.add_gradient(part) / config.optimizer.gradient_accumulation
        totals[3] = self.asked_to_stop
        reduced: Any = self.accelerator.reduce(totals.to(self.accelerator.device), "mean")
        totals = reduced.cpu()  # equal on all devices
        self.stopping = bool(totals[3])
        norm: Any = self.accelerator.clip_grad_norm_(self.models.weights, config.optimizer.max_grad_norm)
        finite = bool(torch.isfinite(totals[1:2]).all())
        if finite and torch.isfinite(norm):
            self.nonfinite, self.consistent = 0, False
            self.optimizer.step()
            if self.average is not None:
                self.average.step(self.models.weights)
            if not all(bool(torch.isfinite(weight).all()) for weight in self.models.weights):
                raise RealignError(f"The weights after step {self.step + 1} are not finite: {ADVICE}.")
        elif not (lower_scale(self.accelerator) and finite):
            self.nonfinite += 1
            if self.nonfinite > MAX_NONFINITE_STEPS:
                self.consistent = False  # these weights give no finite loss any more
                raise RealignError(f"{self.nonfinite} batches in a row were not finite: {ADVICE}.")
        row = dict(zip(("reward", "loss", "prior_loss"), totals[:3].tolist(), strict=True))
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def seeds(self, part: int, count: int) -> list[int]:
        """The seeds of the `count` images of batch `part` of the step on this device.

        Everything random in a step follows from them, and so from the seed, the step and the image's number: a run that
        is resumed, or split over more devices, draws the same.
        """
        batch = (self.step * self.config.optimizer.gradient_accumulation + part) * self.accelerator.num_processes
        first = (batch + self.accelerator.process_index) * count
        return [self.config.run.seed * 10**9 + first + i for i in range(count)]

    def _evaluate(self) -> dict[str, float]:
        """The reward on held-out prompts; if it is the best so far, the weights are exported."""
        texts = self.held_out.texts[: self.config.watch.evaluate_prompts]
        if not self._main or not texts or not self.config.watch.evaluate_every:
            return {}
        with swap_in_average(self.models.weights, self.average):
            reward = self.models.mean_reward(texts, self.sampling)
        self.rewards.append(reward)
        if reward > self.best:
            self.best, self.best_step = reward, self.step
            self._export("best")
        return {"held_out_reward": reward}

    def _log_samples(self) -> None:
        """A grid of samples for fixed prompts and seeds."""
        if self.config.watch.sample_every:
            texts = self.held_out.texts[:4]
            with swap_in_average(self.models.weights, self.average):
                self.watcher.draw(self.step, texts, lambda: to_pil(self.models.sample(texts, self.sampling)))

    def _restore(self) -> None:
        """Load the state of the validated checkpoint and print which settings changed since; if rewards cannot be
        compared any more, the best weights are chosen anew."""
        file, state, self.resumption.state = self.resumption.file, self.resumption.state, None
        if file is None:
            return
        for weight, stored in zip(self.models.weights, state["weights"], strict=True):
            weight.data.copy_(stored)
        groups = self.optimizer.state_dict()["param_groups"]  # AdamW's settings come from the configuration
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.average = make_average(self.models.weights, self.config.optimizer.ema, state["average"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.nonfinite, self.rewards, self.best = (state[k] for k in ("step", "bad", "rewards", "best"))
        self.best_step, self.saved = state.get("best_step", 0), self.step
        self.load_extra_state(state)
        self.accelerator.print(f"Going on from {file}, step {self.step} of {self.config.optimizer.steps}.")
        changes = self.resumption.changes
        if not self._main:
            return
        if changes.sentences:
            print(f"Changed since then: {'; '.join(changes.sentences)}.")
        if not changes.best_is_comparable:
            self.best, self.best_step, self.rewards = float("-inf"), 0, []
            aside = set_aside(self.output, ["best.safetensors"])
            moved = f"; the one so far is kept in '{aside}'" if aside else ""
            print(f"Its rewards cannot be compared with those to come: best.safetensors is chosen anew{moved}.")

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint, without the step."""
        return {
            "weights": [weight.detach() for weight in self.models.weights],
            "optimizer": self.optimizer.state_dict(),
            "average": self.average and self.average.state_dict(),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            "bad": self.nonfinite,
            "rewards": self.rewards,
            "best": self.best,
            "best_step": self.best_step,
            "config": self.config.to_dict(),
            provenance.KEY: self.origin,
            **self.extra_state(),
        }

    def _save(self) -> Path:
        """Write the checkpoint of this step and `last.safetensors`; returns the checkpoint's path."""
        if not self._main:
            self.saved = self.step
            return self.output
        state = self._state()
        state["weights"] = [weight.cpu() for weight in state["weights"]]
        try:
            validation.check_finite(state)
        except checkpoints.Unusable as why:
            raise RealignError(f"Step {self.step} is not kept, as {why}: {ADVICE}; {self._saved_so_far()}.") from why
        file = checkpoints.save(self.output / CHECKPOINTS, self.step, state, self.config.run.keep_last)
        self.saved = self.step
        self._export("last")
        return file

    def _export(self, name: str) -> None:
        """Write the LoRA or the whole UNet atomically as one file that ComfyUI loads."""
        rewards = self.rewards or [None]
        header = run_metadata(
            f"{self.output.name}-{name}",
            learning_rate=self.config.optimizer.learning_rate,
            config=self.config.to_dict(),
            prediction_type=self.models.sampler.scheduler.config.prediction_type,
            steps=self.step,
            resolution=self.models.resolution,
            prompts=self.prompts.texts,
            reward_before=rewards[0],
            reward_after=rewards[-1],
            thumbnail=samples.newest_picture(self.output / "samples", self.step),
        )
        write = save_lora if self.config.lora.train == "lora" else save_unet
        with swap_in_average(self.models.weights, self.average):
            write(self.models.sampler.unet, self.output / f"{name}.safetensors", header)

    def _export_folder(self) -> None:
        """Write the UNet in the diffusers layout to the folder `unet`, each file atomically."""
        if not self._main:
            return
        folder = self.output / "unet"
        partial = partial_path(folder)
        try:
            with swap_in_average(self.models.weights, self.average):
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

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _release(self) -> None:
        if self.folder is not None:
            self.folder.release()

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process


def main(run: type[Run], settings: type[TrainingConfig], name: str, description: str) -> None:
    """Parse the command line and train, or with `--dry-run` print the plan; errors become one line on stderr."""
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
