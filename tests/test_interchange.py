"""Regions to and from masks, bounding boxes and JSON text."""

import json

import pytest
import torch
from realigndiff.core.describe import describe_regions
from realigndiff.core.editing import add_region, edit_region, pair_masks
from realigndiff.core.errors import RealignError
from realigndiff.core.interchange import bounding_boxes, broadcast_sets, region_sets, to_json
from realigndiff.core.masks import box_mask, mask_batch, mask_box
from realigndiff.core.regions import Region, RegionSet

PROMPT = "a red circle and a blue square"
LEFT, RIGHT = {"x": 0, "y": 8, "width": 16, "height": 16}, {"x": 16, "y": 8, "width": 16, "height": 16}


def phrases(sets):
    return [[region.phrase for region in one] for one in sets]


def square(x0, y0, x1, y1, size=32):
    mask = torch.zeros(size, size)
    mask[y0:y1, x0:x1] = 1
    return mask


class TestMasks:
    def test_a_thing_whose_words_are_part_of_another_is_the_one_that_stands_alone(self):
        (one,) = region_sets(torch.ones(2, 8, 8), text="a red circle and circle")
        assert [(region.phrase, region.occurrence) for region in one] == [("a red circle", 0), ("circle", 1)]

    def test_mask_i_is_the_texts_ith_thing(self):
        masks = torch.stack([square(0, 8, 16, 24), square(16, 8, 32, 24)])
        (one,) = region_sets(masks, text=PROMPT)
        assert phrases([one]) == [["a red circle", "a blue square"]]
        assert torch.equal(mask_batch([one]), masks)
        assert one.regions[0].box == (0, 0.25, 0.5, 0.75)

    def test_a_thing_without_a_mask_stays_a_region_without(self):
        (one,) = region_sets(square(0, 0, 8, 8), text=PROMPT)
        assert one.missing == ("a blue square",)

    def test_more_masks_than_things_is_told(self):
        with pytest.raises(RealignError, match=r"3 masks but the text .* names 2 things"):
            region_sets(torch.zeros(3, 8, 8), text=PROMPT)

    def test_masks_without_a_text_are_told(self):
        with pytest.raises(RealignError, match="need the prompt"):
            region_sets(torch.zeros(1, 8, 8))

    @pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 1, 8, 8)])
    def test_every_shape_of_mask_in_use_is_one(self, shape):
        assert region_sets(torch.ones(shape), text="a ring")[0].regions[0].mask.shape == (8, 8)

    def test_an_empty_mask_has_no_box(self):
        assert mask_box(torch.zeros(8, 8)) is None

    def test_a_region_without_a_mask_gives_an_empty_one_and_no_region_one_empty_mask(self):
        found = RegionSet(PROMPT, (Region(tag="circle"), Region(tag="square", mask=torch.ones(4, 4))))
        assert mask_batch([found]).mean((1, 2)).tolist() == [0, 1]
        assert mask_batch([RegionSet(PROMPT)], (4, 6)).shape == (1, 4, 6)

    def test_a_prompt_with_weights_names_its_things(self):
        weighted = r"a (red:1.2) circle, ((a blue square)) \(photo\) embedding:nice"
        (one,) = region_sets(torch.ones(2, 8, 8), text=weighted)
        assert phrases([one]) == [["a red circle", "a blue square", "photo"]]
        assert one.prompt == weighted

    def test_an_empty_mask_is_told(self):
        (one,) = region_sets(torch.zeros(1, 8, 8), text="a ring")
        assert one.notes == ("The mask of 'a ring' is empty, so it re-weights nothing.",)


class TestBoxes:
    @pytest.mark.parametrize("value", [[LEFT, RIGHT], [[LEFT, RIGHT]]], ids=["list", "list for each image"])
    def test_box_i_is_the_texts_ith_thing(self, value):
        sets = region_sets(value, text=PROMPT, size=(32, 32))
        assert phrases(sets) == [["a red circle", "a blue square"]]
        assert torch.equal(sets[0].regions[1].mask, square(16, 8, 32, 24))

    def test_one_box_alone_is_a_region(self):
        assert phrases(region_sets(LEFT, text=PROMPT, size=(32, 32))) == [["a red circle"]]

    def test_a_label_says_which_thing_is_meant(self):
        boxes = [{**LEFT, "label": "square", "score": 0.5}, {**RIGHT, "label": "the red circle"}]
        (one,) = region_sets(boxes, text=PROMPT, size=(32, 32))
        assert [region.tag for region in one] == ["square", "circle"]
        assert one.regions[0].detection == 0.5

    def test_they_come_back_as_they_went_in(self):
        sets = region_sets([[LEFT], [RIGHT]], text=PROMPT, size=(32, 32))
        back = bounding_boxes(sets, (32, 32))
        assert [{k: box[k] for k in LEFT} for ours in back for box in ours] == [LEFT, RIGHT]
        assert back[0][0]["label"] == "a red circle"

    def test_pixels_without_an_image_are_told(self):
        with pytest.raises(RealignError, match="connect the image they were drawn on"):
            region_sets([LEFT], text=PROMPT)

    def test_a_label_may_be_the_number_of_a_class_and_a_score_text(self):
        (one,) = region_sets([{**LEFT, "label": 3, "score": "0.9"}], text=PROMPT, size=(32, 32))
        assert (one.regions[0].tag, one.regions[0].phrase, one.regions[0].detection) == ("3", "", 0.9)
        json.dumps(one.to_dict())

    @pytest.mark.parametrize(
        "value",
        [
            [{"x": 1, "y": 1}],
            [{**LEFT, "x": "a"}],
            [{**LEFT, "x": 10**400}],
            [{**LEFT, "score": "high"}],
            [[0, 8, 16, 16]],
            [[[0, 8, 16, 16]]],
            ["a"],
            [[LEFT], RIGHT],
            [LEFT, [RIGHT]],
        ],
    )
    def test_a_box_that_is_none_is_told(self, value):
        with pytest.raises(
            RealignError, match=r"numbers x, y, width and height|of a bounding box is .*: give a number"
        ):
            region_sets(value, text=PROMPT, size=(32, 32))

    def test_a_text_that_a_linked_node_left_out_is_told(self):
        with pytest.raises(RealignError, match="need the prompt"):
            region_sets([LEFT], text=None, size=(32, 32))

    def test_a_box_outside_the_image_is_told(self):
        with pytest.raises(RealignError, match="no area inside the image"):
            region_sets([{"x": 99, "y": 0, "width": 5, "height": 5}], text=PROMPT, size=(32, 32))

    @pytest.mark.parametrize("box", [(0, 0, 1e-6, 1e-6), (1 - 1e-6, 1 - 1e-6, 1, 1), (0, 0, 1, 1), (0.25, 0.5, 0.5, 1)])
    def test_a_box_covers_at_least_a_pixel_and_never_more_than_the_image(self, box):
        mask = box_mask(box, (8, 8))
        assert mask.sum() == max(1, round((box[2] - box[0]) * 8) * round((box[3] - box[1]) * 8))


class TestJson:
    def test_it_comes_back_as_it_went_out(self):
        sets = region_sets([[LEFT, RIGHT]], text=PROMPT, size=(32, 32))
        again = region_sets(to_json(sets), size=(32, 32))
        assert again[0].prompt == PROMPT
        assert phrases(again) == phrases(sets)
        assert torch.equal(mask_batch(again), mask_batch(sets))

    @pytest.mark.parametrize(
        "text",
        [
            '{"regions": [{"phrase": "a red circle", "box": [0, 0.25, 0.5, 0.75]}]}',
            '[{"phrase": "a red circle", "bbox": [0, 8, 16, 24]}]',
            'Sure! Here you are:\n```json\n[{"label": "a red circle", "box": [0, 8, 16, 24], "likelihood": "2"}]\n```',
            '[{"x": 0, "y": 8, "width": 16, "height": 16}]',
            '{"x": 0, "y": 8, "width": 16, "height": 16}',
            '[[{"x": 0, "y": 8, "width": 16, "height": 16}]]',
            '{"regions": [{"x": 0, "y": 8, "width": 16, "height": 16, "label": "red circle"}]}',
            '{"phrase": "a red circle", "box": [0, 8, 16, 24]}',
            'Here is the JSON [as asked, see {1} and [2]]: {"regions": [{"phrase": "a red circle", "box": '
            "[0, 8, 16, 24]}]} [end]",
        ],
        ids=[
            "ours",
            "a list with pixels",
            "fenced in prose",
            "bounding boxes",
            "one bounding box",
            "boxes of each image",
            "boxes called regions",
            "one region",
            "after brackets in prose",
        ],
    )
    def test_what_a_language_model_writes_is_read(self, text):
        (one,) = region_sets(text, text=PROMPT, size=(32, 32))
        assert (one.regions[0].phrase, one.regions[0].likelihood) == ("a red circle", 2)
        assert torch.equal(one.regions[0].mask, square(0, 8, 16, 24))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "I am sorry",
            '{"regions": 3}',
            '{"a": ',
            "null",
            "[1, 2]",
            "[" * 50000,
            '{"a":' * 50000,
            "[" + "9" * 5000 + "]",
            '[{"phrase": "a red circle", "box": [1e999, 0, 1, 1]}]',
            '[{"phrase": "a red circle", "box": [1' + "0" * 400 + ", 0, 1, 1]}]",
        ],
        ids=lambda text: text[:12],
    )
    def test_other_text_is_told(self, text):
        with pytest.raises(RealignError):
            region_sets(text, text=PROMPT, size=(32, 32))

    def test_of_text_that_breaks_off_no_part_is_taken_for_the_whole(self):
        with pytest.raises(RealignError, match="No JSON"):
            region_sets('[{"x": 0, "y": 8, "width": 16, "height": 16}, {"x": 16', text=PROMPT, size=(32, 32))

    def test_each_image_has_its_own(self):
        sets = region_sets(json.dumps([[LEFT], [{**RIGHT, "label": "blue square"}]]), text=PROMPT, size=(32, 32))
        assert phrases(sets) == [["a red circle"], ["a blue square"]]

    def test_a_prompt_or_phrase_of_null_is_none(self):
        with pytest.raises(RealignError, match="need the prompt"):
            region_sets('{"prompt": null, "regions": [{"phrase": "None", "box": [0, 0, 1, 1]}]}')
        (one,) = region_sets('[{"phrase": null, "label": "a red circle", "box": [0, 0, 1, 1]}]', text=PROMPT)
        assert phrases([one]) == [["a red circle"]]

    def test_which_of_equal_words_is_meant_comes_back(self):
        prompt = "red circle, a red circle and circle"
        regions = [
            Region(tag="circle", phrase=phrase, occurrence=n, box=(0, 0, 0.5, 1), mask=torch.ones(4, 4))
            for phrase, n in (("red circle", 1), ("circle", 1), ("red circle", 0))
        ]
        (again,) = region_sets(to_json([RegionSet(prompt, tuple(regions))]))
        assert [(r.phrase, r.occurrence) for r in again] == [("red circle", 1), ("circle", 1), ("red circle", 0)]

    @pytest.mark.parametrize("given", [None, "1", True, -1, 2, 0.5, [0]])
    def test_an_occurrence_that_is_none_is_chosen_beside_those_given(self, given):
        listed = [{"phrase": "a ring", "occurrence": given}, {"phrase": "a ring", "occurrence": 0}]
        (one,) = region_sets(json.dumps(listed), text="a ring and a ring")
        assert [region.occurrence for region in one] == [1, 0]

    def test_words_that_are_not_in_the_prompt_bind_nothing(self):
        (one,) = region_sets('[{"phrase": "elephant", "box": [0, 0, 1, 1]}]', text=PROMPT)
        assert one.active == ()
        assert one.regions[0].tag == "elephant"
        assert one.notes == ("'elephant' is not in the prompt, so it re-weights nothing.",)

    def test_to_json_is_json(self):
        assert json.loads(to_json([RegionSet(PROMPT)]))[0]["prompt"] == PROMPT


def test_one_set_serves_all_images_and_another_number_is_told():
    one = RegionSet(PROMPT)
    assert broadcast_sets([one], 3) == (one,) * 3
    with pytest.raises(RealignError, match="regions for 2 images but 3 images"):
        broadcast_sets([one, one], 3)


@pytest.mark.parametrize("value", [None, 3, object(), [1, 2]])
def test_what_is_no_region_is_told(value):
    with pytest.raises(RealignError, match="connect regions, masks, bounding boxes or JSON text"):
        region_sets(value, text=PROMPT)


class TestEditing:
    regions = RegionSet(PROMPT, (Region(tag="circle", phrase="a red circle", mask=torch.ones(4, 4)),))

    def test_a_region_is_added_with_the_prompts_own_words(self):
        more = add_region(self.regions, "SQUARE blue", torch.ones(4, 4), 0.5)
        assert [(r.phrase, r.likelihood) for r in more] == [("a red circle", 2), ("a blue square", 0.5)]

    def test_equal_words_are_the_next_appearance_of_them(self):
        twice = RegionSet("a ring and a ring")
        for _ in range(2):
            twice = add_region(twice, "a ring", torch.ones(4, 4))
        assert [region.occurrence for region in twice] == [0, 1]

    def test_what_is_not_named_is_kept(self):
        changed = edit_region(self.regions, 0, likelihood=0.5)
        assert (changed.regions[0].phrase, changed.regions[0].likelihood) == ("a red circle", 0.5)
        assert changed.regions[0].mask is self.regions.regions[0].mask

    def test_another_mask_takes_its_own_box(self):
        assert edit_region(self.regions, 0, mask=square(0, 8, 16, 24)).regions[0].box == (0, 0.25, 0.5, 0.75)

    def test_a_region_can_be_dropped_and_the_old_set_stays(self):
        assert len(edit_region(self.regions, 0, drop=True)) == 0
        assert len(self.regions) == 1

    def test_a_region_that_is_not_there_and_words_that_are_not_are_told(self):
        with pytest.raises(RealignError, match="no region 1: the image has 1"):
            edit_region(self.regions, 1)
        with pytest.raises(RealignError, match="No word of 'elephant' is in the prompt"):
            edit_region(self.regions, 0, phrase="elephant")

    def test_letters_inside_a_word_are_not_words_of_the_prompt(self):
        scarf = RegionSet("a scarf and a (hat:1.2)", (Region(tag="hat"),))
        with pytest.raises(RealignError, match="No word of 'car' is in the prompt"):
            edit_region(scarf, 0, phrase="car")
        with pytest.raises(RealignError, match="No word of 'car' is in the prompt"):
            add_region(scarf, "car", torch.ones(4, 4))
        assert edit_region(scarf, 0, phrase=" A  hat").regions[0].phrase == "a hat"

    def test_mask_i_is_for_image_i(self):
        masks = torch.stack([square(0, 8, 16, 24), square(16, 8, 32, 24)])
        for sets in ([self.regions], [self.regions, self.regions]):
            assert [mask.tolist() for _, mask in pair_masks(masks, sets)] == masks.tolist()
        assert len(pair_masks(masks[0], [self.regions] * 3)) == 3

    def test_another_number_of_masks_than_of_images_is_told(self):
        with pytest.raises(RealignError, match="2 masks for 3 images: give one, or one per image"):
            pair_masks(torch.ones(2, 4, 4), [self.regions] * 3)
        with pytest.raises(RealignError, match="regions for 2 images but 3 images"):
            pair_masks(torch.ones(3, 4, 4), [self.regions] * 2)


class TestNumbers:
    """No number from outside is replaced without a word."""

    def json(self, size=(32, 32), **region):
        listed = [{"phrase": "a red circle", "box": [0, 0, 0.5, 1], **region}]
        (one,) = region_sets(json.dumps(listed), text=PROMPT, size=size)
        return one

    @pytest.mark.parametrize("score", [0, 0.0, 0.25, 1])
    def test_a_score_stays_what_it_is(self, score):
        (one,) = region_sets([{**LEFT, "score": score}], text=PROMPT, size=(32, 32))
        ((box,),) = bounding_boxes([one], (32, 32))
        assert box["score"] == one.regions[0].detection == score
        assert region_sets(to_json([one]))[0].regions[0].detection == score
        assert self.json(score=score).regions[0].detection == score

    def test_a_region_without_a_score_is_certain_in_other_nodes(self):
        ((box,),) = bounding_boxes([self.json()], (32, 32))
        assert box["score"] == 1.0

    @pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 95, True, "high", [1]])
    @pytest.mark.parametrize("name", ["score", "detection"])
    def test_a_score_that_is_none_is_told(self, name, score):
        with pytest.raises(RealignError, match=r"score of 'a red circle' is .*: give a number from 0 to 1"):
            self.json(**{name: score})

    @pytest.mark.parametrize("key", ["x", "y", "width", "height", "score"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, None, "wide"])
    def test_a_bounding_box_of_what_is_no_number_is_told(self, key, value):
        if (key, value) == ("score", None):
            return
        with pytest.raises(
            RealignError, match=r"numbers x, y, width and height|of a bounding box is .*: give a number"
        ):
            region_sets([{**LEFT, key: value}], text=PROMPT, size=(32, 32))

    @pytest.mark.parametrize("value", [0, -5])
    @pytest.mark.parametrize("key", ["width", "height"])
    def test_a_box_without_an_area_is_told(self, key, value):
        with pytest.raises(RealignError, match="no area inside the image"):
            region_sets([{**LEFT, key: value}], text=PROMPT, size=(32, 32))

    @pytest.mark.parametrize(
        "box", [[float("nan"), 0, 1, 1], [0, 0, float("inf"), 1], [True, 0, 1, 1], "0011", [0, 0, 1], {"x": 1}, 3]
    )
    def test_a_box_of_what_is_no_number_is_told(self, box):
        with pytest.raises(RealignError, match="must be four numbers"):
            self.json(box=box)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), True, False, "certain", "", [2], {}])
    def test_a_likelihood_that_is_no_number_is_told(self, value):
        with pytest.raises(RealignError, match=r"likelihood of 'a red circle' is .*: give 2 \(certain\)"):
            self.json(likelihood=value)

    @pytest.mark.parametrize(("given", "taken"), [(0, 0), (0.5, 0.5), ("2", 2), (None, 2)])
    def test_a_likelihood_stays_what_it_is(self, given, taken):
        one = self.json(likelihood=given)
        assert (one.regions[0].likelihood, one.notes) == (taken, ())

    @pytest.mark.parametrize(("given", "taken"), [(1.9, "2"), (0.1, "0"), (-1, "0"), (1e9, "2")])
    def test_another_likelihood_becomes_the_nearest_with_a_note(self, given, taken):
        one = self.json(likelihood=given)
        assert f"{one.regions[0].likelihood:g}" == taken
        assert one.notes == (f"The likelihood {given:g} of 'a red circle' was taken as {taken}.",)

    @pytest.mark.parametrize("given", [1, -1, 0.0, "0", True])
    def test_an_occurrence_that_the_prompt_lacks_is_noted(self, given):
        one = self.json(occurrence=given)
        assert one.regions[0].occurrence == 0
        assert "The prompt has no occurrence" in one.notes[0]

    def test_a_box_that_reaches_out_of_the_image_is_noted(self):
        assert "reaches out of the image" in self.json(box=[-0.5, 0, 0.5, 1]).notes[0]
        assert "reaches out of the image" in self.json(box=[0, 0, 16, 1e300]).notes[0]
        assert self.json(box=[0, 0, 32.2, 32]).notes == ()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0, -3.0])
    def test_a_mask_of_other_values_is_told(self, value):
        with pytest.raises(RealignError, match="give values from 0 to 1"):
            region_sets(torch.full((1, 8, 8), value), text=PROMPT)

    def test_a_mask_may_overshoot_a_little(self):
        masks = torch.tensor([[[-0.1, 1.1], [0.5, 1.0]]])
        assert region_sets(masks, text=PROMPT)[0].regions[0].mask.tolist() == [[0, 1], [0.5, 1]]

    @pytest.mark.parametrize(
        "values",
        [
            {"likelihood": float("nan")},
            {"likelihood": -1.0},
            {"detection": float("nan")},
            {"detection": 1.5},
            {"box": (0, 0, float("nan"), 1)},
            {"box": (0, 0, 2, 1)},
            {"box": (0.5, 0, 0.25, 1)},
        ],
    )
    def test_a_region_holds_no_other_numbers(self, values):
        with pytest.raises(RealignError, match="give "):
            Region(tag="circle", **values)


class TestBounds:
    def test_so_many_regions_as_no_image_has_are_told_soon(self):
        many = [{"phrase": f"circle {i}", "box": [0, 0, 1, 1]} for i in range(100_000)]
        with pytest.raises(RealignError, match="100,000 regions for one image: give at most 1,000"):
            region_sets(json.dumps(many), text=PROMPT, size=(32, 32))
        with pytest.raises(RealignError, match="100,000 bounding boxes"):
            region_sets([LEFT] * 100_000, text=PROMPT, size=(32, 32))
        with pytest.raises(RealignError, match="regions for 20,000 images"):
            region_sets([[LEFT]] * 20_000, text=PROMPT, size=(32, 32))

    def test_a_thousand_regions_of_a_long_prompt_are_read(self):
        prompt = ", ".join(f"a ring {i % 200}" for i in range(1000))
        listed = [{"phrase": f"ring {i % 200}"} for i in range(1000)]
        (one,) = region_sets(json.dumps(listed), text=prompt)
        assert [region.phrase for region in one] == [f"a ring {i % 200}" for i in range(1000)]
        assert [region.occurrence for region in one][::200] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("value", [torch.ones(1, 8, 8), [LEFT], json.dumps([{"phrase": "ring"}])])
    def test_a_prompt_of_a_megabyte_is_told(self, value):
        with pytest.raises(RealignError, match=r"The prompt has 1,200,000 characters: shorten it to at most 20,000"):
            region_sets(value, text="a ring, here" * 100_000, size=(32, 32))

    def test_words_without_end_are_told(self):
        with pytest.raises(RealignError, match="are 1,000,000 characters: give at most 1,000"):
            region_sets(json.dumps([{"phrase": "a" * 1_000_000}]), text=PROMPT)

    def test_masks_that_no_memory_holds_are_told(self):
        boxes = [{**LEFT, "label": "circle"}] * 1000
        with pytest.raises(RealignError, match="1,000 masks of 8192 x 8192 pixels take 268 GB"):
            region_sets(boxes, text=PROMPT, size=(8192, 8192))

    def test_a_message_stays_short(self):
        with pytest.raises(RealignError) as output:
            region_sets("x" * 1_000_000, text=PROMPT)
        assert len(str(output.value)) < 300


class TestText:
    HALF = "\ud83d"
    """What Python makes of the JSON "\\ud83d"; no encoding has it."""

    def test_regions_can_be_written_whatever_they_are_made_of(self):
        prompt = f"a red {self.HALF}circle"
        listed = [
            {"phrase": f"red {self.HALF}circle", "tag": f"{self.HALF}\x1b[2J", "box": [0, 0, 1, 1], "occurrence": "x"},
            {"label": self.HALF, "likelihood": 0.1},
        ]
        (one,) = region_sets(json.dumps(listed), text=prompt)
        assert one.notes
        for text in (to_json([one]), describe_regions([one]), one.prompt, *one.notes):
            text.encode("utf-8")
            assert "\x1b" not in text
        assert one.regions[0].phrase in one.prompt

    def test_words_still_match_their_prompt(self):
        (one,) = region_sets(json.dumps([{"phrase": f"red {self.HALF}"}]), text=f"a red {self.HALF} ring")
        assert one.regions[0].phrase == "a red"
