"""The LLM step without an LLM, and what becomes of anyone's answers."""

import pytest
from realigndiff.core.errors import NoAnswer, RealignError
from realigndiff.core.regions import CERTAIN, MAYBE, UNLIKELY
from realigndiff.language.binding import bind_tags
from realigndiff.language.offline_scorer import OfflineScorer

OFFLINE = OfflineScorer()


def told(prompt, tags, model=OFFLINE):
    return [(r.tag, r.phrase, r.occurrence, r.likelihood) for r in bind_tags(prompt, tags, model)]


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

    regions = bind_tags("a red circle", ["circle"], Nonsense())
    assert [(r.phrase, r.likelihood) for r in regions] == [("a red circle", 2)]
    assert len(regions.notes) == 4


class Answers:
    """A language model with these two answers."""

    def __init__(self, bound, scored):
        self.bound, self.scored = bound, scored

    def bind(self, prompt, tags):
        return self.bound

    def score(self, prompt, tags):
        return self.scored


TWO = "a red circle and a blue square"


@pytest.mark.parametrize(
    "bound",
    [
        {"circle": "red circle", "square": "blue square"},
        {"circle": "Red Circle", "square": ["the blue square", "square"]},
        {"circle": TWO, "square": TWO},
        {"circle": "circle and", "square": "and"},
        {"circle": "a blue circle and a red square", "square": "a blue circle and a red square"},
    ],
)
def test_words_that_are_part_of_a_noun_phrase_join_its_region(bound):
    model = Answers(bound, {"circle": 2, "square": 0.5})
    assert told(TWO, ["circle", "square"], model) == [
        ("circle", "a red circle", 0, CERTAIN),
        ("square", "a blue square", 0, MAYBE),
    ]


def test_things_that_only_a_verb_joins_are_two_regions():
    model = Answers({"dog": "a dog", "cat": "a cat"}, {"dog": 2, "cat": 2})
    regions = told("a dog chasing a cat", ["dog", "cat"], model)
    assert [r[:2] for r in regions] == [("dog", "a dog chasing"), ("cat", "a cat")]


def test_a_tag_that_is_bound_to_all_of_the_prompt_without_being_in_it_is_bound_to_nothing():
    regions = bind_tags(TWO, ["dog"], Answers({"dog": TWO}, {"dog": 0}))
    assert [(r.tag, r.phrase) for r in regions] == [
        ("circle", "a red circle"),
        ("square", "a blue square"),
        ("dog", ""),
    ]
    assert regions.notes == (f"'{TWO}' for 'dog' is not one thing that the prompt names, and was dropped.",)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red circle and a red circle", [("A red circle", 0), ("a red circle", 1)]),
        ("a red circle and circle", [("a red circle", 0), ("circle", 1)]),
    ],
)
def test_an_occurrence_counts_every_earlier_match_of_the_words(prompt, expected):
    assert [r[1:3] for r in told(prompt, [])] == expected


class InTurn:
    """A language model whose answers, to either question, come one after the other; an error is raised."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def bind(self, prompt, tags):
        self.asked.append(list(tags))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    score = bind


THREE = ["circle", "square", "dog"]
BOUND = {"circle": "a red circle", "square": "a blue square", "dog": []}
SCORED = {"circle": 2, "square": 0.5, "dog": 0.5}
RIGHT = [("circle", "a red circle", 0, CERTAIN), ("square", "a blue square", 0, MAYBE), ("dog", "", 0, MAYBE)]


def test_a_whole_answer_is_asked_for_once():
    model = InTurn(BOUND, SCORED)
    assert told(TWO, THREE, model) == RIGHT
    assert model.asked == [THREE, THREE]


def test_what_is_missing_is_asked_for_once_more():
    model = InTurn({"circle": "a red circle"}, BOUND, {"circle": 2, "square": "a lot"}, SCORED)
    assert told(TWO, THREE, model) == RIGHT
    assert model.asked == [THREE, ["square"], THREE, ["dog", "square"]]


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_in_another_order():
    model = InTurn(None, BOUND, "sorry", SCORED)
    assert told(TWO, THREE, model) == RIGHT
    assert model.asked == [THREE, THREE[::-1]] * 2


def test_what_is_missing_still_is_answered_offline_and_noted():
    regions = bind_tags(TWO, THREE, InTurn({}, None, {}, {"dog": "perhaps"}))
    assert [(r.tag, r.phrase, r.likelihood) for r in regions] == [
        ("circle", "a red circle", CERTAIN),
        ("square", "a blue square", CERTAIN),
        ("dog", "", UNLIKELY),
    ]
    assert "No usable words came for 'circle', 'square': taken from the prompt offline." in regions.notes
    assert "No usable score came for 'circle', 'square', 'dog': scored offline." in regions.notes


def test_the_offline_scorer_given_answers_what_is_missing():
    class Offline(OfflineScorer):
        def score(self, prompt, tags):
            return dict.fromkeys(tags, MAYBE)

    regions = bind_tags(TWO, ["dog"], InTurn({}, {}, {}), Offline())
    assert regions.regions[-1].likelihood == MAYBE


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([NoAnswer("It is gone.")], (CERTAIN, CERTAIN, UNLIKELY)),
        ([BOUND, NoAnswer("It is gone.")], (CERTAIN, CERTAIN, UNLIKELY)),
        ([BOUND, {"square": 0.5, "dog": 0.5}, NoAnswer("It is gone.")], (CERTAIN, MAYBE, MAYBE)),
    ],
    ids=["at once", "for the scores", "for what is missing"],
)
def test_a_model_that_cannot_answer_leaves_the_rest_to_the_offline_scorer(answers, expected):
    model = InTurn(*answers)
    regions = bind_tags(TWO, THREE, model)
    assert tuple(r.likelihood for r in regions) == expected
    assert [r.phrase for r in regions] == ["a red circle", "a blue square", ""]
    assert regions.notes and not model.answers


def test_without_tags_nobody_is_asked():
    model = InTurn()
    assert len(bind_tags(TWO, [], model)) == 2
    assert model.asked == []


def test_a_tag_of_the_prompt_that_got_no_score_is_certain_and_says_so():
    regions = bind_tags(TWO, ["circle", "dog"], Answers({"circle": "a red circle"}, "sorry"))
    assert [(r.tag, r.likelihood) for r in regions] == [("circle", CERTAIN), ("square", CERTAIN), ("dog", UNLIKELY)]
    assert "No usable score came for 'circle', 'dog': scored offline." in regions.notes


@pytest.mark.parametrize("nothing", [[], None, ""])
def test_a_tag_that_is_said_to_have_no_words_has_none(nothing):
    model = InTurn({"dog": nothing}, {"dog": 0})
    regions = bind_tags("a hot dog", ["dog"], model)
    assert [(r.tag, r.phrase, r.likelihood) for r in regions] == [("dog", "a hot dog", CERTAIN), ("dog", "", UNLIKELY)]
    assert regions.notes == () and model.asked == [["dog"]] * 2


def test_words_that_only_the_offline_scorer_binds_make_no_thing_of_the_prompt_unlikely():
    model = InTurn({"plate": "a plate"}, {}, {"dog": 0, "plate": 2})
    assert [(r.tag, r.phrase, r.likelihood) for r in bind_tags("a hot dog on a plate", ["dog", "plate"], model)] == [
        ("dog", "a hot dog", CERTAIN),
        ("plate", "a plate", CERTAIN),
        ("dog", "", UNLIKELY),
    ]


@pytest.mark.parametrize("error", [RealignError("It refused."), NoAnswer("It is gone.")])
def test_a_second_asking_that_fails_loses_nothing(error):
    model = InTurn({"circle": "a red circle"}, error, {"circle": 2, "square": 0.5}, error)
    regions = bind_tags(TWO, THREE, model)
    assert [r.likelihood for r in regions] == [CERTAIN, MAYBE, UNLIKELY]
    assert f"What was missing could not be asked for once more. {error}" in regions.notes


def test_an_interrupt_of_the_second_asking_is_none_of_its_failures():
    with pytest.raises(InterruptedError):
        bind_tags(TWO, THREE, InTurn({}, InterruptedError()))


def test_it_is_told_which_half_was_answered_offline():
    (note,) = bind_tags(TWO, THREE, InTurn(NoAnswer("It is gone."))).notes
    assert note == "The offline scorer answered instead of a language model. It is gone."
    (note,) = bind_tags(TWO, THREE, InTurn(BOUND, NoAnswer("It is gone."))).notes
    assert note == "The offline scorer scored the tags instead of a language model. It is gone."
