"""Which calls of a model are re-weighted, for every sampler: those of the steps between start and end.

The truth is read from the sampler itself, while it runs: the number of the step that its loop is in.
"""

import sys
from collections.abc import Iterator

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy", "inference_mode")

STEPS = 6
RANGES = [(0.0, 1 / STEPS), (1 / STEPS, 0.5), (0.3, 0.7)]
"""Also the first step alone, and ranges that do not begin or end with a step."""
WITHOUT_STEPS = ("dpm_fast", "dpm_adaptive")
"""Samplers that go by noise levels of their own."""


def step_of_the_sampler() -> int | None:
    """The number of the step that the running sampler is in; None where it counts none."""
    frame, found = sys._getframe(), None
    while frame is not None:
        file, variables = frame.f_code.co_filename, frame.f_locals
        if file == __file__ and "own_step" in variables:
            found = variables["own_step"]
        elif file.endswith("uni_pc.py") and "step_index" in variables:
            found = variables["step_index"]
        elif file.endswith("k_diffusion/sampling.py") and "sigmas" in variables and "i" in variables:
            found = variables["i"]
        frame = frame.f_back
    return found


def calls_of(tiny, settings, **options):
    """For each call of the model with regions: (noise level, step of the sampler, whether it was re-weighted)."""
    from comfy.patcher_extension import WrappersMP
    from realigndiff.attention.comfy.conditioning import attach
    from realigndiff.attention.comfy.model import realign_model
    from realigndiff.attention.comfy.patches import CALL

    from .tiny import REGIONS

    calls = []

    def trivial(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conds):
        calls.append((float(t[0]), step_of_the_sampler(), CALL in transformer_options))
        return 0.5 * x

    model = realign_model(tiny.model, settings)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "trivial", trivial)
    positive = attach(tiny.positive, tiny.clip, [REGIONS])
    tiny.sample(model, positive, noise=tiny.noise(height=8, width=8), **{"steps": STEPS, **options})
    return calls


def settings_of(window):
    from realigndiff.attention.equation.settings import ModulationSettings

    return ModulationSettings(start=window[0], end=window[1], power=0)


def wrong(calls, window, steps=STEPS) -> Iterator[tuple[float, int, bool]]:
    for sigma, step, modulated in calls:
        if modulated != (window[0] <= step / steps < window[1]):
            yield sigma, step, modulated


@pytest.mark.parametrize("window", RANGES)
def test_every_call_is_re_weighted_by_the_step_that_makes_it_under_every_sampler(tiny, window):
    from comfy.samplers import SAMPLER_NAMES

    found = {}
    for sampler in sorted(set(SAMPLER_NAMES) - set(WITHOUT_STEPS) - {"ar_video"}):
        calls = calls_of(tiny, settings_of(window), sampler_name=sampler, scheduler="normal")
        assert {step for _, step, _ in calls} == set(range(STEPS)), sampler
        found[sampler] = list(wrong(calls, window))
    assert {sampler: calls for sampler, calls in found.items() if calls} == {}


@pytest.mark.parametrize("sampler", ["heun", "heunpp2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "sa_solver_pece"])
@pytest.mark.parametrize("scheduler", ["karras", "exponential"])
def test_steps_of_another_schedule_and_of_a_part_of_a_run_are_counted(tiny, sampler, scheduler):
    window = 0.0, 0.5
    for options, steps in (({"start_step": 1, "last_step": 5}, 4), ({"denoise": 0.6}, STEPS), ({"cfg": 1.0}, STEPS)):
        calls = calls_of(tiny, settings_of(window), sampler_name=sampler, scheduler=scheduler, **options)
        assert max(step for _, step, _ in calls) == steps - 1
        assert not list(wrong(calls, window, steps)), options


@pytest.mark.parametrize("sampler", ["dpm_2_ancestral", "dpmpp_2s_ancestral", "heun", "seeds_2"])
def test_steps_of_a_flow_model_are_counted(tiny, sampler):
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass

    patched = tiny.model.clone()
    patched.add_object_patch("model_sampling", Flow())
    flow = type(tiny)()
    vars(flow).update(model=patched, clip=tiny.clip)
    for window in RANGES:
        calls = calls_of(flow, settings_of(window), sampler_name=sampler, scheduler="simple")
        assert not list(wrong(calls, window))


@pytest.mark.parametrize("sampler", WITHOUT_STEPS)
def test_a_sampler_with_noise_levels_of_its_own_goes_by_the_noise_level(tiny, sampler):
    calls = calls_of(tiny, settings_of((0.0, 0.5)), sampler_name=sampler, scheduler="normal")
    modulated, plain = ([sigma for sigma, _, now in calls if now == kind] for kind in (True, False))
    assert modulated and plain and min(modulated) > max(plain)


def sampled_by(tiny, window, function, steps=STEPS):
    """As `calls_of`, by a sampler that another pack might bring."""
    from unittest.mock import patch

    import comfy.samplers

    with patch.object(comfy.samplers, "sampler_object", lambda name: comfy.samplers.KSAMPLER(function)):
        return calls_of(tiny, settings_of(window), scheduler="normal", steps=steps)


def corrected(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that nobody knows, with a corrector at the noise level that a step ends at."""
    rows = x.new_ones([x.shape[0]])
    for own_step in range(len(sigmas) - 1):
        denoised = model(x, sigmas[own_step] * rows, **extra_args)
        callback({"x": x, "i": own_step, "sigma": sigmas[own_step], "denoised": denoised})
        if sigmas[own_step + 1] > 0:
            model(x, sigmas[own_step + 1] * rows, **extra_args)
    return x


def test_an_unknown_sampler_is_understood_after_its_first_step(tiny):
    for window in ((0.0, 0.5), (2 / STEPS, 1.0)):
        assert not list(wrong(sampled_by(tiny, window, corrected), window))


def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that reports no step."""
    for own_step in range(len(sigmas) - 1):
        model(x, sigmas[own_step] * x.new_ones([x.shape[0]]), **extra_args)
    return x


def restarted(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that goes back to an earlier noise level, and reports more steps than the run has."""
    for number, own_step in enumerate([0, 1, 2, 3, 1, 2, 3, 4, 5]):
        denoised = model(x, sigmas[own_step] * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": number, "sigma": sigmas[own_step], "denoised": denoised})
    return x


@pytest.mark.parametrize("function", [silent, restarted])
def test_a_sampler_that_reports_no_steps_or_others_goes_by_the_noise_level(tiny, function):
    for window in RANGES:
        assert not list(wrong(sampled_by(tiny, window, function), window))


def test_guidance_in_two_calls_of_the_network_is_one_call_of_the_sampler(tiny, monkeypatch):
    """ComfyUI splits a batch that does not fit into memory."""
    from comfy.model_base import BaseModel

    monkeypatch.setattr(BaseModel, "memory_required", lambda self, *args, **kwargs: 1e30)
    window = 0.0, 0.5
    calls = calls_of(tiny, settings_of(window), sampler_name="heun", scheduler="normal")
    assert len(calls) == 2 * (2 * STEPS - 1)
    modulated = [step for _, step, now in calls if now]
    assert modulated == [0, 0, 1, 1, 2, 2]  # the conditional half of both calls of each step


def test_the_samplers_own_callback_is_called_as_always(tiny):
    from realigndiff.attention.comfy.model import realign_model

    reported = []
    tiny.sample(
        realign_model(tiny.model, settings_of((0.0, 0.5))),
        tiny.positive,
        noise=tiny.noise(height=8, width=8),
        steps=3,
        callback=lambda step, denoised, x, total: reported.append((step, denoised.shape, x.shape, total)),
    )
    shape = torch.Size([1, 4, 8, 8])
    assert reported == [(step, shape, shape, 3) for step in range(3)]
