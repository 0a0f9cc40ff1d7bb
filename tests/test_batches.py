"""An image of a batch is what it is alone, also where a step leaves out the images before it."""

import dataclasses

import pytest
import torch
from realigndiff.core.regions import Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.evaluation.methods import redraw
from realigndiff.pipeline.realign import caption_and_score, find_regions, realign, realign_batch
from realigndiff.sampling.settings import SamplingSettings

PROMPTS, SEEDS = ["a green ring", "a green ring and a pink cross", "a red circle"], [2, 8, 1]
"""The first is drawn well, the others are not."""
FEW = dataclasses.replace(
    SETTINGS, sampling=SamplingSettings(steps=3, cfg=3.0), gate=None, keep_better=False, box_threshold=0.1
)


@pytest.fixture(scope="module")
def alone(models):
    return [realign(models, prompt, seed, FEW) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]


@pytest.fixture(scope="module")
def gate(alone):
    """A caption reward that the first image reaches and the others do not."""
    first, *others = (result.before.reward for result in alone)
    assert first > max(others) + 0.05
    return (first + max(others)) / 2


def assert_same_image(ours, theirs):
    torch.testing.assert_close(ours.image, theirs.image, rtol=0, atol=5e-3)  # in [0, 1]: about one step of 8 bits
    assert ours.caption == theirs.caption
    assert ours.reward == pytest.approx(theirs.reward, abs=1e-3)


def test_an_image_of_a_batch_is_re_aligned_as_it_is_alone_where_the_gate_keeps_the_first(models, alone, gate):
    kept, *mended = realign_batch(models, PROMPTS, SEEDS, dataclasses.replace(FEW, gate=gate))
    assert not kept.changed and "reaches the gate" in kept.verdict
    assert_same_image(kept.before, alone[0].before)
    for ours, theirs in zip(mended, alone[1:], strict=True):
        assert ours.changed and theirs.changed
        assert (ours.prompt, ours.seed, ours.verdict) == (theirs.prompt, theirs.seed, theirs.verdict)
        assert_same_image(ours.before, theirs.before)
        assert_same_image(ours.after, theirs.after)
        assert [(r.tag, r.phrase, r.likelihood) for r in ours.regions] == [
            (r.tag, r.phrase, r.likelihood) for r in theirs.regions
        ]
        for region, other in zip(ours.regions, theirs.regions, strict=True):
            assert (region.mask is None) == (other.mask is None)
            assert region.mask is None or (region.mask - other.mask).abs().mean() < 0.01


def test_an_image_of_a_batch_is_re_aligned_as_it_is_alone_where_the_first_has_no_region(models, alone, monkeypatch):
    """Then it reaches no gate, but is not sampled again either."""
    find = models.grounded_sam.detector.detect

    def blind_to_the_first(images, phrases, **options):
        first, *others = find(images, phrases, **options)
        return [first._replace(boxes=first.boxes[:0], scores=first.scores[:0]), *others]

    monkeypatch.setattr(models.grounded_sam.detector, "detect", blind_to_the_first)
    left, mended = realign_batch(models, PROMPTS[:2], SEEDS[:2], FEW)
    assert not left.changed and left.regions.missing == ("a green ring",)
    assert_same_image(mended.after, alone[1].after)


def test_an_image_of_a_batch_is_drawn_again_as_it_is_alone_where_the_gate_keeps_the_first(models, alone, gate):
    settings = dataclasses.replace(FEW, gate=gate)
    looks = [result.before for result in alone]
    kept, *others = redraw(models, PROMPTS, SEEDS, looks, settings)
    assert kept is looks[0]
    assert all(not torch.equal(ours.image, seen.image) for ours, seen in zip(others, looks[1:], strict=True))
    (theirs,) = redraw(models, PROMPTS[2:], SEEDS[2:], looks[2:], settings)
    assert_same_image(others[1], theirs)


def test_an_image_that_is_as_good_as_the_gate_says_is_left_alone(models, alone):
    settings = dataclasses.replace(FEW, gate=alone[2].before.reward)
    kept = realign(models, PROMPTS[2], SEEDS[2], settings)
    assert not kept.changed and "reaches the gate" in kept.verdict
    looks = [alone[2].before]
    assert redraw(models, PROMPTS[2:], SEEDS[2:], looks, settings) == looks


def test_each_image_of_a_batch_has_its_own_masks_where_the_first_has_no_boxes(models, alone):
    images = torch.stack([result.before.image for result in alone])
    sets = [RegionSet(PROMPTS[0]), *(_phrases(prompt) for prompt in PROMPTS[1:])]
    together = models.grounded_sam.ground(images, sets, box_threshold=0.1)
    assert not together[0].regions
    for i in (1, 2):
        (one,) = models.grounded_sam.ground(images[i : i + 1], sets[i : i + 1], box_threshold=0.1)
        found = [(ours.mask, theirs.mask) for ours, theirs in zip(together[i], one, strict=True)]
        assert any(theirs is not None for _, theirs in found)
        for ours, theirs in found:
            assert (ours is None) == (theirs is None)
            assert theirs is None or (ours - theirs).abs().mean() < 0.01


def _phrases(prompt):
    return RegionSet(prompt, tuple(Region(tag=one.split()[-1], phrase=one) for one in prompt.split(" and ")))


def test_captions_and_rewards_of_a_batch_belong_to_their_images_and_prompts(models, alone):
    order = [2, 0, 1]
    images = torch.stack([alone[i].before.image for i in order])
    for seen, i in zip(caption_and_score(models, images, [PROMPTS[i] for i in order]), order, strict=True):
        assert_same_image(seen, alone[i].before)


def test_the_tag_threshold_decides_which_tags_become_regions(models, alone):
    """Asked of the tagger itself: at 0 each of its tags is in the image, at 1 none is."""
    image = alone[2].before.image[None]
    confident = {tag.name: tag.confidence for tag in models.tagger.tag(image, threshold=0.0)[0]}
    assert len(confident) == len(models.tagger.tags)
    first, second, *_ = sorted(confident.values(), reverse=True)
    for threshold in (0.0, (first + second) / 2, 1.0):
        settings = dataclasses.replace(FEW, tag_threshold=threshold)
        (regions,) = find_regions(models, image, PROMPTS[2:], settings)
        named = {"circle", "red"}  # by the prompt: one region whatever the tagger says
        assert {r.tag for r in regions} - named == {tag for tag, sure in confident.items() if sure > threshold} - named


def test_a_pixel_is_in_a_mask_where_the_segmenter_finds_it_likelier_than_not(models, alone):
    segmenter, image = models.grounded_sam.segmenter, alone[0].before.image[None]
    boxes = [torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.3, 0.2, 1.0, 0.9]])]
    (logits,), (masks,) = segmenter.logits(image, boxes), segmenter.segment(image, boxes)
    assert torch.equal(masks, (logits.sigmoid() > 0.5).float())
    assert ((logits > 0) & (logits < 1)).any()
