"""Whatever a language model writes, only tags, words of the prompt and allowed scores come out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realigndiff.core.regions import LIKELIHOODS
from realigndiff.perception.validator import valid_bindings, valid_scores

PROMPT = "a red book and a yellow pen"
TAGS = ("book", "pen", "table")

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(TAGS), inner),
    max_leaves=8,
)


def test_a_right_answer_passes_without_a_note():
    answer = {"book": "a red book", "pen": ["a yellow pen"]}
    assert valid_bindings(answer, PROMPT, TAGS) == ({"book": ("a red book",), "pen": ("a yellow pen",)}, [])
    assert valid_scores({"book": 2, "pen": 2, "table": 0.5}, TAGS) == ({"book": 2, "pen": 2, "table": 0.5}, [])


def test_words_that_are_not_in_the_prompt_are_repaired_with_a_reason():
    bindings, notes = valid_bindings({"pen": "a blue pen"}, PROMPT, TAGS)
    assert bindings == {"pen": ("pen",)}
    assert "not one thing that the prompt names" in notes[0]


def test_words_without_any_likeness_are_dropped_with_a_reason():
    bindings, notes = valid_bindings({"table": "a wooden table"}, PROMPT, TAGS)
    assert bindings == {}
    assert "dropped" in notes[0]


def test_a_word_of_the_prompt_is_matched_whole():
    bindings, notes = valid_bindings({"pen": "low pen"}, PROMPT, TAGS)
    assert bindings["pen"] != ("low pen",)
    assert notes


@pytest.mark.parametrize(("given", "taken"), [(1.6, 2.0), ("2", 2.0), (0.4, 0.5), (-3, 0.0), (99, 2.0)])
def test_other_scores_become_the_nearest_allowed_one(given, taken):
    scores, notes = valid_scores({"book": given}, TAGS)
    assert scores["book"] == taken
    assert scores["table"] == 0.0
    assert any("no score" in note for note in notes)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "many", None, True, [2]])
def test_a_score_that_is_no_number_is_dropped(given):
    scores, notes = valid_scores({"book": given}, ("book",))
    assert scores == {"book": 0.0}
    assert len(notes) == 2


@given(anything)
def test_no_answer_raises_and_none_gets_through_unchecked(answer):
    bindings, _ = valid_bindings(answer, PROMPT, TAGS)
    scores, _ = valid_scores(answer, TAGS)
    assert set(bindings) <= set(TAGS)
    assert all(phrase in PROMPT for own in bindings.values() for phrase in own)
    assert set(scores) == set(TAGS)
    assert set(scores.values()) <= set(LIKELIHOODS)
