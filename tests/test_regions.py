"""Regions and sets of them."""

import json

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet, free_occurrence


def square(side: int = 4) -> torch.Tensor:
    mask = torch.zeros(8, 8)
    mask[:side, :side] = 1
    return mask


def test_only_regions_with_words_pixels_and_likelihood_are_active():
    regions = RegionSet(
        "a red circle",
        (
            Region(tag="circle", phrase="a red circle", mask=square()),
            Region(tag="ring", mask=square()),
            Region(tag="square", phrase="a red circle", mask=square(), likelihood=0.0),
            Region(tag="cross", phrase="a red circle", mask=torch.zeros(8, 8)),
            Region(tag="diamond", phrase="a red circle"),
        ),
    )
    assert [region.tag for region in regions.active] == ["circle"]
    assert regions.missing == ("a red circle", "a red circle")  # an empty mask is none
    assert len(regions) == 5


def test_a_set_is_told_as_json_with_areas_for_masks():
    region = Region(tag="circle", phrase="a circle", mask=square(), box=(0.0, 0.0, 0.5, 0.5), detection=0.8)
    output = json.loads(json.dumps(RegionSet("a circle", (region,), ("a note",)).to_dict()))
    assert output["regions"][0]["mask_area"] == 0.25
    assert output["notes"] == ["a note"]


def test_with_regions_keeps_the_prompt_and_adds_notes():
    first = RegionSet("a circle", (), ("one",))
    second = first.with_regions([Region(tag="circle")], "two")
    assert (second.prompt, second.notes, len(first)) == ("a circle", ("one", "two"), 0)


def test_a_batch_of_masks_is_refused():
    with pytest.raises(RealignError, match="give one mask"):
        Region(tag="circle", mask=torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    ("phrase", "prompt", "wished"),
    [
        ("a ring", "a ring and A Ring", [0, 1, 2]),
        ("circle", "a red circle and circle", [1, 0, 2]),
        ("circle", "a red circle", [0, 1]),
    ],
)
def test_the_next_region_of_the_same_words_takes_the_next_place_where_they_stand_alone(phrase, prompt, wished):
    others: list[Region] = []
    for _ in wished:
        others.append(Region(tag="x", phrase=phrase, occurrence=free_occurrence(phrase, prompt, others)))
    assert [region.occurrence for region in others] == wished
