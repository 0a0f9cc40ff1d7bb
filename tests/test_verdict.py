"""What is said of a prompt that was re-aligned: what was done, and which of its things that did not help."""

import dataclasses
import json

import pytest
import torch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.describe import describe_effect, describe_regions, describe_unhelped
from realigndiff.core.regions import CERTAIN, UNLIKELY, Region, RegionSet
from realigndiff.demo.models import SETTINGS
from realigndiff.drawing.panel import draw_panel
from realigndiff.evaluation.methods import apply_keep_better
from realigndiff.pipeline.realign import realign, report
from realigndiff.sampling.settings import SamplingSettings

PROMPT = "a red circle and a blue square"
HALF = torch.zeros(8, 8)
HALF[:, :4] = 1
FAST = dataclasses.replace(SETTINGS, sampling=SamplingSettings(steps=2, cfg=3.0), gate=None, keep_better=False)


def region(phrase, mask=HALF, likelihood=CERTAIN, occurrence=0):
    return Region(tag="thing", phrase=phrase, mask=mask, likelihood=likelihood, occurrence=occurrence)


def regions_of(*regions):
    return RegionSet(PROMPT, regions)


@pytest.fixture
def realigned(models, monkeypatch):
    """Realigns the prompt as if these regions had been found."""

    def run(*regions, **settings):
        monkeypatch.setattr("realigndiff.pipeline.realign.find_regions", lambda *_: [regions_of(*regions)])
        return realign(models, PROMPT, 3, dataclasses.replace(FAST, **settings))

    return run


@pytest.mark.parametrize("mask", [None, torch.zeros(8, 8)], ids=["no mask", "an empty mask"])
def test_the_verdict_of_an_image_sampled_again_names_what_was_not_found(realigned, mask):
    result = realigned(region("a red circle"), region("a blue square", mask))
    assert result.changed
    assert result.verdict == (
        "The image was sampled again with attention re-weighted inside its regions; not found in the image, so not "
        "helped: 'a blue square'."
    )
    assert json.loads(json.dumps(report(result, FAST)))["verdict"] == result.verdict
    assert report(result, FAST)["missing"] == ["a blue square"]


def test_the_verdict_names_what_was_found_but_is_left_alone(realigned):
    result = realigned(region("a red circle"), region("a blue square", likelihood=UNLIKELY))
    assert result.changed and "with likelihood 0, so not helped: 'a blue square'" in result.verdict
    assert "not found" not in result.verdict


def test_the_verdict_of_an_image_whose_things_were_all_found_names_none(realigned):
    result = realigned(region("a red circle"), region("a blue square", 1 - HALF))
    assert result.verdict == "The image was sampled again with attention re-weighted inside its regions."


def test_the_verdict_of_an_image_that_was_no_better_names_what_was_not_found(realigned):
    found = region("a red circle"), region("a blue square", None)
    every = realigned(*found)
    kept = realigned(*found, keep_better=True)
    for result in (kept, apply_keep_better(every)):
        if not result.changed:
            assert "is no better than" in result.verdict and result.verdict.endswith("not helped: 'a blue square'.")
    worse = dataclasses.replace(every, after=dataclasses.replace(every.after, reward=-1.0))
    assert "not found in the image, so not helped: 'a blue square'" in apply_keep_better(worse).verdict


def test_the_verdict_of_an_image_with_nothing_to_re_weight_names_it_all(realigned):
    result = realigned(region("a red circle", None), region("a blue square", None))
    assert not result.changed
    assert "no region of the prompt was found in the image ('a red circle', 'a blue square')" in result.verdict
    result = realigned(region("a red circle", likelihood=UNLIKELY), region("a blue square", None))
    assert "('a red circle') has likelihood 0" in result.verdict
    assert result.verdict.endswith("; not found in the image: 'a blue square'.")


def test_the_verdict_of_an_image_that_reaches_the_gate_says_that_nothing_was_looked_for(models):
    result = realign(models, PROMPT, 3, dataclasses.replace(FAST, gate=-1.0))
    assert "reaches the gate -1, so its regions were not looked for" in result.verdict


@pytest.mark.parametrize(
    "off",
    [{"end": 0.0}, {"cross_strength": 0.0, "self_strength": 0.0}, {"gain_limit": 0.0}, {"start": 0.6, "end": 0.9}],
)
def test_settings_that_re_weight_nothing_leave_the_image_and_say_so(realigned, off):
    result = realigned(region("a red circle"), modulation=ModulationSettings(**off))
    assert not result.changed
    assert "re-weight attention at no step" in result.verdict
    isolated = realigned(region("a blue square"), modulation=ModulationSettings(**off), isolate_phrases=True)
    assert isolated.changed
    assert isolated.verdict == "The image was sampled again with its phrases encoded alone."


def test_of_equal_phrases_the_one_that_was_not_found_is_named_by_its_place():
    same = regions_of(region("a red circle"), region("A red circle", None, occurrence=1))
    assert describe_unhelped(same) == "not found in the image, so not helped: 'A red circle' (number 2 in the prompt)"


def test_a_region_of_the_whole_image_is_named_because_nothing_is_re_weighted_there():
    assert "covering the whole image" in describe_unhelped(regions_of(region("a red circle", torch.ones(8, 8))))


def test_a_thing_without_words_of_the_prompt_is_not_missed():
    assert describe_unhelped(regions_of(region("a red circle"), region("", None))) == ""


def test_the_nodes_say_of_each_image_what_is_not_helped():
    whole = regions_of(region("a red circle"))
    half, none = regions_of(region("a red circle"), region("a blue square", None)), regions_of()
    assert describe_effect([whole]) == ""
    assert describe_effect([half]) == "not found in the image, so not helped: 'a blue square'"
    assert describe_effect([whole, half, none]).splitlines() == [
        "image 1: not found in the image, so not helped: 'a blue square'",
        "image 2: nothing is re-weighted, so sampling with these regions changes nothing",
    ]


def test_the_table_says_what_was_looked_for_and_not_found_also_where_nothing_was():
    nothing = regions_of(region("a red circle", None))
    assert "not found" not in describe_regions([nothing]) and "not found" in describe_regions([nothing], searched=True)
    assert "not found" in describe_regions([regions_of(region("a red circle", torch.zeros(8, 8)))])


def test_the_panel_tells_what_was_not_found(realigned):
    whole = realigned(region("a red circle"), region("a blue square", None))
    other = dataclasses.replace(whole, regions=whole.regions.with_regions(list(whole.regions)[:1]))
    assert draw_panel(whole).tobytes() != draw_panel(other).tobytes()
