"""The evaluation from prompts to tables: what it draws, keeps, refuses, and tells."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from realigndiff.core.embedded import WEIGHTS
from realigndiff.core.errors import RealignError
from realigndiff.core.images import to_uint8
from realigndiff.demo.judge import judge_all
from realigndiff.demo.models import SETTINGS
from realigndiff.demo.prompts import two_object_prompts
from realigndiff.demo.world import parse as pairs_of
from realigndiff.evaluation import evaluate, generation, images, metrics
from realigndiff.evaluation.methods import FINE, FINE_ALL, REDRAW, parse_methods, sample_methods
from realigndiff.evaluation.prompt_sets import Numbered, prompt_set
from realigndiff.evaluation.scores import Cache, item_of
from realigndiff.pipeline.realign import realign_batch
from realigndiff.sampling.settings import SamplingSettings

SCRIPT = Path(evaluate.__file__)
BASE = "--method=base"
QUICK = ["--steps=3", "--gate=0.95", "--metric=judge"]
SETTINGS_QUICK = replace(SETTINGS, sampling=SamplingSettings(steps=3, cfg=3.0), gate=0.95)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the script with these arguments, its results in tmp_path/out; what it exits with."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--out", str(tmp_path / "out"), *map(str, arguments)])
        try:
            evaluate.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


def results(folder):
    return json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))


def pixels(folder, method):
    files = sorted((folder / "out" / "images" / method).glob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_the_script_tells_what_the_library_says_and_measures_only_once(call, tmp_path, models, monkeypatch, capsys):
    arguments = ["--count=3", *QUICK, "--metric=caption", "--method=base", "--method=fine", "--method=redraw"]
    assert call(*arguments, "--panels=1", "--attention") == 0
    assert "| + redraw " in capsys.readouterr().out
    prompts = two_object_prompts(held_out=True, count=3)
    texts, pairs = [text for text, _ in prompts], [ours for _, ours in prompts]
    alone = realign_batch(models, texts, [0, 1, 2], SETTINGS_QUICK)
    for name, looks in (
        ("base", [result.before for result in alone]),
        ("fine", [result.after for result in alone]),
    ):
        assert np.array_equal(pixels(tmp_path, name), to_uint8(torch.stack([look.image for look in looks])))
    output = results(tmp_path)
    assert [row["name"] for row in output["rows"]] == ["base", "+ fine", "+ redraw"]
    for row, method in zip(output["rows"], ("base", "fine", "redraw"), strict=True):
        drawn = pixels(tmp_path, method)
        rewards = models.reward(torch.from_numpy(drawn).float() / 255, texts)
        assert row["columns"]["caption"]["value"] == pytest.approx(float(rewards.mean()), rel=1e-3)
        assert row["columns"]["bind"]["value"] == pytest.approx(judge_all(drawn, pairs)["bind"].mean())
    assert output["metrics"]["caption"]["captioner"].startswith(str(WEIGHTS / "blip2_captioner"))
    assert [panel.name for panel in (tmp_path / "out" / "panels" / "fine").iterdir()] == ["00000.png"]
    assert (tmp_path / "out" / "table3.csv").read_text(encoding="utf-8").startswith("method,caption,caption_low")

    monkeypatch.setattr(generation, "generate_batch", lambda *parts: pytest.fail("drawn again"))
    asked = []
    load = metrics.load_rewards
    monkeypatch.setattr(
        metrics, "load_rewards", lambda names, *rest, **more: asked.append(names) or load(names, *rest, **more)
    )
    assert call(*arguments, "--metric=sam") == 0
    assert asked == [["sam"]]
    assert results(tmp_path)["rows"][0]["columns"].keys() > {"sam", "caption", "both_right", "stayed_right"}


def test_the_controls_differ_from_the_method_in_one_thing_each(models):
    prompts = [text for text, _ in two_object_prompts(held_out=True, count=3)]
    seeds, settings = [5, 6, 7], replace(SETTINGS_QUICK, box_threshold=0.1)
    drawn = sample_methods(models, prompts, seeds, [FINE, FINE_ALL, REDRAW], settings)
    for way, ours in ((FINE, settings), (FINE_ALL, replace(settings, keep_better=False))):
        alone = realign_batch(models, prompts, seeds, ours)
        assert [made.result.verdict for made in drawn[way]] == [result.verdict for result in alone]
        assert all(torch.equal(made.image, result.after.image) for made, result in zip(drawn[way], alone, strict=True))
    for made, ours in zip(drawn[REDRAW], drawn[FINE], strict=True):
        before = ours.result.before
        if before.reward >= settings.gate:
            assert torch.equal(made.image, before.image)
        else:
            assert models.reward(made.image[None], [ours.result.prompt]).item() >= before.reward - 1e-3


def test_a_killed_run_goes_on_where_it_was(call, tmp_path):
    arguments = ["--count=4", "--steps=1", "--batch=1", "--metric=judge", "--method=base"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *arguments, "--out", tmp_path / "out"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "out" / "images" / "base"
    while not (folder / "00000.png").exists() and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    present = {file: file.stat().st_mtime_ns for file in folder.glob("*.png")}
    assert present
    assert call(*arguments) == 0
    assert len(list(folder.glob("*.png"))) == 4
    assert all(file.stat().st_mtime_ns == made for file, made in present.items())


@pytest.mark.parametrize("length", [0, 60, -30])
def test_an_image_that_is_cut_off_is_drawn_again(call, tmp_path, length):
    arguments = ["--count=2", "--steps=1", "--metric=judge", "--method=base"]
    assert call(*arguments) == 0
    first, second = sorted((tmp_path / "out" / "images" / "base").glob("*.png"))
    whole, state = first.read_bytes(), second.stat()
    first.write_bytes(whole[:length])
    assert call(*arguments) == 0
    assert first.read_bytes() == whole and second.stat().st_mtime_ns == state.st_mtime_ns


def test_of_a_file_of_questions_each_prompt_is_drawn_once_and_that_is_said(call, tmp_path, capsys):
    rows = [f"{item},a {color} ring,{n},is it?" for item, color in enumerate(("red", "blue")) for n in range(4)]
    (tmp_path / "dsg-1k-anns.csv").write_text("\n".join(["item_id,text,proposition_id,question", *rows]), "utf-8")
    arguments = ["--prompts", tmp_path / "dsg-1k-anns.csv", "--steps=1", "--metric=judge", BASE]
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    assert "its 8 rows hold 2 different prompts" in shown and "2 prompts, 1 methods." in shown
    assert any("2 different prompts" in note for note in results(tmp_path)["notes"])
    (tmp_path / "again.txt").write_text("a red ring\na red ring\n", encoding="utf-8")
    images = tmp_path / "out" / "images"
    shutil.rmtree(images)
    assert call("--prompts", tmp_path / "again.txt", *arguments[2:]) == 0
    assert "2 prompts (1 different), 1 methods." in capsys.readouterr().out


def test_a_damaged_real_image_is_named_before_anything_is_drawn(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, "generate_batch", lambda *parts: pytest.fail("drawn"))
    (tmp_path / "real").mkdir()
    for name in ("a.png", "b.gif"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / "real" / name)
    (tmp_path / "real" / "a.png").write_bytes((tmp_path / "real" / "a.png").read_bytes()[:60])
    for name in ("._a.png", "c.heic"):
        (tmp_path / "real" / name).touch()
    result = call(
        "--count=2", "--metric=kid", BASE, f"--reference={tmp_path / 'real'}", "--fid-features=demo", "--model=demo"
    )
    assert "a.png' cannot be read" in result
    assert "1 picture of kinds that are not read (1 .heic), and 1 hidden file ('._a.png')" in capsys.readouterr().out


def test_a_stopped_run_says_so(call, monkeypatch):
    def stopped(*parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "generate_batch", stopped)
    assert call("--count=2", *QUICK) == "evaluate: stopped; the same command continues where it was."


def test_images_of_other_settings_seeds_or_prompts_are_not_mixed(call, tmp_path):
    (tmp_path / "a.txt").write_text("a red ring\na red ring\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("a blue ring\n", encoding="utf-8")
    base = ["--method=base", "--metric=judge", "--steps=1"]
    assert call(*base, "--prompts", tmp_path / "a.txt") == 0
    twice = pixels(tmp_path, "base")
    assert (twice[0] != twice[1]).any()  # a prompt that stands there twice is drawn from other noise
    assert call(*base, "--prompts", tmp_path / "a.txt", "--gate=0.5") == 0  # which makes nothing of a base image
    assert "made with steps 1, not 2: give another --out" in call(*base, "--prompts", tmp_path / "a.txt", "--steps=2")
    assert "has the seed 0, not 9" in call(*base, "--prompts", tmp_path / "a.txt", "--seed=9")
    assert "was drawn for “a red ring”, but prompt 0 is now “a blue" in call(*base, "--prompts", tmp_path / "b.txt")
    (tmp_path / "out" / "images" / "base" / "made.json").unlink()
    assert "holds images, but no made.json" in call(*base, "--prompts", tmp_path / "a.txt")


PROMPTS = [
    "A room with blue walls and a white sink and door.",
    "A room with white walls and a blue sink and door .",
    "“Ein Bär” — 犬 & <cat>, 50 % | \\n ; ñandú 🦊",
    "(a (nested:1.3) [prompt]), -- with; everything: 'quoted' \"too\"",
    "a red circle and a blue square " * 25,
    "a red circle and a blue square",
    "a red circle and a blue square",
]


def test_prompts_of_any_kind_are_drawn_and_told(call, tmp_path):
    lines = [PROMPTS[0], "", *PROMPTS[1:4], "   ", *PROMPTS[4:], ""]
    (tmp_path / "ABC-6K.txt").write_text("\r\n".join(lines), encoding="utf-8")
    arguments = ["--prompts", tmp_path / "ABC-6K.txt", "--metric=judge", "--metric=caption", "--steps=1"]
    assert call(*arguments, "--method=base", "--method=fine") == 0
    output = results(tmp_path)
    assert output["prompts"]["n"] == len(PROMPTS)
    assert output["rows"][0]["columns"]["bind"]["n"] == 3  # the prompts of shapes
    drawn = pixels(tmp_path, "base")
    assert (drawn[5] != drawn[6]).any()
    assert call(*arguments, "--method=base", "--first=5", "--count=1") == 0  # which is there
    assert results(tmp_path)["rows"][0]["columns"]["bind"]["n"] == 1


def test_coco_gives_one_caption_an_image_or_all(tmp_path):
    rows = [(7, 2, "A dog\n runs. "), (3, 9, "A cat."), (5, 2, "Two dogs."), (9, 1, " ")]
    output = {"annotations": [{"id": i, "image_id": image, "caption": text} for i, image, text in rows], "images": []}
    (tmp_path / "captions.json").write_text(json.dumps(output), encoding="utf-8")
    one, problems = prompt_set(str(tmp_path / "captions.json"))
    assert one == [Numbered(0, "Two dogs."), Numbered(1, "A cat.")]
    assert problems == ("captions.json, annotation 9: the text is empty.",)
    every, _ = prompt_set(str(tmp_path / "captions.json"), one_caption=False)
    assert [prompt.text for prompt in every] == ["A dog runs.", "A cat.", "Two dogs."]
    assert prompt_set(str(tmp_path / "captions.json"), first=1, count=1)[0] == [Numbered(1, "A cat.")]


class TestOtherSystems:
    @pytest.fixture
    def folder(self, tmp_path):
        """Three images in two sizes and kinds, called by names whose order is not that of the alphabet."""
        (tmp_path / "theirs").mkdir()
        for number, size in ((2, 32), (10, 48), (9, 32)):
            color = (number * 20, 0, 0)
            Image.new("RGB", (size, size), color).save(tmp_path / "theirs" / f"image{number}.png")
        return tmp_path / "theirs"

    def prompts(self, count, first=0):
        return [Numbered(first + i, f"prompt {i}") for i in range(count)]

    def names(self, *arguments):
        return [file.name for file in images.other_images(*arguments)]

    def test_they_go_by_their_order_or_by_the_prompts_numbers(self, folder):
        assert self.names(folder, self.prompts(3)) == ["image2.png", "image9.png", "image10.png"]
        for old, new in (("image2", "00000"), ("image9", "2"), ("image10", "1")):
            (folder / f"{old}.png").rename(folder / f"{new}.png")
        assert self.names(folder, self.prompts(3)) == ["00000.png", "1.png", "2.png"]
        assert self.names(folder, self.prompts(1, first=1)) == ["1.png"]
        (folder / "00000.png").rename(folder / "3.png")  # from 1 on: the numbers are not those of prompts
        assert self.names(folder, self.prompts(3)) == ["1.png", "2.png", "3.png"]
        with pytest.raises(RealignError, match="holds 3 images, and there are 2 prompts"):
            self.names(folder, self.prompts(2, first=1))

    def test_hidden_files_are_none_of_them_and_a_picture_that_is_not_read_is_named(self, folder):
        (folder / "._image2.png").touch()
        assert self.names(folder, self.prompts(3)) == ["image2.png", "image9.png", "image10.png"]
        (folder / "image11.heic").touch()
        with pytest.raises(RealignError, match=r"holds 3 images, and there are 4 prompts.*1 \.heic"):
            self.names(folder, self.prompts(4))

    def test_they_are_judged_at_their_own_sizes_without_a_model_that_draws(self, call, folder, tmp_path):
        (tmp_path / "p.txt").write_text("a\nb\nc\n", encoding="utf-8")
        arguments = ["--prompts", tmp_path / "p.txt", "--method", f"theirs={folder}"]
        models = ["--captioner=demo", "--text-encoder=demo", "--metric=caption"]
        assert call(*arguments, *models) == 0
        assert results(tmp_path)["rows"][0]["columns"]["caption"]["n"] == 3
        assert "'base' needs --model PATH" in call(*arguments, *models, "--method=base")

    def test_one_that_cannot_be_read_is_named_before_anything_is_drawn(self, call, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(generation, "generate_batch", lambda *parts: pytest.fail("drawn"))
        whole = (folder / "image9.png").read_bytes()
        (folder / "image9.png").write_bytes(whole[: len(whole) // 2])
        result = call("--count=3", "--metric=judge", "--method=base", "--method", f"theirs={folder}")
        assert "image9.png' cannot be read" in result and result.startswith("evaluate: ")

    def test_the_judge_refuses_images_of_another_world(self, call, folder):
        assert "images of 64 x 64, and one has 32 x 32" in call(
            "--count=3", "--metric=judge", "--method", f"theirs={folder}"
        )


def test_both_takes_the_weights_of_the_one_method_that_has_some(tmp_path):
    lora = tmp_path / "a.safetensors"
    lora.touch()
    assert [m.weights for m in parse_methods(["base", f"mine={lora}", "both"])] == [None, lora, lora]
    assert parse_methods([f"x={lora}+redraw"])[0].way == REDRAW
    (tmp_path / "b+fine").mkdir()
    assert parse_methods([f"x={tmp_path / 'b+fine'}"])[0].images == tmp_path / "b+fine"
    for methods, output in (
        (["both"], "there are none"),
        ([f"a={lora}", f"b={tmp_path / 'a.safetensors'}", "c=demo", "both"], "there are 2"),
        (["base", "base"], "would share the folder 'base'"),
        (["nope"], "--method is 'nope'; give base"),
        (["x=nowhere"], "no file or folder 'nowhere'"),
        (["+=demo"], "with a letter or a digit"),
    ):
        with pytest.raises(RealignError, match=output):
            parse_methods(methods)


def test_a_damaged_file_of_kept_numbers_is_as_none(tmp_path):
    Cache(tmp_path).add(["a", "b"], np.array([[1.0], [2.0]]))
    Cache(tmp_path).add(["c"], np.array([[3.0]]))
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:50])
    assert {key: value.tolist() for key, value in Cache(tmp_path).values.items()} == {"a": [1.0], "b": [2.0]}


def test_a_number_belongs_to_an_image_and_its_prompt(tmp_path):
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    a, b, c = (item_of(tmp_path / f"{name}.png", "x").key for name in "abc")
    assert a == b != c and a != item_of(tmp_path / "a.png", "y").key


def test_rendered_scenes_show_their_prompts_and_fid_says_why_it_is_not_told(call, tmp_path):
    arguments = ["--count=10", "--steps=1", "--method=base", "--metric=fid", "--metric=kid"]
    assert call(*arguments) == 0
    reference = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "out" / "reference").iterdir())]
    wanted = [pairs_of(text) for text, _ in two_object_prompts(held_out=True, count=10)]
    assert judge_all(reference, wanted)["exact"].mean() > 0.9
    output = results(tmp_path)
    (row,) = output["rows"]
    assert row["columns"]["fid"]["value"] is None and row["columns"]["kid"]["value"] > 0
    assert "FID over" in output["notes"][0] and "there are 10" in output["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompts=nowhere.txt"], "no file or folder 'nowhere.txt'"),
        (["--count=2000"], "count is 2000; give a whole number from 1 to 448"),
        (["--first=448"], "first is 448; give a whole number from 0 to 447"),
        (["--steps=0"], "steps is 0"),
        (["--batch=0"], "--batch is 0"),
        (["--tagger=nowhere"], "'base' needs --model PATH"),
        (["--device=gpu"], "cannot compute on 'gpu'"),
        (["--metric=negclip"], "The metric negclip needs --negclip PATH"),
        (["--metric=negclip", "--negclip=demo", "--model=demo", BASE], "needs --negclip PATH"),
        (["--clip=nowhere", "--metric=clip", "--model=demo", BASE], "no 'nowhere': check the path at --clip"),
        (["--model=demo", "--method=base", "--metric=fid"], "fid and kid need --reference"),
        (["--reference=nowhere", "--metric=fid"], "no images in 'nowhere'"),
        (["--out", __file__], "is no folder to write to"),
    ],
)
def test_bad_arguments_are_told_before_a_model_is_read(call, tmp_path, monkeypatch, arguments, told):
    monkeypatch.setattr(evaluate, "generate_missing", lambda *parts: pytest.fail("drawn"))
    result = call("--metric=judge", *arguments) if "--metric" not in str(arguments) else call(*arguments)
    assert told in result and result.startswith("evaluate: ")


def test_a_json_file_without_coco_captions_is_told(tmp_path):
    (tmp_path / "x.json").write_text('{"annotations": [{"id": 1}]}', encoding="utf-8")
    with pytest.raises(RealignError, match="is no file of COCO captions"):
        prompt_set(str(tmp_path / "x.json"))
