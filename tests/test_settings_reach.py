"""Settings reach what they are for, from the loop down to a layer of the UNet."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from realigndiff.attention.diffusers import processor
from realigndiff.attention.equation.layout import cross_layout, self_layout
from realigndiff.attention.equation.layout_cache import Batch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.regions import MAYBE, UNLIKELY, Region, RegionSet
from realigndiff.perception.detector import Candidates
from realigndiff.perception.grounded_sam import GroundedSam
from realigndiff.perception.tagger import Tag
from realigndiff.pipeline.realign import Models, RealignSettings, find_regions, resample
from realigndiff.sampling.settings import SamplingSettings

PROMPT = "a red circle and a blue square"


# A layer


def halves():
    """A region whose mask covers the left 5 of 16 columns: of the second column of a 4 × 4 map a quarter."""
    mask = torch.zeros(16, 16)
    mask[:, :5] = 1
    return [RegionSet(PROMPT, (Region(tag="circle", phrase="a red circle", mask=mask),))]


@pytest.mark.parametrize(("coverage", "columns"), [(0.5, 1), (0.25, 2), (0.3, 1)])
def test_coverage_decides_which_cells_of_a_map_are_inside(coverage, columns):
    settings = ModulationSettings(coverage=coverage)
    cross = cross_layout(halves(), [[[1, 2, 3]]], (4, 4), 8, settings)
    inside = cross.R.dense()[0, :, 1].view(4, 4)
    assert inside.sum(1).tolist() == [columns] * 4
    ours = self_layout(halves(), (4, 4), settings)
    assert ours.R.dense()[0, 0].view(4, 4).sum(1).tolist() == [columns] * 4


@pytest.mark.parametrize("limit", [1.2, 0.1])
def test_the_gain_limit_bounds_both_kinds_of_attention(limit):
    free, bound = ModulationSettings(), ModulationSettings(gain_limit=limit)
    for lay_out in (
        lambda settings: cross_layout(halves(), [[[1, 2, 3]]], (4, 4), 8, settings),
        lambda settings: self_layout(halves(), (4, 4), settings),
    ):
        weight = lay_out(free).a(1.0)
        assert weight.max() > 1.4
        torch.testing.assert_close(lay_out(bound).a(1.0), weight.clamp(max=limit))


def test_each_step_is_modulated_as_strongly_as_the_equation_says(models, monkeypatch):
    """λ·(t/T)^p from `start` to `end` of the run's steps, and not at all at the others."""
    seen, modulated = [], processor.modulated_attention

    def noted(q, k, v, layout, strength):
        seen[-1].add(round(float(strength), 6))
        return modulated(q, k, v, layout, strength)

    monkeypatch.setattr(processor, "modulated_attention", noted)
    settings = ModulationSettings(cross_strength=0.8, self_strength=0.5, power=2.0, start=0.25, end=0.75)
    sampler, steps = models.sampler, 4
    seen.append(set())
    sampler.sample_latents(
        [PROMPT],
        sampler.noise([1]),
        SamplingSettings(steps=steps, cfg=3.0),
        region_sets=halves(),
        modulation=settings,
        on_step=lambda *_: seen.append(set()),
    )
    times = [float(t) / 1000 for t in sampler.scheduler.timesteps]
    strengths = [{round(strength * t**2, 6) for strength in (0.8, 0.5)} for t in times]
    expected = [strengths[i] if i in (1, 2) else set() for i in range(steps)]
    assert seen[:steps] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"qk_norm": "layer_norm"},
        {"cross_attention_norm": "layer_norm"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_layers_own_options_hold_under_modulation(options):
    """Modulation that is next to nothing gives what the layer's own processor gives."""
    torch.manual_seed(0)
    layer = Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16, **options).eval()
    settings = ModulationSettings(cross_strength=1e-6, power=0.0, end=1.0)
    modulation = processor.Modulation(Batch(halves(), [[[1, 2, 3]]]), (8, 8), settings)
    modulation.at(1.0, 0.0)
    pixels, text = torch.randn(1, 64, 32), 3 * torch.randn(1, 8, 24) + 1
    with torch.no_grad():
        plain = layer(pixels, text)
        layer.set_processor(processor.ModulatedProcessor(layer.processor, modulation))
        torch.testing.assert_close(layer(pixels, text), plain, rtol=1e-3, atol=1e-4)


# The loop


@pytest.mark.parametrize("strong", [True, False])
def test_the_images_are_sampled_again_as_strongly_as_asked_for(models, strong):
    weak = ModulationSettings(cross_strength=0.0, self_strength=0.0)
    settings = RealignSettings(
        sampling=SamplingSettings(steps=2, cfg=3.0), modulation=ModulationSettings(end=1.0) if strong else weak
    )
    noise = models.sampler.noise([1])
    plain = models.sampler.sample([PROMPT], noise, settings.sampling)[0]
    (ours,) = resample(models, [PROMPT], noise, halves(), settings)
    assert ((ours.image - plain).abs().max() > 0.01) == strong


class Detector:
    """Finds the same two boxes, which overlap by half of the smaller, for each phrase."""

    def detect(self, images, phrases, *, nms):
        boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.5, 1.0]])
        boxes = boxes[: 1 if nms < 0.5 else 2]
        scores = torch.tensor([[0.5], [0.4]]).expand(2, len(phrases[0]))[: len(boxes)]
        return [Candidates(boxes, scores)]


class Segmenter:
    """Fills each box."""

    def segment(self, images, boxes):
        masks = torch.zeros(len(boxes[0]), 16, 16)
        for mask, (x0, _, x1, _) in zip(masks, boxes[0].tolist(), strict=True):
            mask[:, int(16 * x0) : int(16 * x1)] = 1
        return [masks]


class Silent:
    """A language model that answers nothing."""

    def bind(self, prompt, tags):
        return {}

    score = bind


class Encoder:
    """f_enc for which every tag is near the prompt."""

    def embed(self, texts):
        return torch.ones(len(texts), 1)


def found(text_encoder=None, **settings):
    """The regions of an image in which the tagger sees a circle and a novel."""
    models = Models(
        sampler=None,
        reward=SimpleNamespace(text_encoder=text_encoder),
        tagger=SimpleNamespace(tag=lambda images, threshold: [[Tag("circle", 0.9), Tag("novel", 0.8)]]),
        language_model=Silent(),
        grounded_sam=GroundedSam(Detector(), Segmenter()),
    )
    settings = RealignSettings(**{"box_threshold": 0.3, **settings})
    (regions,) = find_regions(models, torch.zeros(1, 16, 16, 3), ["a red circle"], settings)
    return regions.regions


def test_the_box_threshold_decides_what_is_found():
    assert found()[0].mask is not None
    assert found(box_threshold=0.6)[0].mask is None


def test_the_smallest_area_decides_what_is_found():
    assert found(min_area=0.49)[0].mask is not None
    assert found(min_area=0.51)[0].mask is None


def test_all_boxes_of_a_phrase_leave_none_for_a_tag_that_the_prompt_does_not_name():
    assert [region.mask is not None for region in found(boxes="one")] == [True, True]
    assert [region.mask is not None for region in found(boxes="all")] == [True, False]


def test_boxes_that_overlap_more_than_nms_says_are_one():
    assert [region.mask is not None for region in found(nms=0.6)] == [True, True]
    assert [region.mask is not None for region in found(nms=0.4)] == [True, False]


def test_a_tag_that_nobody_scores_is_scored_by_its_nearness_to_the_prompt():
    assert found(Encoder())[1].likelihood == MAYBE
    assert found()[1].likelihood == UNLIKELY


def test_the_settings_of_a_loop_are_told_in_full():
    settings = RealignSettings(nms=0.4, modulation=ModulationSettings(end=0.7))
    assert settings.to_dict()["nms"] == 0.4 and settings.to_dict()["modulation"]["end"] == 0.7
    assert set(settings.to_dict()) == {field.name for field in dataclasses.fields(settings)}
