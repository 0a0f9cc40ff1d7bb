"""Modulation fades with the noise, acts in its steps only, and says which of its settings is wrong."""

from __future__ import annotations

import math

import pytest
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError


def test_strength_fades_with_the_noise_and_ends_with_its_steps():
    options = ModulationSettings(cross_strength=2.0, self_strength=0.5, power=2.0, start=0.1, end=0.5)
    assert options.strengths(0.5, 0.1) == (0.5, 0.125)
    assert options.strengths(0.9, 0.05) == (0.0, 0.0)
    assert options.strengths(0.9, 0.5) == (0.0, 0.0)
    assert ModulationSettings(power=0.0, end=1.0).strengths(0.0, 0.99) == (1.0, 0.3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("cross_strength", -1), ("power", math.nan), ("start", 1.5), ("end", -0.1), ("coverage", 0), ("gain_limit", -1)],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(RealignError, match=field):
        ModulationSettings(**{field: value})


def test_modulation_must_not_end_before_it_starts():
    with pytest.raises(RealignError, match="start"):
        ModulationSettings(start=0.5, end=0.2)
