"""The table and its confidence intervals."""

import numpy as np
import pytest
from realigndiff.evaluation.bootstrap import paired_difference
from realigndiff.evaluation.table import COLUMNS, as_text, table


def test_the_interval_is_that_of_the_paired_differences():
    rng = np.random.default_rng(0)
    before = rng.normal(size=400)
    after = before + rng.normal(0.2, 0.5, size=400)
    delta, low, high = paired_difference(before, after)
    half = 1.96 * np.std(after - before) / np.sqrt(400)
    assert delta == pytest.approx(np.mean(after - before))
    assert (delta - low, high - delta) == pytest.approx((half, half), rel=0.1)


def test_no_difference_is_no_difference():
    same = np.ones(10)
    assert paired_difference(same, same) == (0, 0, 0)


def test_equal_data_gives_equal_intervals():
    a, b = np.arange(20.0), np.arange(20.0)[::-1]
    assert paired_difference(a, b) == paired_difference(a, b)


@pytest.mark.parametrize(("before", "after"), [(np.ones(3), np.ones(4)), (np.ones(1), np.ones(1))])
def test_what_is_not_paired_is_refused(before, after):
    with pytest.raises(ValueError, match="Paired values"):
        paired_difference(before, after)


def scores(both):
    both = np.array(both, float)
    return {"bind": both, "both_right": both, "exact": both, "caption_reward": both}


def test_stayed_right_counts_only_what_was_right():
    told = table({"base": scores([1, 1, 1, 1, 0, 0]), "+ fine": scores([1, 1, 1, 0, 1, 0])})
    base, fine = told["rows"]
    assert told["n"] == 6
    assert (base["stayed_right"], fine["stayed_right"]) == (1.0, 0.75)
    assert fine["both_right"] == base["both_right"] == pytest.approx(4 / 6)
    assert {d["column"] for d in told["differences"]} == set(COLUMNS)
    assert all(d["row"] == "+ fine" and d["ci"][0] <= d["delta"] <= d["ci"][1] for d in told["differences"])
    assert "95 %" in as_text(told)


def test_with_no_right_image_there_is_nothing_that_could_stay_right():
    told = table({"base": scores([0, 0, 0]), "+ fine": scores([1, 0, 0])})
    assert told["rows"][1]["stayed_right"] is None
    assert as_text(told)
