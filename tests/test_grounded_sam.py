"""Boxes go to phrases one-to-one, or all to those that they fit best; no box goes to two."""

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet
from realigndiff.perception.detector import Candidates
from realigndiff.perception.grounded_sam import GroundedSam

IMAGE = torch.zeros(1, 64, 64, 3)
LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0]


class Detector:
    """Finds the boxes it is given."""

    def __init__(self, boxes, scores):
        self.found = Candidates(torch.as_tensor(boxes), torch.as_tensor(scores))

    def detect(self, images, phrases, *, nms):
        return [self.found]


class Segmenter:
    """Fills each box."""

    def segment(self, images, boxes):
        out = torch.zeros(len(boxes[0]), 64, 64)
        for mask, box in zip(out, boxes[0], strict=True):
            mask[:, int(box[0] * 64) : int(box[2] * 64)] = 1
        return [out]


def ground(regions, found, scores, **options):
    return GroundedSam(Detector(found, scores), Segmenter()).ground(IMAGE, [RegionSet("prompt", regions)], **options)[0]


RED, BLUE = Region(tag="circle", phrase="a red circle"), Region(tag="circle", phrase="a blue circle")


def test_two_phrases_of_one_tag_take_two_boxes_even_when_one_box_suits_both():
    found = ground((RED, BLUE), [LEFT, RIGHT], [[0.9, 0.8], [0.3, 0.4]])
    assert [region.box[0] for region in found] == [torch.tensor(v).item() for v in (0.0, 0.6)]
    assert found.regions[0].mask[0, 0] == 1
    assert found.regions[1].mask[0, 0] == 0


def test_a_phrase_without_a_box_is_missing_and_says_so():
    found = ground((RED, BLUE), [LEFT], [[0.9, 0.8]])
    assert found.missing == ("a blue circle",)
    assert found.notes == ("'a blue circle' was not found in the image.",)
    assert [region.phrase for region in found.active] == ["a red circle"]


def test_a_box_below_the_threshold_is_no_box():
    assert ground((RED,), [LEFT], [[0.2]]).missing == ("a red circle",)
    assert ground((RED,), [LEFT], [[0.2]], box_threshold=0.1).missing == ()


def test_tags_outside_the_prompt_choose_after_its_phrases():
    other = Region(tag="square", likelihood=0.0)
    found = ground((other, RED), [LEFT], [[0.95, 0.5]])
    assert found.regions[0].mask is None
    assert found.regions[1].mask is not None


def test_no_box_at_all_leaves_all_regions_without_masks():
    found = ground((RED, BLUE), torch.zeros(0, 4), torch.zeros(0, 2))
    assert found.active == ()
    assert len(found.missing) == 2


SMALL = [0.45, 0.0, 0.5, 1.0]
APPLES, PEAR = Region(tag="apple", phrase="three red apples"), Region(tag="pear", phrase="a pear")


def test_a_phrase_takes_all_its_boxes_where_asked_to_and_they_are_one_region():
    found = ground((APPLES, PEAR), [LEFT, RIGHT, SMALL], [[0.7, 0.1], [0.9, 0.2], [0.3, 0.6]], boxes="all")
    apples, pear = found
    assert apples.box == tuple(torch.tensor([0.0, 0.0, 1.0, 1.0]).tolist())
    assert apples.detection == pytest.approx(0.9)
    assert [float(apples.mask[0, x]) for x in (0, 30, 60)] == [1, 0, 1]
    assert [float(pear.mask[0, x]) for x in (0, 30, 60)] == [0, 1, 0]
    assert pear.detection == pytest.approx(0.6)


def test_a_box_that_another_phrase_fits_better_is_not_taken_too():
    apples, pear = ground((APPLES, PEAR), [LEFT, RIGHT], [[0.7, 0.5], [0.6, 0.8]], boxes="all")
    assert apples.box[2] == pytest.approx(0.4)
    assert pear.box[0] == pytest.approx(0.6)
    found = ground((APPLES, PEAR), [LEFT, RIGHT], [[0.7, 0.5], [0.8, 0.6]], boxes="all")
    assert found.missing == ("a pear",)


def test_tags_outside_the_prompt_take_only_boxes_that_its_phrases_leave():
    other = Region(tag="square", likelihood=0.0)
    found = ground((other, RED), [LEFT, RIGHT], [[0.95, 0.5], [0.9, 0.2]], boxes="all")
    assert found.regions[0].box[0] == pytest.approx(0.6)
    assert found.regions[1].box[0] == 0


def test_one_box_is_taken_where_nothing_else_is_asked_for():
    assert ground((APPLES,), [LEFT, RIGHT], [[0.7], [0.9]]).regions[0].box[0] == pytest.approx(0.6)
    with pytest.raises(RealignError, match='"one" box or "all"'):
        ground((APPLES,), [LEFT], [[0.7]], boxes="two")


@pytest.mark.parametrize("boxes", ["one", "all"])
def test_no_box_passes_a_threshold_of_zero_with_nothing_for_it(boxes):
    assert ground((RED,), [LEFT], [[0.0]], boxes=boxes, box_threshold=0.0).missing == ("a red circle",)
    assert ground((RED, BLUE), torch.zeros(0, 4), torch.zeros(0, 2), boxes=boxes).active == ()


def test_a_mask_that_is_too_small_is_not_found_and_the_note_says_why():
    assert ground((PEAR,), [SMALL], [[0.9]], min_area=0.04).missing == ()
    found = ground((PEAR, RED), [SMALL, LEFT], [[0.9, 0], [0, 0.9]], min_area=0.07)
    assert found.missing == ("a pear",)
    assert found.notes == ("'a pear' was not found in the image: its mask covers 6.25% of the image.",)
    assert found.regions[1].mask is not None


def test_an_empty_mask_is_none():
    class Blind(Segmenter):
        def segment(self, images, boxes):
            return [torch.zeros(len(boxes[0]), 64, 64)]

    sets = [RegionSet("prompt", (RED,))]
    found = GroundedSam(Detector([LEFT], [[0.9]]), Blind()).ground(IMAGE, sets)[0]
    assert found.missing == ("a red circle",)
    assert found.notes == ("'a red circle' was not found in the image: its mask covers 0.00% of the image.",)


@pytest.mark.parametrize("setting", ["box_threshold", "nms", "min_area"])
def test_a_setting_out_of_its_range_is_told(setting):
    with pytest.raises(RealignError, match=f"{setting} is 7: give a number from 0 to 1"):
        ground((RED,), [LEFT], [[0.9]], **{setting: 7})
