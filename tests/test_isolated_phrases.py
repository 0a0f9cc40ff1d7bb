"""Phrases with the embeddings that the text encoder gives them alone, as DenseDiffusion's code has them."""

import argparse
from dataclasses import replace

import pytest
import torch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.cli import settings as options
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.evaluation.tune import PAPER, parse_settings
from realigndiff.pipeline.realign import RealignSettings, resample
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.miniatures import save_sdxl

PROMPT = "a red circle and a blue square"
RED, BLUE = "a red circle", "a blue square"
LEFT = torch.zeros(64, 64)
LEFT[:, :32] = 1
FEW = SamplingSettings(steps=2, cfg=3.0)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def sampler(request, models, tmp_path_factory):
    if request.param == "sd1":
        return models.sampler
    return DiffusersSampler.load(save_sdxl(tmp_path_factory.mktemp("sdxl")))


def regions_of(*phrases, prompt=PROMPT, mask=LEFT):
    named = [phrase if isinstance(phrase, tuple) else (phrase, 0) for phrase in phrases]
    return RegionSet(prompt, tuple(Region(tag="", phrase=p, occurrence=n, mask=mask) for p, n in named))


def test_each_phrases_tokens_have_the_embeddings_of_the_phrase_alone_in_all_encoders(sampler):
    """The prompt is: start, a red circle, and, a blue square, end."""
    words, alone = sampler.encode_prompts([PROMPT]), sampler.encode_prompts([RED, BLUE])
    expected = words.prompt_embeds.clone()
    expected[0, 1:4], expected[0, 5:8] = alone.prompt_embeds[0, 1:4], alone.prompt_embeds[1, 1:4]
    isolated = sampler.isolate_phrases(words, [regions_of(RED, BLUE)])
    torch.testing.assert_close(isolated.prompt_embeds, expected, rtol=1e-4, atol=1e-5)
    assert isolated.pooled is words.pooled
    changed = (isolated.prompt_embeds != words.prompt_embeds)[0, 5:8].any(0)
    assert changed.float().mean() > 0.99, "of the channels, those of SDXL's second encoder too"
    assert torch.equal(words.prompt_embeds, sampler.encode_prompts([PROMPT]).prompt_embeds), (
        "the prompt's own are left as they were"
    )


def test_each_prompt_of_a_batch_has_its_own_phrases_and_no_regions_change_nothing(sampler):
    words = sampler.encode_prompts(["", PROMPT, PROMPT, PROMPT])
    inactive = regions_of(BLUE, mask=None)
    hidden = sampler.isolate_phrases(words, [None, regions_of(BLUE), regions_of(RED, BLUE), inactive]).prompt_embeds
    assert torch.equal(hidden[[0, 3]], words.prompt_embeds[[0, 3]])
    for row, regions in ((1, regions_of(BLUE)), (2, regions_of(RED, BLUE))):
        alone = sampler.isolate_phrases(words[[row]], [regions]).prompt_embeds[0]
        torch.testing.assert_close(hidden[row], alone, rtol=1e-4, atol=1e-5)
    assert sampler.isolate_phrases(words, [None, None, None, inactive]) is words


def test_of_equal_phrases_each_place_that_is_meant_is_replaced(models):
    sampler, prompt = models.sampler, "a red circle and a red circle"
    words, alone = sampler.encode_prompts([prompt]), sampler.encode_prompts([RED]).prompt_embeds
    hidden = sampler.isolate_phrases(words, [regions_of((RED, 1), prompt=prompt)]).prompt_embeds
    assert torch.equal(hidden[:, :5], words.prompt_embeds[:, :5])
    torch.testing.assert_close(hidden[:, 5:8], alone[:, 1:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_of_overlapping_phrases_the_shortest_holds_whichever_comes_first(models, turned):
    sampler, prompt = models.sampler, "and a red circle and a blue square"
    long, short = "a red circle and a blue square", BLUE
    phrases = (short, long) if turned else (long, short)
    words = sampler.encode_prompts([prompt])
    hidden = sampler.isolate_phrases(words, [regions_of(*phrases, prompt=prompt)]).prompt_embeds
    alone = sampler.encode_prompts([long, short]).prompt_embeds
    torch.testing.assert_close(hidden[0, 2:6], alone[0, 1:5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden[0, 6:9], alone[1, 1:4], rtol=1e-4, atol=1e-5)


def test_of_a_phrase_that_the_encoders_end_cuts_the_first_tokens_are_replaced(models):
    sampler = models.sampler
    prompt = " ".join(["and"] * 73) + " a blue square"  # of 75 that are read
    words, alone = sampler.encode_prompts([prompt]), sampler.encode_prompts([BLUE]).prompt_embeds
    hidden = sampler.isolate_phrases(words, [regions_of(BLUE, prompt=prompt)]).prompt_embeds
    torch.testing.assert_close(hidden[0, 74:76], alone[0, 1:3], rtol=1e-4, atol=1e-5)
    assert torch.equal(hidden[0, 76], words.prompt_embeds[0, 76])
    with pytest.raises(RealignError, match="comes after the 75 tokens"):
        sampler.isolate_phrases(words, [regions_of(BLUE, prompt="and and " + prompt)])


def test_words_in_another_form_stand_for_the_prompts(models):
    words = models.sampler.encode_prompts([PROMPT])
    hidden, exact = (
        models.sampler.isolate_phrases(words, [regions_of(p)]).prompt_embeds for p in ("the Blue squares", BLUE)
    )
    torch.testing.assert_close(hidden, exact)


def test_sampling_is_without_it_unless_asked_and_it_changes_only_images_with_regions(sampler):
    noise = sampler.noise([1, 2])
    prompts, sets = [PROMPT, PROMPT], [regions_of(BLUE), None]
    off = ModulationSettings(end=0.0)
    plain = sampler.sample_latents(prompts, noise, FEW)
    unchanged = sampler.sample_latents(prompts, noise, FEW, region_sets=sets, modulation=off)
    isolated = sampler.sample_latents(prompts, noise, FEW, region_sets=sets, modulation=off, isolate_phrases=True)
    assert torch.equal(unchanged, plain)
    assert (isolated[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(isolated[1], plain[1], rtol=1e-3, atol=1e-4)


def test_the_unconditional_half_stays_as_it_is(models):
    sampler, seen = models.sampler, []
    predict = sampler.predict
    sampler.predict = lambda x, t, words, unet=None: seen.append(words.prompt_embeds) or predict(x, t, words, unet)
    try:
        sampler.sample_latents([PROMPT], sampler.noise([1]), FEW, region_sets=[regions_of(BLUE)], isolate_phrases=True)
    finally:
        del sampler.predict
    words = sampler.encode_prompts(["", PROMPT])
    expected = torch.cat(
        [words.prompt_embeds[:1], sampler.isolate_phrases(words[[1]], [regions_of(BLUE)]).prompt_embeds]
    )
    assert len(seen) == 2  # at all steps, also those that are not re-weighted
    for given in seen:
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_the_setting_reaches_the_loop_and_the_commands(models):
    noise = models.sampler.noise([1])
    settings = replace(SETTINGS, sampling=FEW)
    one, other = (
        resample(models, [PROMPT], noise, [regions_of(BLUE)], replace(settings, isolate_phrases=on))[0].image
        for on in (False, True)
    )
    assert not torch.allclose(one, other, atol=1e-3)
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    for given, value in (([], True), (["--isolate-phrases"], True), (["--no-isolate-phrases"], False)):
        assert options.settings_of(parser.parse_args(given), RealignSettings()).isolate_phrases is value
    assert RealignSettings().to_dict()["isolate_phrases"] is True
    assert SETTINGS.isolate_phrases is False
    assert parse_settings(["end=0.5", "isolate_phrases=1"]) == replace(
        PAPER, modulation=ModulationSettings(end=0.5), isolate_phrases=True
    )
    with pytest.raises(RealignError, match="'isolate_phrases=yes' is neither on nor off"):
        parse_settings(["isolate_phrases=yes"])
