"""Whatever a language model writes, only tags, words of the prompt and allowed scores come out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realigndiff.core.regions import LIKELIHOODS
from realigndiff.language.validator import valid_bindings, valid_scores

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
    assert scores == {"book": taken}
    assert len(notes) == (float(given) != taken)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "many", None, True, [], [2, 0]])
def test_a_score_that_is_no_number_is_dropped(given):
    scores, notes = valid_scores({"book": given}, ("book",))
    assert scores == {}
    assert len(notes) == 1


@given(anything)
def test_no_answer_raises_and_none_gets_through_unchecked(answer):
    bindings, _ = valid_bindings(answer, PROMPT, TAGS)
    scores, _ = valid_scores(answer, TAGS)
    assert set(bindings) <= set(TAGS)
    assert all(phrase in PROMPT for ours in bindings.values() for phrase in ours)
    assert set(scores) <= set(TAGS)
    assert set(scores.values()) <= set(LIKELIHOODS)


@pytest.mark.parametrize("key", ["Book", " book ", "books", "a book", "the Books"])
def test_a_key_may_differ_in_case_article_and_plural(key):
    assert valid_bindings({key: "a red book"}, PROMPT, TAGS) == ({"book": ("a red book",)}, [])
    assert valid_scores({key: 2}, TAGS) == ({"book": 2}, [])


def test_of_tags_that_differ_in_the_plural_alone_each_is_itself():
    assert valid_scores({"books": 2, "book": 0}, ("book", "books"))[0] == {"books": 2, "book": 0}


def test_an_answer_may_be_wrapped():
    assert valid_scores({"scores": {"book": 2}, "why": "certain"}, TAGS) == ({"book": 2}, [])


def test_of_an_answer_in_parts_that_counts_which_has_most_of_the_tags():
    parts = {"why": {"it": "is"}, "first": {"book": 0}, "scores": {"book": 2, "pen": 0.5}, "more": {}}
    assert valid_scores(parts, TAGS) == ({"book": 2, "pen": 0.5}, [])


def test_a_value_may_be_wrapped():
    assert valid_scores({"book": {"score": 2}, "pen": [0.5]}, TAGS) == ({"book": 2, "pen": 0.5}, [])
    words = {"book": {"words": "a red book"}, "pen": {"words": ["a yellow pen"]}}
    assert valid_bindings(words, PROMPT, TAGS) == ({"book": ("a red book",), "pen": ("a yellow pen",)}, [])


def test_of_tags_that_differ_in_case_alone_each_is_itself():
    assert valid_scores({"dog": 0, "Dog": 2}, ("Dog", "dog"))[0] == {"Dog": 2, "dog": 0}
    assert valid_scores({"STRASSE": 2}, ("straße",))[0] == {"straße": 2}


@pytest.mark.parametrize("nothing", [None, "", [], [""], [None]])
def test_a_tag_may_be_said_to_have_no_words(nothing):
    assert valid_bindings({"table": nothing}, PROMPT, TAGS) == ({"table": ()}, [])


@pytest.mark.parametrize(
    "check", [lambda answer: valid_bindings(answer, PROMPT, TAGS), lambda a: valid_scores(a, TAGS)]
)
def test_an_answer_without_end_fills_no_report(check):
    _, notes = check({f"key {i}": "x" * 10_000 for i in range(10_000)})
    assert len(notes) == 21 and all(len(note) < 200 for note in notes)
    _, notes = check({"book": ["x" * 10_000] * 10_000})
    assert len(notes) <= 21 and all(len(note) < 200 for note in notes)


def test_long_words_for_many_tags_are_looked_up_in_a_long_prompt():
    prompt = " ".join(f"Word{i}" for i in range(600))
    tags = [f"tag {i}" for i in range(10)]
    bindings, _ = valid_bindings({tag: [f"{prompt.lower()} {tag}"] * 16 for tag in tags}, prompt, tags)
    assert bindings == dict.fromkeys(tags, (" ".join(f"Word{i}" for i in range(582, 600)),))
