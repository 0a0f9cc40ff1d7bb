"""Where in a ComfyUI sampler's run a call of the model is: its t/T of eq. 9, and its step."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from comfy.model_sampling import CONST, ModelSamplingCosmosRFlow, ModelSamplingDiscrete, ModelSamplingDiscreteEDM
from torch import Tensor

EXTRA_CALLS = {
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
TOLERANCE = 1e-5
"""Relative difference up to which two sigmas are the same."""


class Clock:
    """Gives t/T and the step of each call of a model, without waiting for the device.

    `count_call` comes before each call by the sampler, `report` whenever the sampler reports a step.

    Sigma alone does not tell the step. Step i begins at σ_i, but its corrector or half step may be at σ_(i+1), where
    step i + 1 begins, or below. Samplers report a step after its first call; so where a sampler is known to call again
    within a step, or has done so in the step before, that many calls after the report belong to the reported step.
    Samplers that report nothing, or have sigmas of their own (dpm_fast, dpm_adaptive), go by sigma.
    """

    def __init__(self, model_sampling: Any, sigmas: Tensor, extra_calls: int = 0) -> None:
        """sigmas: [steps + 1], those of the run. extra_calls: the sampler's entry in `EXTRA_CALLS`, or 0."""
        self.model_sampling = copy.copy(model_sampling)  # a copy also of what another pack has put there
        buffers = model_sampling.named_buffers(recurse=False)
        self.model_sampling._buffers = {name: buffer.cpu() for name, buffer in buffers}
        self.sigmas, self.steps = sigmas.float().cpu(), max(len(sigmas) - 1, 0)
        self._extra_calls = extra_calls
        self._last = math.inf, 0  # the sigma and the step of the last call
        self._reported: int | None = None
        self._at_next: list[bool] = []  # for each call since the report, whether it was at the next step's sigma

    def at(self, sigma: float) -> tuple[float, float]:
        """t/T in [0, 1] at sigma, and the index of the step / number of steps in [0, 1)."""
        last, step = self._last
        step = step if last == sigma else self._step_at(sigma)
        return timestep_fraction(self.model_sampling, torch.tensor([sigma])), step / max(self.steps, 1)

    def count_call(self, sigma: float) -> None:
        """The sampler calls the model at sigma."""
        step = self._step_at(sigma)
        if self._reported is not None:
            following = self._reported + 1
            at_next = following < self.steps and math.isclose(sigma, self.sigmas[following], rel_tol=TOLERANCE)
            if len(self._at_next) < self._extra_calls and not (at_next and any(self._at_next)):
                step = self._reported
            self._at_next.append(at_next)
        self._last = sigma, step

    def report(self, step: int) -> None:
        """The sampler reports a step, counted from 0, whose first call was the last one."""
        if self._step_at(self._last[0]) != step:
            self._reported = None  # it goes by other sigmas
            return
        if self._reported is not None and self._at_next:
            self._extra_calls = len(self._at_next) - 1
        self._reported, self._at_next = step, []

    def _step_at(self, sigma: float) -> int:
        """The step that leads from sigma to a lower one."""
        return max(int((self.sigmas[:-1] >= sigma * (1 - TOLERANCE)).sum()) - 1, 0)


def timestep_fraction(model_sampling: Any, sigma: Tensor) -> float:
    """t/T of eq. 9 in [0, 1] at sigma [1], on the CPU as all of `model_sampling` is.

    Flow models mix (1 − t)·image + t·noise: there t/T is that t. Other models with continuous sigmas (EDM) count no
    timesteps: there it is the t/T at which Stable Diffusion is as noisy.
    """
    if isinstance(model_sampling, CONST):
        return min(float(sigma), 1.0)
    if isinstance(model_sampling, ModelSamplingCosmosRFlow):
        return float(sigma / (sigma + 1))
    is_discrete = isinstance(model_sampling, ModelSamplingDiscrete)
    if not is_discrete or isinstance(model_sampling, ModelSamplingDiscreteEDM):
        sigma = sigma / float(getattr(model_sampling, "sigma_data", 1.0))
        model_sampling = ModelSamplingDiscrete()
    return float(model_sampling.timestep(sigma)) / model_sampling.num_timesteps
