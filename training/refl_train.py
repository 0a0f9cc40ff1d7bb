"""Reward feedback learning (eq. 4-5): a LoRA or UNet that draws what the prompt says, by the gradient of a reward.

    python training/refl_train.py --config training/configs/demo.toml
    accelerate launch training/refl_train.py --config training/configs/sd15.toml --output out/mine

Each setting is an option here or stands in a TOML file (docs/training_settings.md). The run writes `log.csv`, sample
grids, checkpoints, `report.html`, and the trained weights as `last.safetensors` and `best.safetensors`, which ComfyUI
loads. The same command goes on from the last checkpoint; Ctrl-C saves one.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..rewards.combine import weighted_sum
from .data.pairs import Pairs
from .data.prior import folder_prior, frozen_prior, prior_captioner
from .loop.models import make_estimators
from .loop.rollout import Rollout
from .loop.run import Run, main
from .settings.refl import ReflConfig


class ReflRun(Run):
    """L_total = λ·φ(R) + L_pre (eq. 5) on fresh rollouts."""

    config: ReflConfig

    def prepare(self) -> None:
        config = self.config
        self.rollout = Rollout(self.models.sampler, config.rollout.rollout_steps, config.rollout.cfg)
        self.estimators = make_estimators(config, self.models.rewards)
        self.prior = self._prior() if config.prior.prior_weight else None

    def add_gradient(self, part: int) -> Tensor:
        """Add the gradient of one batch; returns its true reward, loss (eq. 5) and L_pre, [3].

        The backward pass has three parts, so that each frees its memory for the next: from the reward to the images,
        from the images to the weights, and that of L_pre.
        """
        config, models = self.config, self.models
        if not config.reward.reward_weight:
            return torch.tensor([math.nan, *self._add_prior_gradient(part)])
        texts, seeds, steps = self._draw_batch(part)
        noise, progress = models.sampler.noise(seeds), self._progress(steps)
        if config.rollout.judged == "finished":
            images = self.rollout.roll_out(texts, noise, steps, self.unet)
        else:
            images = self.rollout.predict_x0(texts, noise, steps[0], self.unet)
        pixels = images.detach().nan_to_num(0, 1, 0).requires_grad_()
        with models.rewards_on_device():
            R = weighted_sum(models.terms, {n: judge(pixels, texts) for n, judge in self.estimators.items()}, progress)
            loss = config.reward.reward_weight * F.relu(config.reward.margin - R).mean()  # λ·φ(R), eq. 5
            self.accelerator.backward(loss / config.optimizer.gradient_accumulation)
            reward = float(models.reward(pixels.detach().clamp(0, 1), texts, progress).mean())
        images.backward(pixels.grad)
        if not torch.isfinite(images).all():
            loss = loss * math.nan  # so that the batch is left out
        weighted, prior_loss = self._add_prior_gradient(part)
        return torch.tensor([reward, loss.item() + weighted, prior_loss])

    def _add_prior_gradient(self, part: int) -> tuple[float, float]:
        """Add the gradient of L_pre; returns L_pre times its weight, and L_pre."""
        config = self.config
        if self.prior is None:
            return 0.0, 0.0
        seeds = self.seeds(part, config.prior.prior_batch_size or config.optimizer.batch_size)
        loss = self.prior.loss(self.models.sampler, self.unet, seeds)
        self.accelerator.backward(config.prior.prior_weight * loss / config.optimizer.gradient_accumulation)
        return config.prior.prior_weight * loss.item(), loss.item()

    def _draw_batch(self, part: int) -> tuple[list[str], list[int], list[int]]:
        """The prompts and seeds of a batch, and the rollout steps that get a gradient."""
        config = self.config
        shared = random.Random(f"{config.run.seed} {self.step} {part}")
        window = range(config.rollout.first_gradient_step, config.rollout.rollout_steps)
        steps = shared.sample(window, config.rollout.gradient_steps)
        seeds = self.seeds(part, config.optimizer.batch_size)
        texts = [random.Random(f"prompt {seed}").choice(self.prompts.texts) for seed in seeds]
        torch.manual_seed(seeds[0])  # for sampled captions
        return texts, seeds, steps

    def _progress(self, steps: Sequence[int]) -> float:
        """How far the rewards' weights have gone from their first to their second value, from 0 to 1."""
        if self.config.reward.schedule == "steps":
            return self.step / max(1, self.config.optimizer.steps - 1)
        return sum(steps) / len(steps) / max(1, self.config.rollout.rollout_steps - 1)

    def _prior(self) -> Pairs:
        config, sampler = self.config, self.models.sampler
        if config.prior.prior != "frozen":
            folder, report = Path(config.prior.prior), self.accelerator.print
            return folder_prior(folder, sampler, self.models.resolution, config.prior.prior_min_timestep, report)
        captioner = prior_captioner(config, self.models)
        networks = [] if captioner is None else [captioner.model]
        bar = tqdm(total=config.prior.prior_images, desc="images of the frozen model", disable=not self._main)
        with bar, self.accelerator.main_process_first(), self.models.rewards_on_device(*networks):
            return frozen_prior(sampler, captioner, self.prompts.texts, config, bar.update)


if __name__ == "__main__":
    main(ReflRun, ReflConfig, "refl_train", __doc__ or "")
