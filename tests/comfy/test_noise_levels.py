"""Which time and step a noise level is, whatever the model counts its noise in."""

import itertools

import comfy.model_sampling
import pytest
import torch
from realigndiff.attention.comfy.clock import Clock

DISCRETE = comfy.model_sampling.ModelSamplingDiscrete()
RUN = [*DISCRETE.sigmas[[999, 799, 599, 399, 199]].tolist(), 0.0]


def edm(sigma_data):
    sampling = comfy.model_sampling.ModelSamplingContinuousEDM()
    sampling.set_parameters(0.002, 120.0, sigma_data)
    return sampling


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [950, 700, 20])
def test_the_time_of_a_noise_level_is_that_at_which_stable_diffusion_is_as_noisy(sigma_data, t):
    """An image whose values spread by `sigma_data` is as noisy as one that spreads by 1 with that times less noise."""
    sigma = float(DISCRETE.sigmas[t]) * sigma_data
    assert Clock(edm(sigma_data), torch.tensor(RUN)).at(sigma)[0] == pytest.approx(t / 1000, rel=1e-3)


@pytest.mark.parametrize("off", [0.0, 3e-6, -3e-6, 1e-7, -1e-7])
def test_a_noise_level_that_is_off_by_rounding_is_the_same_step(off):
    """Samplers calculate levels in other precisions, as by exp(log σ)."""
    clock = Clock(DISCRETE, torch.tensor(RUN))
    for step, sigma in enumerate(RUN[:-1]):
        assert clock.at(sigma * (1 + off))[1] == pytest.approx(step / 5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_noise_level_between_two_belongs_to_the_step_that_begins_above_it(kind):
    clock = Clock(DISCRETE, torch.tensor(RUN, dtype=kind))
    for step, (begins, ends) in enumerate(itertools.pairwise(RUN)):
        assert clock.at(0.9 * begins + 0.1 * ends)[1] == pytest.approx(step / 5)
        assert clock.at(0.01 * begins + 0.99 * ends)[1] == pytest.approx(step / 5)
