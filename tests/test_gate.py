"""Which images are left as they are: the gate, and the choice between an image and the one sampled again."""

import math

import numpy as np
import pytest
from realigndiff.rewards.gate import passes_gate, replaces


@pytest.mark.parametrize(
    ("reward", "gate", "passes"),
    [(0.9, 0.9, True), (math.nextafter(0.9, 0), 0.9, False), (1.0, 0.9, True), (-1.0, -1.0, True), (1.0, None, False)],
)
def test_an_image_passes_whose_reward_is_at_least_the_gate(reward, gate, passes):
    assert passes_gate(reward, gate) is passes


@pytest.mark.parametrize(
    ("before", "after", "keep_better", "replaced"),
    [(0.5, 0.6, True, True), (0.5, 0.5, True, False), (0.5, 0.4, True, False), (0.5, 0.4, False, True)],
)
def test_a_new_image_replaces_the_first_unless_it_is_no_better_and_the_better_is_kept(
    before, after, keep_better, replaced
):
    assert replaces(before, after, keep_better) is replaced


def test_many_rewards_are_answered_as_each_alone():
    before, after = np.array([0.5, 0.9, 0.95]), np.array([0.6, 0.9, 0.1])
    assert passes_gate(before, 0.9).tolist() == [passes_gate(reward, 0.9) for reward in before.tolist()]
    for keep_better in (True, False):
        alone = [replaces(*rewards, keep_better) for rewards in zip(before.tolist(), after.tolist(), strict=True)]
        assert replaces(before, after, keep_better).tolist() == alone
