"""What is said of a region in text, and what becomes of its values when it is edited."""

import pytest
import torch
from realigndiff.core.describe import describe_regions
from realigndiff.core.editing import edit_region
from realigndiff.core.interchange import region_sets
from realigndiff.core.masks import mask_box
from realigndiff.core.regions import MAYBE, Region, RegionSet

PROMPT = "a red circle and a blue square"
MASK = torch.zeros(8, 8)
MASK[2:6, 4:8] = 1
FOUND = RegionSet(PROMPT, (Region(tag="circle", phrase="a red circle", mask=MASK, box=(0, 0, 1, 1), detection=0.83),))


def test_a_table_says_how_sure_the_detector_was_and_how_much_of_the_image_it_is():
    line = describe_regions([FOUND])
    assert "score 0.83" in line and "25.0% of the image" in line and "“a red circle”" in line and "s=2" in line


def test_a_mask_drawn_by_hand_has_no_score_of_a_detector():
    (region,) = edit_region(FOUND, 0, mask=1 - MASK)
    assert region.detection is None and torch.equal(region.mask, 1 - MASK)
    (renamed,) = edit_region(FOUND, 0, phrase="blue square")
    assert renamed.detection == 0.83 and renamed.box == (0, 0, 1, 1)


def test_the_box_of_a_mask_is_around_what_is_more_than_half_covered():
    faint = MASK.clone()
    faint[0, 0] = 0.4
    faint[7, 0] = 0.6
    assert mask_box(MASK) == (0.5, 0.25, 1.0, 0.75)
    assert mask_box(faint) == (0.0, 0.25, 1.0, 1.0)


def test_the_likelihood_of_a_region_in_json_counts():
    text = '[{"phrase": "a red circle", "box": [0, 0, 0.5, 0.5], "likelihood": 0.5}, {"phrase": "a blue square"}]'
    (regions,) = region_sets(text, text=PROMPT)
    assert [region.likelihood for region in regions] == pytest.approx([MAYBE, 2])
