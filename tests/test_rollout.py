"""The rollout of reward feedback learning on the demo model."""

import pytest
import torch
from realigndiff.demo.models import FOLDER
from realigndiff.pipeline.sampler import DiffusersSampler
from realigndiff.pipeline.settings import SamplingSettings
from realigndiff.training.rollout import Rollout

PROMPTS = ["a red circle and a blue square", "a green ring"]


@pytest.fixture(scope="module")
def sampler():
    return DiffusersSampler.load(FOLDER / "stable_diffusion")


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_last_step_predicts_the_image_that_sampling_ends_with(sampler, cfg):
    noise = sampler.noise([22, 3])
    predicted = Rollout(sampler, 8, cfg).images(PROMPTS, noise, 7).detach().clamp(0, 1)
    sampled = sampler.sample(PROMPTS, noise, SamplingSettings(steps=8, cfg=cfg))
    assert (predicted - sampled).abs().mean() < 0.02  # sampling ends a step short of x_0


def test_the_gradient_is_that_of_one_step_alone(sampler):
    """The same step, taken from the same x_t by hand."""
    rollout, noise = Rollout(sampler, 8, 3.0), sampler.noise([22, 3])
    weight = sampler.unet.conv_out.weight
    for parameter in sampler.unet.parameters():
        parameter.requires_grad_(parameter is weight)
    rollout.images(PROMPTS, noise, 5).sum().backward()
    ours, weight.grad = weight.grad.clone(), None

    context, scheduler = sampler.encode(PROMPTS).clone(), rollout.scheduler
    x = noise.clone()
    with torch.no_grad():
        for t in scheduler.timesteps[:5]:
            x = scheduler.step(rollout._epsilon(sampler.unet, x, t, context), t, x).prev_sample
    t = scheduler.timesteps[5]
    worded = sampler.unet(x, t, context).sample
    with torch.no_grad():
        empty = sampler.unet(x, t, sampler.encode(["", ""])).sample
    alpha = scheduler.alphas_cumprod[t]
    x0 = (x - (1 - alpha).sqrt() * (empty + 3.0 * (worded - empty))) / alpha.sqrt()
    (sampler.vae.decode(x0 / sampler.vae.config.scaling_factor).sample / 2).sum().backward()
    torch.testing.assert_close(ours, weight.grad)
    sampler.unet.requires_grad_(True)


def test_gradients_reach_the_trained_weights_only(sampler):
    from peft import LoraConfig

    sampler.unet.zero_grad()
    sampler.unet.requires_grad_(False)
    sampler.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    Rollout(sampler, 4, 3.0).images(PROMPTS, sampler.noise([1, 2]), 2).sum().backward()
    models = (sampler.unet, sampler.vae, sampler.text_encoder)
    reached = [n for m in models for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert reached
    assert all("lora_" in name for name in reached)
    assert all(p.grad is None for p in sampler.text_encoder.parameters())
