"""The whole loop on the demo models."""

import dataclasses
import json

import pytest
import torch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import CERTAIN, UNLIKELY, Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.demo.report import judged_report
from realigndiff.demo.world import COLORS, SHAPES
from realigndiff.drawing.panel import draw_panel
from realigndiff.pipeline.realign import realign, realign_batch, zero_truncated_phrases
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.close import SAMPLING, assert_close

PROMPT = "a red circle and a blue square"
FAST = dataclasses.replace(
    SETTINGS, sampling=SamplingSettings(steps=6, cfg=3.0), gate=None, keep_better=False, box_threshold=0.1
)


@pytest.fixture(scope="module")
def result(models):
    return realign(models, PROMPT, 3, FAST)


def test_the_same_seed_gives_the_same_images_bit_for_bit(models, result):
    again = realign(models, PROMPT, 3, FAST)
    assert torch.equal(again.before.image, result.before.image)
    assert torch.equal(again.after.image, result.after.image)


def test_another_seed_gives_another_image(models, result):
    assert not torch.equal(realign(models, PROMPT, 4, FAST).before.image, result.before.image)


def test_an_image_in_a_batch_is_what_it_is_alone(models, result):
    both = realign_batch(models, ["a green ring and a pink cross", PROMPT], [8, 3], FAST)
    assert_close(both[1].before.image, result.before.image, SAMPLING)
    assert_close(both[1].after.image, result.after.image, 2 * SAMPLING)
    assert both[1].prompt == PROMPT


def test_a_wrong_image_is_sampled_again_inside_its_regions(result):
    assert result.changed
    assert result.regions.active
    assert not torch.equal(result.before.image, result.after.image)
    assert "sampled again" in result.verdict


def test_an_image_that_reaches_the_gate_is_left_alone(models):
    result = realign(models, PROMPT, 3, dataclasses.replace(FAST, gate=-1.0))
    assert result.after is result.before
    assert not result.changed
    assert "reaches the gate" in result.verdict


def test_a_re_aligned_image_that_is_no_better_can_be_refused(models, monkeypatch, result):
    monkeypatch.setattr("realigndiff.pipeline.realign.resample", lambda *_, **__: [result.before])
    kept = realign(models, PROMPT, 3, dataclasses.replace(FAST, keep_better=True))
    assert not kept.changed
    assert kept.regions.active
    assert "no better" in kept.verdict


def test_an_image_without_a_box_is_returned_unchanged_and_says_so(models):
    result = realign(models, PROMPT, 3, dataclasses.replace(FAST, box_threshold=1.0))
    assert result.after is result.before
    assert result.regions.missing == ("a red circle", "a blue square")
    assert "no region" in result.verdict


def test_without_any_tag_the_prompts_own_phrases_are_looked_for(models, result):
    untagged = realign(models, PROMPT, 3, dataclasses.replace(FAST, tag_threshold=1.0))
    assert [region.phrase for region in untagged.regions] == ["a red circle", "a blue square"]


@pytest.mark.parametrize("prompt", ["a hexagonal elephant", "ein rotes Haus", "!!!", "x" * 400])
def test_a_prompt_without_a_known_word_is_drawn_and_survives(models, prompt):
    result = realign(models, prompt, 0, FAST)
    assert torch.isfinite(result.after.image).all()
    assert result.verdict


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(models, prompt):
    with pytest.raises(RealignError, match="Prompt 1 of 1 is empty"):
        realign(models, prompt, 0, FAST)


def test_a_prompt_longer_than_anyone_reads_is_drawn_and_says_what_is_not_re_weighted(models):
    prompt = ", ".join(f"a {color} {shape}" for color in COLORS for shape in SHAPES[:4])
    result = realign(models, prompt, 3, dataclasses.replace(FAST, box_threshold=0.0))
    assert len(result.regions) == 28
    assert torch.isfinite(result.after.image).all()
    late = [region for region in result.regions if region.mask is not None and region.likelihood == 0]
    assert late
    assert len(late) == sum("text encoder reads" in note for note in result.regions.notes)


def test_a_region_whose_words_are_not_read_is_inactive_and_says_so(models):
    mask = torch.ones(8, 8)
    far = RegionSet(
        "a red circle, " + "very " * 80 + "a blue square",
        (
            Region(tag="circle", phrase="a red circle", mask=mask),
            Region(tag="square", phrase="a blue square", mask=mask),
        ),
    )
    read = zero_truncated_phrases(far, models.sampler.tokenizer)
    assert [region.likelihood for region in read] == [CERTAIN, UNLIKELY]
    assert "'a blue square' comes after the 75 tokens" in read.notes[0]


def test_an_image_whose_regions_are_all_unlikely_is_left_alone_and_says_why(models, monkeypatch):
    mask = torch.ones(8, 8)
    found = RegionSet(PROMPT, (Region(tag="circle", phrase="a red circle", mask=mask, likelihood=UNLIKELY),))
    monkeypatch.setattr("realigndiff.pipeline.realign.find_regions", lambda *_: [found])
    result = realign(models, PROMPT, 3, FAST)
    assert not result.changed
    assert "scored unlikely" in result.verdict


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_a_seed_that_is_none_is_refused(models, seed):
    with pytest.raises(RealignError, match="whole number from 0 to 18446744073709551615"):
        realign(models, PROMPT, seed, FAST)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1001}, {"steps": 2.5}, {"cfg": float("nan")}, {"cfg": -1}])
def test_settings_that_cannot_be_sampled_with_are_refused(wrong):
    with pytest.raises(RealignError, match=f"{next(iter(wrong))} is .*give a"):
        SamplingSettings(**wrong)


def test_regions_without_settings_are_re_weighted_with_the_papers(models, result):
    sampler, few = models.sampler, SamplingSettings(steps=4, cfg=3.0)
    draw = lambda **options: sampler.sample([PROMPT], sampler.noise([3]), few, **options)  # noqa: E731
    regions = [result.regions]
    assert torch.equal(draw(region_sets=regions), draw(region_sets=regions, modulation=ModulationSettings()))
    assert not torch.equal(draw(region_sets=regions), draw())


def test_no_prompts_give_no_results(models):
    assert realign_batch(models, [], [], FAST) == []


def test_prompts_and_seeds_must_match(models):
    with pytest.raises(RealignError, match="2 prompts and 1 seeds"):
        realign_batch(models, [PROMPT, PROMPT], [1], FAST)


def test_progress_is_told_and_can_interrupt(models):
    seen = []
    realign(models, PROMPT, 3, FAST, lambda *what: seen.append(what))
    assert ("coarse image", 6, 6) in seen
    assert ("re-aligned image", 6, 6) in seen

    def stop(doing, step, steps):
        if doing == "re-aligned image":
            raise KeyboardInterrupt

    before = dict(models.sampler.unet.attn_processors)
    with pytest.raises(KeyboardInterrupt):
        realign(models, PROMPT, 3, FAST, stop)
    assert models.sampler.unet.attn_processors == before


def test_guidance_off_realigns_too(models):
    off = dataclasses.replace(FAST, sampling=SamplingSettings(steps=4, cfg=1.0))
    assert torch.isfinite(realign(models, PROMPT, 3, off).after.image).all()


def test_the_report_holds_everything_and_is_json(result):
    output = json.loads(json.dumps(judged_report(result, FAST)))
    assert {"prompt", "seed", "verdict", "before", "after", "regions", "missing", "notes", "settings"} <= set(output)
    assert {"caption", "caption_reward", "judge", "judge_sees"} == set(output["before"])
    for region in output["regions"]:
        assert {"tag", "phrase", "likelihood", "box", "mask_area", "detection"} <= set(region)


def test_a_prompt_without_a_coloured_shape_is_not_judged(result):
    output = judged_report(dataclasses.replace(result, prompt="a hexagonal elephant"), FAST)
    assert output["before"]["judge"] is None
    assert output["after"]["judge"] is None
    assert output["before"]["judge_sees"]


@pytest.mark.parametrize("settings", [FAST, dataclasses.replace(FAST, gate=-1.0)], ids=["mended", "left alone"])
def test_the_panel_is_a_picture_of_three(models, settings):
    picture = draw_panel(realign(models, PROMPT, 3, settings))
    assert picture.width > 3 * 384
    assert len(set(picture.resize((64, 32)).getdata())) > 50
