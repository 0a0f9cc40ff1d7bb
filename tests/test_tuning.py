"""What a gate and a choice would have cost and saved, told from images that were all sampled again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.regions import Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.evaluation import tune
from realigndiff.evaluation.coarse_images import CoarseImages
from realigndiff.evaluation.tune import Rule, resample_images, summarize
from realigndiff.pipeline.realign import CaptionedImage

REWARDS = {"before": [0.9, 0.5, 0.5, 0.95, 0.3], "after": [0.2, 0.5, 0.8, 0.99, 0.1]}
RIGHT = {"before": [1, 0, 0, 1, 1], "after": [0, 1, 1, 1, 0]}


def scores(when):
    return {"caption_reward": np.array(REWARDS[when]), "both_right": np.array(RIGHT[when], float)}


@pytest.mark.parametrize("gate", [None, 0.9, 0.95, 0.96])
@pytest.mark.parametrize("keep_better", [False, True])
def test_an_image_is_left_alone_that_reaches_the_gate_or_that_is_not_surpassed(gate, keep_better):
    """One image after the other; the first has a reward of the gate, the second the same reward after as before."""
    rewards, rights, sampled = [], [], 0
    for i in range(5):
        gated = gate is not None and REWARDS["before"][i] >= gate
        worse = keep_better and REWARDS["after"][i] <= REWARDS["before"][i]
        chosen = "before" if gated or worse else "after"
        rewards.append(REWARDS[chosen][i])
        rights.append(RIGHT[chosen][i])
        sampled += not gated
    means = summarize(scores("before"), scores("after"), Rule(gate, keep_better))
    was_right = [i for i in range(5) if RIGHT["before"][i]]
    assert means == pytest.approx(
        {
            "caption_reward": np.mean(rewards),
            "both_right": np.mean(rights),
            "stayed_right": np.mean([rights[i] for i in was_right]),
            "mended": np.mean([rights[i] for i in (1, 2)]),
            "sampled_again": sampled / 5,
        }
    )


def test_each_image_is_sampled_again_from_its_own_noise_with_its_own_regions(monkeypatch):
    """Also where images before it are left alone: the noise here says which image it is of."""
    count = 2 * tune.BATCH + 3
    mask = torch.ones(8, 8)
    prompts = [f"a ring {i}" for i in range(count)]
    looks = [CaptionedImage(torch.zeros(8, 8, 3), "", 0.95 if i % 3 == 0 else 0.5) for i in range(count)]
    sets = [
        RegionSet(prompt, (Region(tag="ring", phrase="a ring", mask=None if i % 5 == 1 else mask),))
        for i, prompt in enumerate(prompts)
    ]

    def resampled(models, texts, noise, regions, settings):
        assert len(texts) <= tune.BATCH
        assert [regions_of.prompt for regions_of in regions] == list(texts)
        assert settings.modulation == ModulationSettings(end=0.7)
        return [CaptionedImage(x, text, 0.7) for x, text in zip(noise, texts, strict=True)]

    monkeypatch.setattr(tune, "resample", resampled)
    noise = torch.arange(float(count)).view(-1, 1, 1, 1)
    out = resample_images(
        None, CoarseImages(prompts, noise, looks, sets), replace(SETTINGS, modulation=ModulationSettings(end=0.7)), 0.95
    )
    for i, seen in enumerate(out):
        if i % 3 == 0 or i % 5 == 1:
            assert seen is looks[i]
        else:
            assert (seen.caption, seen.image.item()) == (prompts[i], i)
