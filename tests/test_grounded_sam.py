"""Boxes go to phrases one-to-one."""

import torch
from realigndiff.core.regions import Region, RegionSet
from realigndiff.perception.detector import Candidates
from realigndiff.perception.grounded_sam import GroundedSam

IMAGE = torch.zeros(1, 64, 64, 3)
LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0]


class Detector:
    """Finds the boxes it is given."""

    def __init__(self, boxes, scores):
        self.found = Candidates(torch.as_tensor(boxes), torch.as_tensor(scores))

    def detect(self, images, phrases):
        self.asked = phrases
        return [self.found]


class Segmenter:
    """Fills each box."""

    def masks(self, images, boxes):
        out = torch.zeros(len(boxes[0]), 64, 64)
        for mask, box in zip(out, boxes[0], strict=True):
            mask[:, int(box[0] * 64) : int(box[2] * 64)] = 1
        return [out]


def ground(regions, boxes, scores, **options):
    return GroundedSam(Detector(boxes, scores), Segmenter()).ground(IMAGE, [RegionSet("prompt", regions)], **options)[0]


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
