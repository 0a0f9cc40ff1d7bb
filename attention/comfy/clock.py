"""Where in a ComfyUI sampler's run a call of the model is: its time t/T, and the step that makes it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from comfy.model_sampling import CONST, ModelSamplingCosmosRFlow, ModelSamplingDiscrete, ModelSamplingDiscreteEDM
from torch import Tensor

MORE_CALLS = {
    "sample_heun": 1,
    "sample_heunpp2": 2,
    "sample_exp_heun_2_x0": 1,
    "sample_exp_heun_2_x0_sde": 1,
    "sample_dpm_2": 1,
    "sample_dpm_2_ancestral": 1,
    "sample_dpmpp_2s_ancestral": 1,
    "sample_dpmpp_2s_ancestral_cfg_pp": 1,
    "sample_dpmpp_sde": 1,
    "sample_dpmpp_sde_gpu": 1,
    "sample_seeds_2": 1,
    "sample_seeds_3": 2,
}
"""ComfyUI's samplers that call the model again within a step, after the step's callback, and how often at most."""
NEAR = 1e-5
"""Relative difference up to which two noise levels are the same."""


class Clock:
    """Tells the time and the step of a call without waiting for the device: what it compares with is copied once a run.

    `call` comes before each call of the model by the sampler, `began` whenever the sampler reports a step.
    """

    def __init__(self, model_sampling: Any, sigmas: Tensor, more_calls: int = 0) -> None:
        """sigmas: [steps + 1], the noise levels of the run. more_calls: the sampler's entry in `MORE_CALLS`, or 0."""
        self.model_sampling = copy.copy(model_sampling)  # what else another pack has put on it stays one
        self.model_sampling._buffers = {
            name: buffer.cpu() for name, buffer in model_sampling.named_buffers(recurse=False)
        }
        self.steps = Steps(sigmas.float().cpu(), more_calls)
        self._call: tuple[float, int] | None = None

    def call(self, sigma: float) -> None:
        """The sampler calls the model at the noise level sigma."""
        self._call = sigma, self.steps.call(sigma)

    def began(self, step: int) -> None:
        """The sampler reports step `step`, counted from 0."""
        self.steps.began(step)

    def at(self, sigma: float) -> tuple[float, float]:
        """t/T of eq. 9 in [0, 1] at the noise level sigma, and the index of the step / number of steps in [0, 1)."""
        call = self._call
        step = call[1] if call is not None and call[0] == sigma else self.steps.of_level(sigma)
        return noise_time(self.model_sampling, torch.tensor([sigma])), step / max(self.steps.count, 1)


class Steps:
    """Which step of a run each call of the model belongs to: the step that makes it.

    The noise level alone does not tell. Step i begins at σ_i, but its corrector or half step may be at σ_(i+1), where
    step i + 1 begins, or below. Samplers report a step after its first call; so where a sampler is known to call again
    within a step, or has done so in the step before, that many calls after the report belong to the reported step.
    Samplers that report nothing, or have noise levels of their own (dpm_fast, dpm_adaptive), go by the noise level.
    """

    def __init__(self, sigmas: Tensor, more_calls: int = 0) -> None:
        """sigmas: [steps + 1] on the CPU; more_calls: how often the sampler calls again within its first step."""
        self.sigmas, self.count = sigmas, max(len(sigmas) - 1, 0)
        self._more_calls = more_calls
        self._step: int | None = None  # the reported one
        self._next: list[bool] = []  # for each call since then, whether it was at the next step's noise level
        self._sigma = math.inf

    def call(self, sigma: float) -> int:
        """The step of a call at the noise level sigma, which has not been counted yet."""
        step, self._sigma = self.of_level(sigma), sigma
        if self._step is None:
            return step
        begins = self._step + 1 < self.count and math.isclose(sigma, self.sigmas[self._step + 1], rel_tol=NEAR)
        again = len(self._next) < self._more_calls and not (begins and any(self._next))
        self._next.append(begins)
        return self._step if again else step

    def began(self, step: int) -> None:
        """The sampler reports a step, whose first call was the last one."""
        if self.of_level(self._sigma) != step:
            self._step = None  # it goes by other noise levels
            return
        if self._step is not None and self._next:
            self._more_calls = len(self._next) - 1
        self._step, self._next = step, []

    def of_level(self, sigma: float) -> int:
        """The step in which the noise falls from sigma."""
        return max(int((self.sigmas[:-1] >= sigma * (1 - NEAR)).sum()) - 1, 0)


def noise_time(model_sampling: Any, sigma: Tensor) -> float:
    """t/T of eq. 9 in [0, 1] at the noise level sigma [1], on the CPU as all of `model_sampling` is.

    Flow models mix (1 − t)·image + t·noise: there t/T is that t. Other models of continuous noise (EDM) count no
    timesteps: there it is the t/T at which Stable Diffusion is as noisy.
    """
    if isinstance(model_sampling, CONST):
        return min(float(sigma), 1.0)
    if isinstance(model_sampling, ModelSamplingCosmosRFlow):
        return float(sigma / (sigma + 1))
    counts = isinstance(model_sampling, ModelSamplingDiscrete) and not isinstance(
        model_sampling, ModelSamplingDiscreteEDM
    )
    if not counts:
        sigma = sigma / float(getattr(model_sampling, "sigma_data", 1.0))
        model_sampling = ModelSamplingDiscrete()
    return float(model_sampling.timestep(sigma)) / model_sampling.num_timesteps
