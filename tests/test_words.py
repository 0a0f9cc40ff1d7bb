"""Finding a prompt's things and words."""

import random

import pytest
from realigndiff.core.phrases import nearest_span, noun_phrases
from realigndiff.core.words import content_words, mentions, occurrences, same_word, words_of


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a red circle and a blue square", ["a red circle", "a blue square"]),
        ("A red circle, a blue square; two dogs", ["A red circle", "a blue square", "two dogs"]),
        ("a cat on the mat next to a Yorkshire terrier", ["a cat", "the mat", "a Yorkshire terrier"]),
        ("a red circle and a red circle", ["a red circle", "a red circle"]),
        ("red circle", ["red circle"]),
        ("a dog chasing a cat", ["a dog chasing", "a cat"]),
        ("the, and, a", []),
        ("", []),
        ("!!! ???", []),
        ("une pomme verte", ["une pomme verte"]),
    ],
)
def test_noun_phrases_are_spans_of_the_prompt(prompt, phrases):
    assert noun_phrases(prompt) == phrases


def test_words_are_lower_case_and_keep_inner_hyphens():
    assert words_of("A T-shirt, isn't it?") == ["a", "t-shirt", "isn't", "it"]
    assert content_words("the red circle") == ["red", "circle"]


@pytest.mark.parametrize("pair", [("box", "boxes"), ("dog", "Dogs"), ("berry", "berries"), ("glass", "glass")])
def test_plurals_are_the_same_word(pair):
    assert same_word(*pair)


@pytest.mark.parametrize("pair", [("ring", "rings on"), ("gras", "grass"), ("red", "bed")])
def test_other_words_are_not(pair):
    assert not same_word(*pair)


def test_a_phrase_names_a_tag_when_it_holds_all_its_words():
    assert mentions("two red fire trucks", "fire truck")
    assert not mentions("a truck", "fire truck")
    assert not mentions("a circle", "the")


@pytest.mark.parametrize(
    ("phrase", "span"),
    [
        ("red circles", "a red circle"),
        ("blue square", "a Blue square"),
        ("circle red", "a red circle"),
        ("a blue circle", "circle"),  # one word is shared with either thing; the last one names it
        ("a circle and a square", "square"),
        ("green hexagon", None),
    ],
)
def test_the_nearest_span_forgives_case_plural_and_order(phrase, span):
    assert nearest_span(phrase, "a red circle and a Blue square") == span


@pytest.mark.parametrize(
    ("phrase", "prompt", "places"),
    [
        ("a red circle", "A red circle and a Red  circle", [(0, 12), (17, 30)]),
        ("circle", "a red circle and circle", [(6, 12), (17, 23)]),
        ("square", "'square', squares_square", [(1, 7), (18, 24)]),
        ("red red", "red red red", [(0, 7), (4, 11)]),
        ("(", "a (red) circle", []),
        ("", "a red circle", []),
    ],
)
def test_a_phrase_occurs_wherever_its_whole_words_stand(phrase, prompt, places):
    assert occurrences(phrase, prompt) == places


def test_of_a_long_phrase_the_last_words_are_looked_for():
    prompt = " ".join(f"word{i}" for i in range(2000))
    assert nearest_span(prompt.upper(), prompt) == " ".join(f"word{i}" for i in range(1980, 2000))


def test_the_nearest_span_is_the_best_of_all_spans_of_a_long_piece():
    """Of all stretches of up to twice the phrase's words: most words, with the last one, shortest, first."""
    draw = random.Random(3)
    for _ in range(40):
        letters = draw.choices("bcdefxyz", k=40)
        phrase = draw.sample("bcdefq", 4)

        def badness(stretch, letters=letters, phrase=phrase):
            start, stop = stretch
            shared = set(letters[start:stop]) & set(phrase)
            return -len(shared), phrase[-1] not in shared, stop - start, start

        stretches = [(start, stop) for start in range(40) for stop in range(start + 1, min(start + 8, 40) + 1)]
        start, stop = min(stretches, key=badness)
        assert nearest_span(" ".join(phrase), " ".join(letters)) == " ".join(letters[start:stop])
