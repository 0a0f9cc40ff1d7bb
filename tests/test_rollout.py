"""The rollout of reward feedback learning on the demo model."""

from types import SimpleNamespace

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.close import SAMPLING, assert_close
from realigndiff.tests.miniatures import PREDICTIONS, predicting
from realigndiff.training.loop.rollout import Rollout

PROMPTS = ["a red circle and a blue square", "a green ring"]


@pytest.fixture(scope="module")
def sampler():
    return DiffusersSampler.load(WEIGHTS / "stable_diffusion")


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_last_step_predicts_the_image_that_sampling_ends_with(sampler, cfg):
    noise = sampler.noise([22, 3])
    predicted = Rollout(sampler, 8, cfg).predict_x0(PROMPTS, noise, 7).detach().clamp(0, 1)
    sampled = sampler.sample(PROMPTS, noise, SamplingSettings(steps=8, cfg=cfg))
    assert (predicted - sampled).abs().mean() < 0.02  # sampling ends a step short of x_0


def test_the_gradient_is_that_of_one_step_alone(sampler):
    """The same step, taken from the same x_t by hand."""
    rollout, noise = Rollout(sampler, 8, 3.0), sampler.noise([22, 3])
    weight = sampler.unet.conv_out.weight
    for parameter in sampler.unet.parameters():
        parameter.requires_grad_(parameter is weight)
    rollout.predict_x0(PROMPTS, noise, 5).sum().backward()
    ours, weight.grad = weight.grad.clone(), None

    words, scheduler = sampler.encode_prompts(PROMPTS).clone(), rollout.scheduler
    x = noise.clone()
    with torch.no_grad():
        for t in scheduler.timesteps[:5]:
            x = scheduler.step(rollout.predict(sampler.unet, x, t, words), t, x).prev_sample
    t = scheduler.timesteps[5]
    worded = sampler.unet(x, t, words.prompt_embeds).sample
    with torch.no_grad():
        empty = sampler.unet(x, t, sampler.encode_prompts(["", ""]).prompt_embeds).sample
    alpha = scheduler.alphas_cumprod[t]
    x0 = (x - (1 - alpha).sqrt() * (empty + 3.0 * (worded - empty))) / alpha.sqrt()
    (sampler.vae.decode(x0 / sampler.vae.config.scaling_factor).sample / 2).sum().backward()
    assert_close(ours, weight.grad, SAMPLING)
    sampler.unet.requires_grad_(True)


def test_gradients_reach_the_trained_weights_only(sampler):
    from peft import LoraConfig

    sampler.unet.zero_grad()
    sampler.unet.requires_grad_(False)
    sampler.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    Rollout(sampler, 4, 3.0).predict_x0(PROMPTS, sampler.noise([1, 2]), 2).sum().backward()
    models = (sampler.unet, sampler.vae, sampler.text_encoder)
    reached = [n for m in models for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert reached
    assert all("lora_" in name for name in reached)
    assert all(p.grad is None for p in sampler.text_encoder.parameters())


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_model_that_knows_the_image_predicts_it_at_any_step_whatever_it_says(sampler, kind, cfg):
    sampler, signal, spread = predicting(sampler, kind)
    known = sampler.noise([5, 6])

    def knowing(x, t, *_, **__):
        noise = (x - signal[t] * known) / spread[t]
        output = {"epsilon": noise, "v_prediction": signal[t] * noise - spread[t] * known, "sample": known}[kind]
        return SimpleNamespace(sample=output)

    for index in (0, 4, 7):
        drawn = Rollout(sampler, 8, cfg).predict_x0(PROMPTS, sampler.noise([22, 3]), index, knowing)
        assert_close(drawn, sampler.decode_unclamped(known), SAMPLING)


def test_the_finished_image_is_the_one_that_sampling_draws(sampler):
    noise = sampler.noise([22, 3])
    finished = Rollout(sampler, 6, 3.0).roll_out(PROMPTS, noise, [0, 4]).detach().clamp(0, 1)
    assert_close(finished, sampler.sample(PROMPTS, noise, SamplingSettings(steps=6, cfg=3.0)), SAMPLING)


def test_a_finished_images_gradient_goes_along_the_line_of_the_scheduler(sampler):
    """By hand: x_0 = Σ cᵢ εᵢ + …, each εᵢ a function of the weights alone, cᵢ as numbers from the scheduler."""
    rollout, noise = Rollout(sampler, 4, 3.0), sampler.noise([22, 3])
    weight = sampler.unet.conv_out.weight
    for parameter in sampler.unet.parameters():
        parameter.requires_grad_(parameter is weight)
    rollout.roll_out(PROMPTS, noise, [1, 2]).sum().backward()
    ours, weight.grad = weight.grad.clone(), None

    words, scheduler = sampler.encode_prompts(PROMPTS).clone(), rollout.scheduler
    xs, answers = [noise.clone()], []
    with torch.no_grad():
        for t in scheduler.timesteps:
            answers.append(rollout.predict(sampler.unet, xs[-1], t, words))
            xs.append(scheduler.step(answers[-1], t, xs[-1]).prev_sample)
    x0 = xs[-1].clone().requires_grad_()
    sampler.decode_unclamped(x0).sum().backward()
    pull = x0.grad
    for i in (3, 2, 1):  # from the image back to step 1, as the two slopes of each step say
        t, unit = scheduler.timesteps[i], torch.ones(1)
        along_x = scheduler.step(0 * unit, t, unit).prev_sample.item()
        along_answer = scheduler.step(unit, t, 0 * unit).prev_sample.item()
        if i in (1, 2):
            answer = rollout.predict(sampler.unet, xs[i], t, words)
            (answer * pull * along_answer).sum().backward()
        pull = pull * along_x
    assert_close(ours, weight.grad, SAMPLING)
    sampler.unet.requires_grad_(True)
