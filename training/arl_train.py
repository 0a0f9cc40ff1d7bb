"""Assemble reward-ranked learning (FineRewards, arXiv 2305.19599 v1): fine-tuning on the best of a model's own images.

    python training/arl_train.py --config training/configs/arl-demo.toml
    accelerate launch training/arl_train.py --config training/configs/arl-sd15.toml --output out/mine

A round draws K images of each of its prompts, ranks them by each reward for itself, and adds the ranks; the denoising
loss on the winners makes the model draw more of their kind. No reward needs a gradient. Settings, files, resuming and
Ctrl-C are as in `refl_train.py`; a round's images are kept beside the run in `rounds/`, with a picture of some.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import math
from typing import Any

import torch
from torch import Tensor

from .data.candidates import Round, draw_round, fingerprint_weights, mean_reward, read_round
from .data.pairs import Pairs
from .loop.optimization import swap_in_average
from .loop.run import Run
from .loop.script import main
from .settings.arl import ArlConfig


class ArlRun(Run):
    """The denoising loss on each round's winners."""

    drawn: Round | None = None
    drawn_by: tuple[int, str] = (-1, "")
    """The round that was begun last, and the fingerprint of the weights that drew it, which have changed since."""

    def prepare_step(self) -> None:
        """Draw and rank the images of a new round, but for those that are there from an earlier start."""
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
        """Add the gradient of one batch of winners; the mean reward of the round's images, and the loss: [3]."""
        loss = self.pairs.loss(self.models.sampler, self.unet, self.seeds(part, self.config.optimizer.batch_size))
        self.accelerator.backward(loss / self.config.optimizer.gradient_accumulation)
        return torch.tensor([self.reward, loss.item(), math.nan])

    def extra_state(self) -> dict[str, Any]:
        return {"drawn_by": self.drawn_by}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.drawn_by = tuple(state["drawn_by"])


if __name__ == "__main__":
    main(ArlRun, ArlConfig, "arl_train", __doc__)
