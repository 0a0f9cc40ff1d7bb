"""The LLM step without an LLM, and what becomes of anyone's answers."""

from realigndiff.core.regions import CERTAIN, UNLIKELY
from realigndiff.perception.likelihood import OfflineScorer, likelihoods

OFFLINE = OfflineScorer()


def told(prompt, tags, model=OFFLINE):
    return [(r.tag, r.phrase, r.occurrence, r.likelihood) for r in likelihoods(prompt, tags, model)]


def test_each_phrase_of_the_prompt_becomes_one_region_with_its_last_tag():
    assert told("a red circle and a blue square", ["red", "circle", "square", "blue"]) == [
        ("circle", "a red circle", 0, CERTAIN),
        ("square", "a blue square", 0, CERTAIN),
    ]


def test_phrases_that_share_a_tag_are_two_regions():
    assert [r[:2] for r in told("a red circle and a blue circle", ["circle"])] == [
        ("circle", "a red circle"),
        ("circle", "a blue circle"),
    ]


def test_a_phrase_said_twice_is_two_occurrences():
    assert [r[1:3] for r in told("a red circle and a red circle", ["circle"])] == [
        ("a red circle", 0),
        ("a red circle", 1),
    ]


def test_a_phrase_that_the_tagger_did_not_see_is_still_a_region():
    assert told("a red circle", []) == [("circle", "a red circle", 0, CERTAIN)]


def test_a_tag_outside_the_prompt_follows_without_a_phrase_and_is_unlikely():
    assert told("a red circle", ["circle", "dog"])[1] == ("dog", "", 0, UNLIKELY)


def test_a_prompt_without_words_has_no_phrases():
    assert told("!!!", []) == []


def test_an_answer_that_is_nonsense_leaves_the_prompts_own_phrases_and_says_so():
    class Nonsense:
        def bind(self, prompt, tags):
            return "I am sorry"

        def score(self, prompt, tags):
            return {"circle": "a lot"}

    regions = likelihoods("a red circle", ["circle"], Nonsense())
    assert [(r.phrase, r.likelihood) for r in regions] == [("a red circle", 2), ("", 0)]
    assert len(regions.notes) == 3
