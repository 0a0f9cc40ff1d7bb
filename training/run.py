"""One fine-tuning run, from its settings to its files; what a step learns from is the subclass's.

`refl_train.py` and `arl_train.py` each add a dozen lines that make a gradient; steps, checkpoints, evaluation, samples,
log, report and export are here.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import RealignError
from ..perception.images import to_pil
from ..pipeline.settings import SamplingSettings
from . import checkpoints, export, trackers
from .config import parse, to_dict
from .models import Trained, load
from .optimization import accelerator, adamw, averaged, lower_scale, moving_average
from .plan import plan
from .prompts import load_prompts
from .settings import TrainingConfig
from .watching import Watcher

SEED_OF_EVALUATION = 10**7


def main(run: type[Run], settings: type[TrainingConfig], name: str, description: str) -> None:
    """What a training script does: read its settings, and run or tell what it would do."""
    try:
        config = parse(settings, description=description)
        trackers.check(config.log_with)
        if config.dry_run:
            print(plan(config))
        else:
            run(config).train()
    except RealignError as error:
        sys.exit(f"{name}: {error}")


class Run:
    """One run; a subclass says in `add_gradient` what a step learns from."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.output = config, Path(config.output)
        self.accelerator = accelerator(config)
        self.prompts, self.held_out = load_prompts(config)
        for problem in (*self.prompts.problems, *self.held_out.problems):
            self.accelerator.print(problem)
        self.watcher = Watcher(config, self.accelerator)
        self.models: Trained = load(config, self.accelerator.device)
        self.optimizer = adamw(self.models.weights, config)
        self.unet, self.optimizer = self.accelerator.prepare(self.models.sampler.unet, self.optimizer)
        self.average = moving_average(self.models.weights, config.ema)
        self.step, self.bad, self.rewards, self.best = 0, 0, [], float("-inf")
        self.best_step = 0
        self.asked_to_stop = self.stopping = False

    def train(self) -> None:
        """All steps, then the files."""
        signal.signal(signal.SIGINT, self._stop)
        self._resume()
        config, watcher = self.config, self.watcher
        watcher.begin(self.step)
        if not self.step:
            self._draw()
            watcher.log({"step": 0, **self._look()})
        while self.step < config.steps and not self.stopping:
            self.prepare_step()
            if self.stopping:
                break
            began = time.monotonic()
            row = self._take_step()
            self.step += 1
            row |= {"step": self.step, "seconds": time.monotonic() - began, "bad_batches": self.bad}
            watcher.show(row)
            if self._due(config.sample_every):
                self._draw()  # before the evaluation: the best weights' thumbnail is then of their own step
            row |= self._look() if self._due(config.evaluate_every) else {}
            watcher.log(row)
            if self._due(config.save_every):
                self._save()
        kept = self._save()
        watcher.end()
        if self.step < config.steps:
            self.accelerator.print(f"Stopped at step {self.step}; the same command goes on from {kept}.")
            return
        if config.train == "unet":
            self._export_folder()
        name = "best" if self.best_step else "last"  # the best may be the model before training
        self.accelerator.print(f"Trained; load {self.output / f'{name}.safetensors'} in ComfyUI.")

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

    def _stop(self, *_: Any) -> None:
        """Ctrl-C: end with a step, so that no weight is changed twice and all devices agree; once more: at once."""
        self.asked_to_stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _take_step(self) -> dict[str, float]:
        """One step of the optimiser; a batch that is not finite is left out and counted."""
        config = self.config
        self._set_learning_rate()
        self.optimizer.zero_grad()
        totals = torch.zeros(4)
        for part in range(config.gradient_accumulation):
            totals[:3] += self.add_gradient(part) / config.gradient_accumulation
        totals[3] = self.asked_to_stop
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), "mean").cpu()  # one mind on all devices
        self.stopping = bool(totals[3])
        norm = self.accelerator.clip_grad_norm_(self.models.weights, config.max_grad_norm)
        finite = bool(torch.isfinite(totals[1:2]).all())
        if finite and torch.isfinite(norm):
            self.bad = 0
            self.optimizer.step()
            if self.average is not None:
                self.average.step(self.models.weights)
        elif not (lower_scale(self.accelerator) and finite):
            self.bad += 1
            if self.bad > config.max_bad_batches:
                raise RealignError(
                    f"{self.bad} batches in a row were not finite: lower learning_rate or train in fp32; the last "
                    "checkpoint is good."
                )
        row = dict(zip(("reward", "loss", "prior_loss"), totals[:3].tolist(), strict=True))
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def seeds(self, part: int, count: int) -> list[int]:
        """Of the images of a pass on this device.

        Everything random in a step follows from them, so from the seed, the step and the image's number: a run that is
        resumed, or split over more devices, draws the same.
        """
        at = (self.step * self.config.gradient_accumulation + part) * self.accelerator.num_processes
        first = (at + self.accelerator.process_index) * count
        return [self.config.seed * 10**9 + first + i for i in range(count)]

    def _look(self) -> dict[str, float]:
        """The reward on held-out prompts from seeds of their own; the best weights so far are kept."""
        texts = self.held_out.texts[: self.config.evaluate_prompts]
        if not self._main or not texts or not self.config.evaluate_every:
            return {}
        scores = []
        count = self.models.sampler.at_once
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
        if self.config.sample_every:
            texts = self.config.sample_prompts or self.held_out.texts[:4]
            self.watcher.draw(self.step, texts, lambda: to_pil(self._images(texts, 0)))

    def _images(self, texts: Sequence[str], first: int) -> Tensor:
        """One image a text, as the rollout samples, from seeds that no training step uses."""
        settings = SamplingSettings(steps=self.config.rollout_steps, cfg=self.config.cfg)
        noise = self.models.sampler.noise([SEED_OF_EVALUATION + first + i for i in range(len(texts))])
        with averaged(self.models.weights, self.average):
            return self.models.sampler.sample(texts, noise, settings)

    def _resume(self) -> None:
        config = self.config
        files = checkpoints.found(config.resume, self.output)
        if not files:
            return
        file, state = checkpoints.load(files)
        checkpoints.check_same(file, state.get("config", {}), to_dict(config))
        for weight, kept in zip(self.models.weights, state["weights"], strict=True):
            weight.data.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = moving_average(self.models.weights, config.ema, state.get("average"))
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.bad, self.rewards, self.best = (state[k] for k in ("step", "bad", "rewards", "best"))
        self.best_step = state.get("best_step", 0)
        self.restore(state)
        self.accelerator.print(f"Going on from {file}, step {self.step} of {config.steps}.")

    def _save(self) -> Path:
        state = {
            "weights": [weight.detach().cpu() for weight in self.models.weights],
            "optimizer": self.optimizer.state_dict(),
            "average": self.average and self.average.state_dict(),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            "bad": self.bad,
            "rewards": self.rewards,
            "best": self.best,
            "best_step": self.best_step,
            "config": to_dict(self.config),
            **self.own_state(),
        }
        if not self._main:
            return self.output
        file = checkpoints.save(self.output / "checkpoints", self.step, state, self.config.keep_last)
        self._export("last")
        return file

    def _export(self, name: str) -> None:
        """The weights as ComfyUI loads them."""
        rewards = self.rewards or [None]
        told = export.run_metadata(
            f"{self.output.name}-{name}",
            steps=self.step,
            learning_rate=self.config.learning_rate,
            config=to_dict(self.config),
            prompts=self.prompts.texts,
            reward_before=rewards[0],
            reward_after=rewards[-1],
            resolution=self.config.resolution,
            prediction_type=self.models.sampler.scheduler.config.prediction_type,
            thumbnail=self.watcher.thumbnail(self.step),
        )
        self.output.mkdir(parents=True, exist_ok=True)
        write = export.save_lora if self.config.train == "lora" else export.save_unet
        with averaged(self.models.weights, self.average):
            write(self.models.sampler.unet, self.output / f"{name}.safetensors", told)

    def _export_folder(self) -> None:
        """The whole UNet in the diffusers layout."""
        if not self._main:
            return
        try:
            with averaged(self.models.weights, self.average):
                self.models.sampler.unet.save_pretrained(self.output / "unet")
        except (OSError, SafetensorError) as error:
            raise RealignError(
                f"The UNet's folder could not be written to '{self.output}' ({error}): make room and start again; "
                "last.safetensors is there."
            ) from error

    def _set_learning_rate(self) -> None:
        """Linear warm-up, constant, linear decay."""
        rise = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        fall = min(1.0, (self.config.steps - self.step) / max(1, self.config.decay_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(rise, fall)

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process
