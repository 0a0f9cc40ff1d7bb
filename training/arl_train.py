"""Assemble reward-ranked learning (FineRewards, arXiv 2305.19599 v1): fine-tuning on the best of a model's own images.

    python training/arl_train.py --config training/configs/arl-demo.toml
    accelerate launch training/arl_train.py --config training/configs/arl-sd15.toml --output out/mine

A round samples K images per prompt, ranks them by each reward, and adds the ranks; the denoising loss on the winners
makes the model draw more of their kind. No reward needs a gradient. Settings, files, resuming and Ctrl-C are as in
`refl_train.py`; the winners of each round and a picture of some images are kept in `rounds/`.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .data.candidates import Round, draw_round, fingerprint_weights, mean_reward, read_round
from .data.pairs import Pairs
from .loop.optimization import swap_in_average
from .loop.run import Run, main
from .settings.arl import ArlConfig


class ArlRun(Run):
    """The denoising loss on each round's winners."""

    config: ArlConfig
    drawn: Round | None = None
    drawn_by: tuple[int, str] = (-1, "")
    """The number of the last round that was begun, and the fingerprint of the weights that drew its images."""

    def prepare_step(self) -> None:
        """Draw and rank the images of a new round; those of an earlier start are read."""
        config, models, number = self.config, self.models, self.step // self.config.steps_per_round
        if self.drawn is not None and self.drawn.number == number:
            return
        if self.drawn_by[0] != number:
            self.drawn_by = number, fingerprint_weights(models.weights)
        weights = self.drawn_by[1]
        share = self.accelerator.process_index, self.accelerator.num_processes
        with swap_in_average(models.weights, self.average):
            stop = {"share": share, "should_stop": lambda: self.asked_to_stop}
            draw_round(config, models, self.prompts.texts, number, weights, **stop)
        self.agree_to_stop()
        if not self.stopping:
            self.drawn = read_round(config, models, self.prompts.texts, number, weights)
            self.pairs = Pairs(self.drawn.latents, self.drawn.prompts, config.rounds.min_timestep)
            self.reward = mean_reward(models, self.drawn.scores)

    def add_gradient(self, part: int) -> Tensor:
        """Add the gradient of one batch of winners; returns the round's mean reward, the loss and NaN, [3]."""
        loss = self.pairs.loss(self.models.sampler, self.unet, self.seeds(part, self.config.optimizer.batch_size))
        self.accelerator.backward(loss / self.config.optimizer.gradient_accumulation)
        return torch.tensor([self.reward, loss.item(), math.nan])

    def extra_state(self) -> dict[str, Any]:
        return {"drawn_by": self.drawn_by}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.drawn_by = tuple(state["drawn_by"])


if __name__ == "__main__":
    main(ArlRun, ArlConfig, "arl_train", __doc__ or "")
