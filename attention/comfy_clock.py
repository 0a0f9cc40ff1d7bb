"""Where in a ComfyUI sampler's run a noise level is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from comfy.model_sampling import CONST, ModelSamplingCosmosRFlow, ModelSamplingDiscrete, ModelSamplingDiscreteEDM
from torch import Tensor


class Clock:
    """Tells the time of a noise level without waiting for the device: what it compares with is copied once a run."""

    def __init__(self, model_sampling: Any, sigmas: Tensor) -> None:
        """sigmas: [steps + 1], the noise levels of the run."""
        self.model_sampling = copy.copy(model_sampling)  # what else another pack has put on it stays one
        self.model_sampling._buffers = {
            name: buffer.cpu() for name, buffer in model_sampling.named_buffers(recurse=False)
        }
        self.sigmas = sigmas.float().cpu()

    def at(self, sigma: float) -> tuple[float, float]:
        """t/T of eq. 9 in [0, 1], and the index of the step / number of steps in [0, 1)."""
        return noise_time(self.model_sampling, torch.tensor([sigma])), progress(self.sigmas, sigma)


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


def progress(sigmas: Tensor, sigma: float) -> float:
    """Index of the step that sigma belongs to / number of steps: also right for a sampler's half steps."""
    if len(sigmas) < 2:
        return 0.0
    begun = int((sigmas[:-1] >= sigma * (1 - 1e-5)).sum())
    return max(begun - 1, 0) / (len(sigmas) - 1)
