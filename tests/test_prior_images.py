"""The images of L_pre are those that were asked for: pictures as the autoencoder knows them, noise of their own."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.core.embedded import WEIGHTS
from realigndiff.demo.train.data import draw_scenes
from realigndiff.perception.captioner import Captioner
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.training.data.prior import folder_prior, frozen_prior
from realigndiff.training.settings.refl import ReflConfig

PROMPTS = ["a red circle and a blue square", "a green ring"]
FEW = {"model": "demo", "captioner": "demo", "cfg": 3.0, "prior_images": 4, "prior_steps": 1, "seed": 7}


@pytest.fixture(scope="module")
def sampler():
    return DiffusersSampler.load(WEIGHTS / "stable_diffusion")


@pytest.fixture(scope="module")
def captioner():
    return Captioner.load(WEIGHTS / "blip2_captioner")


def test_a_folders_pictures_come_back_from_the_autoencoder(sampler, tmp_path):
    """With the decoder that samples are decoded with: the wrong scale or range would give other pictures."""
    scenes = draw_scenes(2, seed=3, objects=2, held_out=True).images.permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(scenes):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"scene {i}", encoding="utf-8")
    prior = folder_prior(tmp_path, sampler, 64)
    assert prior.captions == ["scene 0", "scene 1"]
    back, given = sampler.decode(prior.latents), torch.from_numpy(scenes.astype(np.float32)) / 255
    assert (back - given).abs().mean() < 0.05
    assert (back - given.flip(0)).abs().mean() > 0.1
    spread = sampler.sample_latents(PROMPTS, sampler.noise([1, 2]), SamplingSettings(steps=4, cfg=3.0)).std()
    assert 0.5 < prior.latents.std() / spread < 2  # what the UNet knows


def test_the_frozen_models_images_have_noise_of_their_own_however_many_are_drawn_at_once(
    sampler, captioner, tmp_path, monkeypatch
):
    drawn = {}
    for at_once in (4, 3, 1):
        monkeypatch.setattr(DiffusersSampler, "max_batch", at_once)
        config = ReflConfig(**FEW, output=str(tmp_path / str(at_once)))
        drawn[at_once] = frozen_prior(sampler, captioner, ["a green ring"], config).latents
    for at_once in (3, 1):
        torch.testing.assert_close(drawn[at_once], drawn[4], rtol=1e-3, atol=1e-3)
    assert all((a - b).abs().mean() > 0.1 for a, b in itertools.combinations(drawn[4], 2))


def test_the_frozen_models_images_are_sampled_as_the_settings_say(sampler, captioner, tmp_path):
    """The prompts in turn, guided, from noise that no step of the training uses."""
    config = ReflConfig(**FEW, output=str(tmp_path))
    prior = frozen_prior(sampler, captioner, PROMPTS, config)
    assert prior.captions == PROMPTS * 2
    noise = sampler.noise([FEW["seed"] + 10**6 + i for i in range(4)])
    theirs = sampler.sample_latents(PROMPTS * 2, noise, SamplingSettings(steps=1, cfg=3.0))
    torch.testing.assert_close(prior.latents, theirs, rtol=1e-3, atol=1e-3)


def test_images_that_other_settings_drew_are_drawn_anew(sampler, captioner, tmp_path):
    made = []

    def prior(prompts=PROMPTS, **changed):
        made.clear()
        config = ReflConfig(**{**FEW, "prior_images": 2, **changed}, output=str(tmp_path))
        return frozen_prior(sampler, captioner, prompts, config, made.append)

    first = prior()
    assert made == [2]
    for change in (
        {"seed": 8},
        {"cfg": 1.0},
        {"prior_steps": 2},
        {"prior_images": 1},
        {"prior_captions": "captioner"},
        {"prompts": ["a blue square"]},
    ):
        other = prior(**change)
        assert made, f"{change} was not noticed"
        assert not (torch.equal(other.latents, first.latents) and other.captions == first.captions)
        prior(**change)
        assert not made, f"{change} was drawn twice"
    assert torch.equal(prior().latents, first.latents) and made == [2]
