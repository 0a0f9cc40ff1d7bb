"""The eyes on clean scenes, and on what is no scene."""

import itertools

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import Region, RegionSet
from realigndiff.demo import world
from realigndiff.demo.train.data import draw_scenes
from realigndiff.perception.detector import box_iou
from realigndiff.tests.close import CALL, NETWORK, assert_close

COUNT = 40


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(COUNT, seed=77, objects=2, held_out=True, masks=True)


@pytest.fixture(scope="module")
def images(scenes):
    return scenes.images.permute(0, 2, 3, 1).float() / 255


@pytest.fixture(scope="module")
def grounded(models, scenes, images):
    asked = [
        RegionSet("", tuple(Region(tag=t.shape, phrase=world.phrase(t.pair)) for t in things))
        for things in scenes.things
    ]
    return models.grounded_sam.ground(images, asked)


def eyes(models):
    return {
        "captioner": models.reward.captioner.caption,
        "tagger": models.tagger.tag,
        "detector": lambda images: models.grounded_sam.detector.detect(images, [["a red circle"]] * len(images)),
        "segmenter": lambda images: models.grounded_sam.segmenter.segment(
            images, [torch.tensor([[0.2, 0.2, 0.8, 0.8]])] * len(images)
        ),
    }


def test_captions_name_what_is_there(models, scenes, images):
    captions = models.reward.captioner.caption(images)
    pairs = zip(captions, scenes.things, strict=True)
    right = [set(world.parse(c)) == {t.pair for t in things} for c, things in pairs]
    assert sum(right) >= 0.9 * COUNT


def test_tags_name_what_is_there(models, scenes, images):
    tags = models.tagger.tag(images)
    wrong = sum(
        len({tag.name for tag in ours} ^ {word for t in things for word in t.pair})
        for ours, things in zip(tags, scenes.things, strict=True)
    )
    assert wrong <= 0.1 * COUNT * len(world.TAGS)
    assert all(a.confidence >= b.confidence for of_image in tags for a, b in itertools.pairwise(of_image))


def test_boxes_and_masks_lie_on_their_things(grounded, scenes):
    boxes, masks = [], []
    for found, things, truth in zip(grounded, scenes.things, scenes.masks, strict=True):
        for region, thing, mask in zip(found, things, torch.from_numpy(truth) > 0.5, strict=True):
            box = torch.tensor([region.box or (0, 0, 0, 0)], dtype=torch.float32)
            boxes.append(float(box_iou(box, torch.tensor([thing.box]))) >= 0.5)
            seen = torch.zeros(64, 64, dtype=torch.bool) if region.mask is None else region.mask > 0.5
            masks.append(float((seen & mask).sum() / (seen | mask).sum()))
    assert sum(boxes) >= 0.8 * len(boxes)
    assert sum(masks) >= 0.7 * len(masks)


def test_two_phrases_of_one_image_never_share_a_box(grounded):
    for found in grounded:
        boxes = [region.box for region in found if region.box is not None]
        assert len(set(boxes)) == len(boxes)


def test_the_text_encoder_tells_a_swap_from_another_order(models):
    texts = ["a red circle and a blue square", "a blue square and a red circle", "a blue circle and a red square"]
    embedded = models.reward.text_encoder.embed(texts)
    assert_close(embedded.norm(dim=-1), torch.ones(3))
    assert embedded[0] @ embedded[1] > embedded[0] @ embedded[2] + 0.1


def test_the_caption_reward_is_high_for_the_right_prompt_only(models, scenes, images):
    right = [world.caption([t.pair for t in things]) for things in scenes.things]
    matching = models.reward(images, right)
    other = models.reward(images, right[1:] + right[:1])
    assert matching.mean() > 0.9 > 0.6 > other.mean()
    assert matching.abs().max() <= 1 + CALL


def test_a_batch_sees_what_each_image_alone_shows(models, images):
    for look in eyes(models).values():
        together, alone = look(images[:3]), [look(images[i : i + 1])[0] for i in range(3)]
        for a, b in zip(together, alone, strict=True):
            _assert_same(a, b)


def _assert_same(a, b):
    if isinstance(a, str):
        assert a == b
    elif isinstance(a, torch.Tensor):
        assert_close(a, b, NETWORK)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=NETWORK, abs=NETWORK)
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)


def test_an_image_of_another_size_and_shape_is_seen_too(models, images):
    wide = torch.nn.functional.interpolate(images[:1].permute(0, 3, 1, 2), (96, 160)).permute(0, 2, 3, 1)
    for look in eyes(models).values():
        assert len(look(wide)) == 1
    assert eyes(models)["segmenter"](wide)[0].shape == (1, 96, 160)


def test_a_plain_image_has_no_tags_and_no_boxes(models):
    grey = torch.full((1, 64, 64, 3), 0.9)
    assert models.tagger.tag(grey) == [[]]
    found = models.grounded_sam.ground(grey, [RegionSet("", (Region(tag="circle", phrase="a red circle"),))])[0]
    assert found.missing == ("a red circle",)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 1, 1, 3), "1 x 1 pixels"),
        (torch.full((1, 64, 64, 3), float("nan")), "not numbers"),
        (torch.zeros(64, 64, 3), r"\[B, H, W, 3\]"),
        (torch.zeros(1, 3, 64, 64), r"\[B, H, W, 3\]"),
    ],
    ids=["one pixel", "NaN", "no batch", "channels first"],
)
@pytest.mark.parametrize("eye", ["captioner", "tagger", "detector", "segmenter"])
def test_a_bad_image_is_refused_in_one_sentence(models, eye, bad, message):
    with pytest.raises(RealignError, match=message):
        eyes(models)[eye](bad)


def test_more_prompts_than_images_are_refused(models, images):
    with pytest.raises(RealignError, match="2 images and 1 prompts"):
        models.reward(images[:2], ["a red circle"])


def test_more_phrases_than_the_detector_reads_at_once_are_asked_for_in_several_passes(models, scenes, images):
    detector = models.grounded_sam.detector
    phrases = [world.phrase(thing.pair) for thing in scenes.things[0]]
    others = ["a grey whale"] * 30
    alone, among = (detector.detect(images[:1], [asked])[0] for asked in (phrases, [phrases[0], *others, phrases[1]]))
    assert among.scores.shape == (len(among.boxes), 32)
    for column, place in ((0, 0), (1, -1)):  # each phrase's best box is the one it has alone
        boxes = [found.boxes[found.scores[:, p].argmax()][None] for found, p in ((alone, column), (among, place))]
        assert box_iou(*boxes) > 0.8


def test_phrases_of_several_passes_share_no_box(models, scenes, images):
    regions = [Region(tag=thing.shape, phrase=world.phrase(thing.pair)) for thing in scenes.things[0]]
    whales = [Region(tag="whale", phrase="a grey whale")] * 30
    found = models.grounded_sam.ground(images[:1], [RegionSet("", (*regions[:1], *whales, *regions[1:]))])[0]
    boxes = [region.box for region in found if region.box is not None]
    assert found.regions[0].box is not None
    assert found.regions[-1].box is not None
    assert len(set(boxes)) == len(boxes)


def test_a_phrase_that_is_longer_than_the_detector_reads_is_cut(models, images):
    found = models.grounded_sam.detector.detect(images[:1], [["red circle " * 40, "a blue square"]])[0]
    assert found.scores.shape[1] == 2
    assert found.scores.isfinite().all()


def test_no_phrases_give_no_candidates(models, images):
    assert models.grounded_sam.detector.detect(images[:1], [[]])[0].boxes.shape == (0, 4)


def test_a_phrase_without_any_word_is_nowhere_and_spoils_no_other(models, scenes, images):
    phrase = world.phrase(scenes.things[0][0].pair)
    alone, beside = (
        models.grounded_sam.detector.detect(images[:1], [asked])[0] for asked in ([phrase], [phrase, "\u200b"])
    )
    assert beside.scores[:, 1].max() == 0
    assert torch.isfinite(beside.scores).all()
    assert len(beside.boxes) == len(alone.boxes)
