"""The nodes for regions by hand, called as ComfyUI calls them."""

import pytest
import torch

PROMPT = "a red circle and a blue square"
EDIT = {"region": 0, "image_index": -1, "phrase": "", "likelihood": "keep", "drop": False}


@pytest.fixture
def nodes(comfy):
    from realigndiff.nodes import regions

    return regions


def halves(count):
    """Masks [count, 8, 8]: mask i has its first i + 1 rows."""
    masks = torch.zeros(count, 8, 8)
    for i in range(count):
        masks[i, : i + 1] = 1
    return masks


def sets(nodes, count):
    """The same region for each of some images."""
    drawn = nodes.RegionFromMask.execute(torch.ones(count, 8, 8), PROMPT, "a red circle", "certain (2)")
    return drawn.result[0]


def areas(regions):
    return [[round(region.area * 8) for region in one] for one in regions]


@pytest.mark.parametrize("count", [1, 3], ids=["regions of all images", "regions of each image"])
def test_edit_regions_deals_a_batch_of_masks_to_the_images(nodes, count):
    changed = nodes.EditRegions.execute(sets(nodes, count), mask=halves(3), **EDIT).result[0]
    assert areas(changed) == [[1], [2], [3]]


def test_edit_regions_changes_the_one_image_that_is_named(nodes):
    changed = nodes.EditRegions.execute(sets(nodes, 3), mask=halves(3), **{**EDIT, "image_index": 1}).result[0]
    assert areas(changed) == [[8], [2], [8]]


def test_edit_regions_tells_another_number_of_masks(nodes):
    from realigndiff.core.errors import RealignError

    with pytest.raises(RealignError, match="2 masks for 3 images"):
        nodes.EditRegions.execute(sets(nodes, 3), mask=halves(2), **EDIT)


def test_a_region_is_drawn_in_each_image_of_a_batch_of_masks(nodes):
    drawn = nodes.RegionFromMask.execute(halves(2), PROMPT, "a blue square", "certain (2)", sets(nodes, 1))
    assert areas(drawn.result[0]) == [[8, 1], [8, 2]]
