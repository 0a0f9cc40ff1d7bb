"""Which of several equal or nearly equal things is taken."""

import dataclasses

import pytest
import torch
from realigndiff.core.phrases import nearest_span
from realigndiff.core.regions import CERTAIN, MAYBE, UNLIKELY, Region, RegionSet
from realigndiff.language.binding import bind_tags
from realigndiff.language.offline_scorer import OfflineScorer
from realigndiff.language.validator import valid_bindings, valid_scores
from realigndiff.perception.detector import Candidates
from realigndiff.perception.grounded_sam import GroundedSam
from realigndiff.perception.labels import read_labels
from realigndiff.pipeline.realign import CaptionedImage, RealignResult, apply_keep_better
from realigndiff.rewards.ranking import best_first, ranks
from safetensors.torch import save_file

# Words of the prompt


@pytest.mark.parametrize(
    ("phrase", "prompt", "span"),
    [
        ("circle", "a Circle and the circle", "a Circle"),  # the first of equal ones
        ("red circle", "a red sky, shiny Circle, a circle", "Circle"),
        ("red circle", "a red shiny circle and the red circle", "the red circle"),  # the shortest of equal words
        ("red circle", "the red circle and a red shiny circle", "the red circle"),
        ("blue circle", "a blue sky with a quite large circle", "circle"),  # what names the thing, however late
        ("very red circle", "a red thing, a red old circle", "a red old circle"),  # more words before all
        ("red red circle", "a circle beside a red circle", "a red circle"),
    ],
)
def test_of_the_spans_that_say_a_phrase_the_best_the_shortest_and_the_first_is_taken(phrase, prompt, span):
    assert nearest_span(phrase, prompt) == span


# A language model's answers

PROMPT, TAGS = "a red book and a yellow pen", ("book", "pen")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"book": "a red book", "Book": "a yellow pen"}, ("a red book", "a yellow pen")),
        ({"books": "a yellow pen", "book": "a red book"}, ("a yellow pen", "a red book")),
        ({"book": "a red book", "the book": "a red book"}, ("a red book",)),
        ({"book": "a red book", "books": []}, ("a red book",)),
        ({"book": ["a red book", "a red book"]}, ("a red book",)),
    ],
)
def test_the_words_of_all_keys_that_mean_one_tag_are_its_words(answer, words):
    assert valid_bindings(answer, PROMPT, TAGS) == ({"book": words}, [])


def test_of_two_scores_for_a_tag_one_counts_and_no_other_tag_gets_it():
    assert valid_scores({"Books": 0, "book": 2}, TAGS) == ({"book": 2}, [])
    assert valid_scores({"a book": 0.5, "books": 0.5, "pen": 2}, TAGS)[0] == {"book": 0.5, "pen": 2}


def test_a_thing_is_as_likely_as_the_surest_of_its_tags():
    class Answers:
        def bind(self, prompt, tags):
            return {"red": "a red book", "book": "a red book"}

        def score(self, prompt, tags):
            return {"red": MAYBE, "book": CERTAIN}

    for tags in (["red", "book"], ["book", "red"]):
        assert [region.likelihood for region in bind_tags("a red book", tags, Answers())] == [CERTAIN]


class Encoder:
    """f_enc of a prompt and of tags, with the cosines between prompt and tag that it is given."""

    def __init__(self, cosines):
        self.cosines = cosines

    def embed(self, texts):
        cosines = torch.tensor([1.0, *(self.cosines[text] for text in texts[1:])])
        return torch.stack([cosines, (1 - cosines.square()).sqrt()], 1)


def test_a_tag_that_the_prompt_does_not_name_may_appear_where_it_is_near_the_prompt():
    near, far = {"novel": 0.61, "paper": 0.8}, {"desk": 0.59, "dog": -0.2}
    scores = OfflineScorer(Encoder(near | far)).score(PROMPT, ["book", *near, *far, "pens"])
    assert scores == {"book": CERTAIN, "pens": CERTAIN, **dict.fromkeys(near, MAYBE), **dict.fromkeys(far, UNLIKELY)}
    assert OfflineScorer().score(PROMPT, ["book", "novel"]) == {"book": CERTAIN, "novel": UNLIKELY}


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.7]])
def test_label_embeddings_of_any_length_count_alike_and_a_tag_has_the_published_threshold(tmp_path, thresholds):
    embed = torch.tensor([[3.0, 4.0], [0.0, 0.1]])
    tensors = {"label_embed": embed} | ({} if thresholds is None else {"thresholds": torch.tensor(thresholds)})
    save_file(tensors, tmp_path / "labels.safetensors")
    (tmp_path / "labels.txt").write_text("book\npen\n", encoding="utf-8")
    labels = read_labels(tmp_path / "labels.safetensors")
    torch.testing.assert_close(labels.embed[:, 0], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert labels.tags == ["book", "pen"] and labels.thresholds.tolist() == pytest.approx(thresholds or [0.5, 0.5])


# Boxes


def ground(regions, scores, **options):
    boxes = torch.tensor([[0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0], [0.4, 0.0, 0.6, 1.0]])[: len(scores)]

    class Detector:
        def detect(self, images, phrases, *, nms):
            return [Candidates(boxes, torch.tensor(scores))]

    class Segmenter:
        def segment(self, images, boxes):
            return [torch.ones(len(boxes[0]), 8, 8)]

    images, sets = torch.zeros(1, 8, 8, 3), [RegionSet("prompt", regions)]
    return GroundedSam(Detector(), Segmenter()).ground(images, sets, **options)[0]


RED, BLUE = Region(tag="circle", phrase="a red circle"), Region(tag="circle", phrase="a blue circle")


@pytest.mark.parametrize("boxes", ["one", "all"])
def test_each_of_two_regions_has_its_own_score_though_its_box_suits_the_other_too(boxes):
    red, blue = ground((RED, BLUE), [[0.9, 0.8], [0.5, 0.55]], boxes=boxes)
    assert (red.detection, blue.detection) == pytest.approx((0.9, 0.55))
    blue, red = ground((BLUE, RED), [[0.8, 0.9], [0.55, 0.5]], boxes=boxes)
    assert (red.detection, blue.detection) == pytest.approx((0.9, 0.55))


def test_a_box_that_suits_another_better_may_still_be_its_own_with_its_own_score():
    red, blue = ground((RED, BLUE), [[0.9, 0.8], [0.6, 0.55]])
    assert red.box[0] == 0 and blue.box[0] == pytest.approx(0.6)
    assert (red.detection, blue.detection) == pytest.approx((0.9, 0.55))


@pytest.mark.parametrize("boxes", ["one", "all"])
def test_a_box_whose_score_is_the_threshold_is_one(boxes):
    assert ground((RED,), [[0.25]], boxes=boxes, box_threshold=0.25).missing == ()


# Images


def test_images_of_equal_ranks_keep_their_order_however_many_there_are():
    scores = torch.randint(0, 4, (3, 400), generator=torch.Generator().manual_seed(0)).float()
    sums = [sum(column) for column in zip(*(ranks(one).tolist() for one in scores), strict=True)]
    assert best_first(list(scores)).tolist() == sorted(range(400), key=lambda i: sums[i])
    assert best_first([torch.zeros(2, 300)]).tolist() == [list(range(300))] * 2


@pytest.mark.parametrize(("reward", "kept"), [(0.5, True), (0.4, True), (0.51, False)])
def test_of_two_images_of_equal_reward_the_first_is_kept(reward, kept):
    coarse, fine = CaptionedImage(torch.zeros(8, 8, 3), "a", 0.5), CaptionedImage(torch.ones(8, 8, 3), "b", reward)
    result = apply_keep_better(RealignResult("a", 0, coarse, fine, RegionSet("a"), "It was sampled again."))
    assert result.changed != kept
    assert ("no better than 0.5" in result.verdict) == kept
    unchanged = dataclasses.replace(result, after=coarse)
    assert apply_keep_better(unchanged) is unchanged
