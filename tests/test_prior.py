"""L_pre: the images that the untrained model draws, which of them are learnt from, and at which noise levels."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.demo.models import FOLDER
from realigndiff.perception.captioner import Captioner
from realigndiff.pipeline.sampler import DiffusersSampler
from realigndiff.tests.close import NETWORK, assert_close
from realigndiff.tests.miniatures import PREDICTIONS, predicting
from realigndiff.training.models import load
from realigndiff.training.pairs import Pairs
from realigndiff.training.prior import Drawn, folder_prior, frozen_prior
from realigndiff.training.refl_settings import ReflConfig

PROMPTS = ["a red circle and a blue square", "a green ring"]


@pytest.fixture(scope="module")
def sampler():
    return DiffusersSampler.load(FOLDER / "stable_diffusion")


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_prior_loss_is_the_distance_to_what_the_model_was_trained_to_say(sampler, kind):
    sampler, signal, spread = predicting(sampler, kind)
    latents, calls = sampler.noise([5]), []

    def silent(x, t, *_, **__):
        calls.append((x, t))
        return SimpleNamespace(sample=torch.zeros_like(x))

    loss = Pairs(latents, ["a green ring"]).loss(sampler, silent, range(4))
    x, t = calls[0]
    noise = (x - signal[t] * latents) / spread[t]
    v = signal[t] * noise - spread[t] * latents
    expected = {"epsilon": noise, "v_prediction": v, "sample": latents.expand(4, -1, -1, -1)}[kind]
    assert_close(loss, expected.square().mean(), NETWORK)


def test_the_prior_learns_at_the_noise_levels_asked_for(sampler):
    prior = Pairs(sampler.noise([5]), ["a green ring"], min_timestep=990)
    drawn = {int(prior._draw(torch.Generator().manual_seed(seed), 1000).t) for seed in range(200)}
    assert drawn == set(range(990, 1000))


def test_a_level_that_the_model_does_not_have_is_one_sentence(monkeypatch):
    demo = {"model": "demo", "captioner": "demo", "text_encoder": "demo", "resolution": 64, "precision": "fp32"}
    read = DiffusersSampler.load

    def with_few_levels(*args):
        sampler = read(*args)
        sampler.scheduler.register_to_config(num_train_timesteps=100)
        return sampler

    monkeypatch.setattr(DiffusersSampler, "load", with_few_levels)
    with pytest.raises(RealignError, match="prior_min_timestep is 400, but this model's noise levels are 0 to 99"):
        load(ReflConfig(**demo, prior_min_timestep=400), torch.device("cpu"))


def test_the_likeliest_pairs_are_kept_in_their_order():
    drawn = Drawn(torch.arange(4.0).view(4, 1, 1, 1), ["a", "b", "c", "d"], torch.tensor([-2.0, -0.1, -3.0, -0.2]))
    latents, captions = drawn.likeliest(0.5)
    assert captions == ["b", "d"] and latents.flatten().tolist() == [1, 3]
    assert drawn.likeliest(0.01)[1] == ["b"]
    assert drawn.likeliest(1.0)[1] == drawn.captions
    assert drawn._replace(likelihoods=torch.tensor([-2.0, math.nan, -3.0, -0.2])).likeliest(0.5)[1] == ["a", "d"]


def test_what_was_drawn_is_drawn_once(sampler, tmp_path):
    captioner, made = Captioner.load(FOLDER / "blip2_captioner"), []

    def prior(**changed):
        settings = {"prior_images": 4, "prior_steps": 2, "cfg": 3.0, "prior_captions": "captioner", **changed}
        made.clear()
        return frozen_prior(sampler, captioner, PROMPTS, ReflConfig(output=str(tmp_path), **settings), made.append)

    every = prior()
    assert made == [4] and len(every.captions) == 4
    half = prior(prior_keep=0.5, prior_min_timestep=300)  # what was drawn before was not scored
    assert made == [4] and len(half.captions) == 2 and half.min_timestep == 300
    assert torch.equal(prior(prior_keep=0.5).latents, half.latents) and not made
    assert torch.equal(prior().latents, every.latents) and not made


def test_a_folders_pairs_are_learnt_from_at_the_same_levels(sampler, tmp_path):
    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a red thing\n", encoding="utf-8")
    prior = folder_prior(tmp_path, sampler, 64, 300)
    assert (prior.captions, prior.min_timestep, prior.latents.shape) == (["a red thing"], 300, (1, 4, 16, 16))
