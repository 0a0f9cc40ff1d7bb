"""The demo world's renderer, captions, prompts and judge."""

import json
import random

import numpy as np
import pytest
import torch
from realigndiff.core.embedded import WEIGHTS
from realigndiff.demo import world
from realigndiff.demo.judge import detect, judge, judge_all
from realigndiff.demo.prompts import one_object_prompts, two_object_prompts
from realigndiff.demo.train import pack
from realigndiff.demo.train.data import draw_scenes
from safetensors.torch import load_file, save_file


def scenes(count, seed=0):
    rng = random.Random(seed)
    return [world.random_scene(rng, held_out=None) for _ in range(count)]


def test_the_judge_reads_clean_renders():
    drawn = scenes(400)
    judged = judge_all([s.image for s in drawn], [[t.pair for t in s.things] for s in drawn])
    assert judged["bind"].mean() >= 0.99
    assert judged["exact"].mean() >= 0.99


def test_the_judge_is_not_fooled_by_swapped_colours():
    image = paint(("red", "square"), ("blue", "circle"))
    assert set(detect(image)) == {("red", "square"), ("blue", "circle")}
    assert judge(image, [("red", "circle"), ("blue", "square")]) == (0, 0, 0)


def test_the_judge_counts_half_and_surplus():
    image = paint(("red", "circle"), ("blue", "square"))
    assert judge(image, [("red", "circle"), ("green", "ring")]) == (0.5, 0, 0)
    assert judge(image, [("red", "circle")]) == (1, 1, 0)


def test_a_shape_of_two_colours_is_no_shape():
    image = paint(("red", "circle"))
    blue = paint(("blue", "circle"))
    image[:, : image.shape[1] // 4] = blue[:, : image.shape[1] // 4]
    assert judge(image, [("blue", "circle")]).bind == 0


def test_an_empty_image_shows_nothing():
    assert detect(np.full((64, 64, 3), 230, np.uint8)) == []


def paint(*pairs):
    places = [(16.0, 16.0), (46.0, 46.0)]
    things = tuple(world.Thing(*pair, *place, 11.0) for pair, place in zip(pairs, places, strict=False))
    return world.render(things, random.Random(0)).image


def test_captions_are_read_back():
    pairs = [("orange", "ring"), ("red", "circle")]
    assert world.caption(pairs) == "an orange ring and a red circle"
    assert world.parse(world.caption(pairs)) == pairs


@pytest.mark.parametrize(
    "text", ["a red circle, a blue square.", "A Red circle & a BLUE square!", "red circle blue square"]
)
def test_a_prompt_is_read_whatever_its_case_and_punctuation(text):
    assert world.parse(text) == [("red", "circle"), ("blue", "square")]


def test_held_out_prompts_and_training_scenes_do_not_meet():
    held, seen = two_object_prompts(held_out=True), two_object_prompts(held_out=False)
    assert len(held) == 448
    assert not {p for p, _ in held} & {p for p, _ in seen}
    asked = {frozenset(pairs) for _, pairs in held}
    for things in draw_scenes(500, seed=3).things:
        assert not any({t.pair for t in things} >= pair for pair in asked)


def test_prompts_are_the_same_each_time_and_distinct():
    assert two_object_prompts(held_out=True, count=50) == two_object_prompts(held_out=True, count=50)
    assert len({p for p, _ in two_object_prompts(held_out=True)}) == 448
    assert len(one_object_prompts()) == 42


def test_a_held_out_scene_has_at_least_two_things():
    rng = random.Random(0)
    assert all(len(world.random_scene(rng, held_out=True).things) >= 2 for _ in range(20))


def test_equal_seeds_draw_equal_scenes():
    assert (draw_scenes(20, seed=5).images == draw_scenes(20, seed=5).images).all()


def test_masks_lie_where_their_things_are():
    scene = scenes(1, seed=4)[0]
    for thing, mask in zip(scene.things, scene.masks, strict=True):
        ys, xs = np.where(mask > 0.5)
        assert (xs.min() + xs.max() + 1) / 2 == pytest.approx(thing.x, abs=1.5)
        assert (ys.min() + ys.max() + 1) / 2 == pytest.approx(thing.y, abs=1.5)


def test_models_are_packed_in_half_precision_and_without_their_makers_paths(tmp_path, monkeypatch):
    source = tmp_path / "models" / "ram"
    source.mkdir(parents=True)
    save_file({"a": torch.tensor([1.0, 2.0]), "count": torch.tensor([3])}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"_name_or_path": "/home/someone", "width": 8}), encoding="utf-8")
    (source / "ram_tag_list.txt").write_text("cat\n", encoding="utf-8")
    (tmp_path / "packed" / "ram").mkdir(parents=True)
    (tmp_path / "packed" / "ram" / "old.txt").touch()
    arguments = ["pack", "--models", tmp_path / "models", "--out", tmp_path / "packed", "--only", "ram"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    pack.main()
    folder = tmp_path / "packed" / "ram"
    tensors = load_file(folder / "model.safetensors")
    assert (tensors["a"].dtype, tensors["count"].dtype) == (torch.float16, torch.int64)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {"width": 8}
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "ram_tag_list.txt"]
    assert {name.split("/")[0] for name in pack.FOLDERS} <= {folder.name for folder in WEIGHTS.iterdir()}
