"""Masks become cells by area, and cells and tokens become R, S and B of eq. 8-9."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realigndiff.attention.equation.cells import grid_size, mask_to_cells
from realigndiff.attention.equation.layout import cross_layout, self_layout
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import CERTAIN, MAYBE, Region, RegionSet
from realigndiff.tests.close import assert_close


def region(mask, likelihood=CERTAIN, phrase="thing"):
    return Region(tag="thing", phrase=phrase, likelihood=likelihood, mask=mask)


def box(x0, y0, x1, y1, size=16):
    mask = torch.zeros(size, size)
    mask[y0:y1, x0:x1] = 1
    return mask


def areas_in_a_loop(mask, size):
    """The covered fraction of each cell: both grids refined until every cell is a whole number of pixels."""
    fine = mask.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
    rows, columns = mask.shape
    return torch.tensor(
        [
            [fine[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean() for j in range(size[1])]
            for i in range(size[0])
        ]
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    coverage=st.sampled_from([0.1, 0.5, 1.0]),
    density=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_a_cell_is_inside_when_the_mask_covers_enough_of_it(shape, size, coverage, density, seed):
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).float()
    area = areas_in_a_loop(mask, size)
    cells = mask_to_cells(mask, size, coverage)
    assert cells.shape == size
    clear = (area - coverage).abs() > 1e-3
    lost = not (area >= coverage - 1e-3).any()  # then only the fullest cells stay
    expected = (area > area.max() - 1e-3) & (area > 0) if lost else area >= coverage
    assert torch.equal(cells[clear], expected[clear])
    assert cells.any() == mask.any()


def test_one_pixel_survives_on_a_coarse_map():
    cells = mask_to_cells(box(70, 20, 71, 21, size=128), (8, 8))
    assert cells.nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize(
    ("n", "latent", "size"),
    [
        (4096, (64, 64), (64, 64)),
        (64, (64, 64), (8, 8)),
        (9 * 12, (65, 96), (9, 12)),
        (33 * 48, (65, 96), (33, 48)),
        (1, (7, 5), (1, 1)),
    ],
)
def test_the_map_of_a_layer_is_found_from_its_number_of_queries(n, latent, size):
    assert grid_size(n, latent) == size


def test_a_layer_that_is_no_halving_of_the_latent_is_refused():
    with pytest.raises(RealignError, match="100 queries"):
        grid_size(100, (64, 64))


def test_words_are_tied_to_the_pixels_of_their_region():
    left, right = region(box(0, 0, 8, 16)), region(box(12, 0, 16, 16), MAYBE)
    layout = cross_layout([RegionSet("p", (left, right))], [[[1, 2], [4]]], (4, 4), 6, ModulationSettings())
    related = layout.R.dense()[0].unflatten(0, (4, 4))  # [h, w, tokens]
    assert related[:, :, 1].tolist() == related[:, :, 2].tolist() == [[True, True, False, False]] * 4
    assert related[:, :, 4].tolist() == [[False, False, False, True]] * 4
    assert not related[:, :, [0, 3, 5]].any()
    assert layout.B[0, :4, 0].tolist() == [0.5, 0.5, 0.0, 0.25]
    assert layout.S[0, 0].tolist() == [1.0, 2.0, 2.0, 1.0, 0.5, 1.0]


def test_tokens_of_no_phrase_follow_the_outside_setting():
    sets = [RegionSet("p", (region(box(0, 0, 8, 16)),))]
    layout = cross_layout(sets, [[[1]]], (4, 4), 3, ModulationSettings(outside=0.0))
    assert layout.S[0, 0].tolist() == [0.0, 2.0, 0.0]


def test_tokens_that_no_text_made_are_left_alone():
    sets = [RegionSet("p", (region(box(0, 0, 8, 8)),)), RegionSet("p", (region(box(0, 0, 8, 8)),))]
    layout = cross_layout(sets, [[[2]], [[2]]], (4, 4), 5, ModulationSettings(), [range(1, 4), range(5)])
    assert (layout.S[:, 0] > 0).tolist() == [[False, True, True, True, False], [True] * 5]


def test_where_regions_overlap_the_larger_one_and_the_more_certain_count():
    small, large = region(box(0, 0, 8, 8)), region(box(0, 0, 8, 16), MAYBE)
    sets = [RegionSet("p", (small, large))]
    options = ModulationSettings()
    cross = cross_layout(sets, [[[1, 2], [2]]], (4, 4), 4, options)
    assert cross.B[0, 0] == 0.5
    assert cross.S[0, 0].tolist() == [1.0, 2.0, 2.0, 1.0]
    assert self_layout(sets, (4, 4), options).weights[0][0, 0] == 2 * 0.5


def test_pixels_see_their_own_segment_and_the_background_is_one():
    sets = [RegionSet("p", (region(box(0, 0, 4, 16)),))]
    layout = self_layout(sets, (4, 4), ModulationSettings())
    column = torch.arange(16) % 4 == 0
    assert torch.equal(layout.R.dense()[0], column[:, None] == column)
    assert_close(layout.weights[0][0], torch.where(column, 2 * 0.75, 1 * 0.25))
    assert layout.per_query


def test_batch_elements_without_active_regions_are_not_modulated():
    sets = [
        None,
        RegionSet("p", (region(box(0, 0, 4, 4)), region(box(4, 4, 9, 9)))),
        RegionSet("p"),
        RegionSet("p", (region(None),)),
    ]
    positions = [[], [[1], [2]], [], []]
    cross = cross_layout(sets, positions, (4, 4), 5, ModulationSettings())
    for layout in (cross, self_layout(sets, (4, 4), ModulationSettings())):
        assert layout.modulated == [1]
        assert not layout.a(1.0)[[0, 2, 3]].any()
        assert layout.select(layout.modulated).shape[0] == 1


def test_the_factors_of_the_relation_multiply_to_it():
    masks = [box(0, 0, 8, 8), box(4, 4, 12, 12), box(4, 0, 16, 8)]
    layout = self_layout([RegionSet("p", tuple(map(region, masks))), None], (8, 8), ModulationSettings())
    queries, keys = layout.R.factors
    product = queries.float() @ keys.float().mT
    assert torch.equal(product, layout.R.dense().float())


def test_a_token_beyond_the_encoding_is_refused():
    with pytest.raises(RealignError, match="only 4"):
        cross_layout([RegionSet("p", (region(box(0, 0, 4, 4)),))], [[[4]]], (4, 4), 4, ModulationSettings())
