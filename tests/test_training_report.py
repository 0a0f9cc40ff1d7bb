"""report.html: one file without any network access that survives whatever a run left."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.lora_files.metadata import run_metadata
from realigndiff.training import report
from realigndiff.training.watch import curves, log, samples
from safetensors.numpy import save_file

VOID = {"meta", "img", "path", "circle", "br"}
PROMPTS = ["a <script>alert(1)</script> cat", "a \"dog\" & 'co'", "a hen"]


class Checked(HTMLParser):
    """Reads a page and holds its visible text; stops at a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_run(folder: Path, steps: int = 8, **settings) -> Path:
    """What a run of so many steps leaves, with samples at each fourth."""
    rows = [{"step": 0, "held_out_reward": 0.5}]
    for step in range(1, steps + 1):
        row = {"step": step, "reward": 0.5, "loss": 0.1, "prior_loss": 0.05, "seconds": 2.0, "bad_batches": 0}
        rows.append(row | ({"held_out_reward": 0.5 + step / 40} if step % 4 == 0 else {}))
    log.append(folder / "log.csv", rows)
    for step in range(0, steps + 1, 4):
        pictures = [Image.new("RGB", (16, 16), (step, 80 * i, 0)) for i in range(len(PROMPTS))]
        samples.save(folder / "samples", step, pictures, PROMPTS)
    for name, at in (("best", 4), ("last", steps)):
        about = {"steps": at, "learning_rate": 1e-5, "config": {"steps": steps, **settings}, "prompts": PROMPTS}
        save_file({"a": np.zeros(1, np.float32)}, folder / f"{name}.safetensors", run_metadata(name, **about))
    return folder


def page(folder: Path) -> Checked:
    return Checked(report.write(folder).read_text(encoding="utf-8"))


def test_the_page_says_what_the_run_did(tmp_path):
    read = page(make_run(tmp_path / "mine", margin=0.8, learning_rate=1e-5))
    assert "8 of 8 steps." in read.text
    assert "0.500 → 0.700" in read.text and "+0.200" in read.text
    assert "cp best.safetensors ComfyUI/models/loras/mine-best.safetensors" in read.text
    assert "margin" in read.text and "learning_rate" not in read.text.partition("Settings")[2]
    assert all(title in read.text for title in ("Reward on held-out prompts", "Loss", "Prior loss"))
    assert read.tags.count("svg") == 4
    assert read.tags.count("img") == 2 * 3 + 1


def test_it_asks_the_network_for_nothing(tmp_path):
    text = report.write(make_run(tmp_path)).read_text(encoding="utf-8")
    read = Checked(text)
    assert read.addresses and all(address.startswith("data:image/") for address in read.addresses)
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", text))
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_whatever_a_text_holds_is_text(tmp_path):
    read = page(make_run(tmp_path / "<img src=x> & co", model="<b>model</b>", targets=["</td>"], odd="<i>"))
    assert not {"script", "b>model", "i"} & set(read.tags) and "x" not in read.addresses
    assert all(prompt in read.text for prompt in PROMPTS)
    assert "<img src=x> & co" in read.text and "<b>model</b>" in read.text and "</td>" in read.text


def test_a_copied_name_is_quoted_for_the_shell(tmp_path):
    read = page(make_run(tmp_path / "my run; rm x"))
    assert "'ComfyUI/models/loras/my run; rm x-best.safetensors'" in read.text


def test_a_whole_unet_goes_to_its_own_folder(tmp_path):
    assert "models/diffusion_models/mine-best.safetensors" in page(make_run(tmp_path / "mine", train="unet")).text


def test_nobodys_folders_are_shown(tmp_path):
    read = page(make_run(tmp_path / "mine", prompts="/home/somebody/p.txt", model="C:\\Users\\somebody\\sd"))
    assert "p.txt" in read.text and "sd" in read.text
    assert "somebody" not in read.text and str(tmp_path) not in read.text


def test_weights_that_no_evaluation_has_beaten_are_told(tmp_path):
    make_run(tmp_path)
    about = run_metadata("best", steps=0, learning_rate=1e-5, config={}, prompts=PROMPTS)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "best.safetensors", about)
    text = page(tmp_path).text
    assert "cp last.safetensors" in text and "best.safetensors is the model before training" in text


def test_a_run_that_was_interrupted_is_shown_as_far_as_it_came(tmp_path):
    make_run(tmp_path)
    for name in ("best", "last"):
        (tmp_path / f"{name}.safetensors").unlink()
    log.append(tmp_path / "log.csv", [{"step": 3, "reward": math.nan, "bad_batches": 1}])  # it went on from step 2
    read = page(tmp_path)
    assert "3 steps" in read.text and "left out at step 3" in read.text
    assert "There are no weights with the run's settings yet" in read.text
    assert "Load it in ComfyUI" not in read.text
    assert read.tags.count("img") == 3  # the samples of steps 4 and 8 are of what was thrown away


def test_files_that_are_broken_are_notes(tmp_path):
    make_run(tmp_path)
    (tmp_path / "log.csv").write_bytes((tmp_path / "log.csv").read_bytes()[:-7])
    (tmp_path / "best.safetensors").write_bytes(b"cut")
    png = tmp_path / "samples" / "step-00000004.png"
    png.write_bytes(png.read_bytes()[:90])
    text = page(tmp_path).text
    assert "log.csv that are broken and left out: 1." in text
    assert "best.safetensors cannot be read" in text and "step-00000004.png cannot be read" in text
    assert "cp last.safetensors" in text


@pytest.mark.parametrize("config", ["[]", "no json", json.dumps({"model": None, "steps": "many", "targets": {}})])
def test_odd_settings_end_nothing(config, tmp_path):
    make_run(tmp_path)
    for name in ("best", "last"):
        about = {"realigndiff.config": config, "realigndiff.reward_before": "x"}
        save_file({"a": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors", about)
    assert "8 steps" in page(tmp_path).text


@pytest.mark.parametrize("values", [["1e308", "-1e308"], ["inf", "nan"], ["0", "0"], ["1e-300", "2e-300"], ["7", "7"]])
def test_odd_numbers_end_nothing(values, tmp_path):
    lines = "".join(f"{step},{value},{value}\n" for step, value in enumerate(values, 1))
    (tmp_path / "log.csv").write_text(f"step,loss,held_out_reward\n{lines}", encoding="utf-8")
    assert "2 steps" in page(tmp_path).text


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(RealignError, match=r"There is no run in .*: give the folder that training wrote"):
        report.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_samples_are_made_smaller_and_many_grids_fewer(tmp_path):
    for step in range(0, 90, 10):
        samples.save(tmp_path / "samples", step, [Image.effect_noise((700, 700), 90).convert("RGB")], ["noise"])
    file = report.write(tmp_path)
    assert Checked(file.read_text(encoding="utf-8")).tags.count("img") == 2 + report.BETWEEN
    assert file.stat().st_size < 3.7e6


# Curves


def test_a_long_curve_is_drawn_as_means_of_pieces_up_to_its_last_point():
    points = [(step, step % 7) for step in range(1, 5001)]
    thin = curves.thin(points)
    assert len(thin) <= curves.MOST_POINTS
    assert thin[0] == pytest.approx(tuple(np.mean(points[:17], axis=0)))
    assert thin[-1] == points[-1]
    assert curves.thin(points[:200]) == points[:200]


def test_the_smoothed_curve_is_the_mean_of_what_lies_around():
    values = np.random.default_rng(0).normal(size=100)
    smooth = curves.smooth(list(enumerate(values)))
    wanted = [values[max(0, i - 5) : i + 6].mean() for i in range(100)]
    np.testing.assert_allclose([value for _, value in smooth], wanted)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.61, 0.73), (-3, 5e6), (2, 2), (0, 0), (1e-9, 3e-9)])
def test_ticks_are_few_round_numbers_around_the_values(low, high):
    numbers = curves.ticks(low, high, 5)
    assert 2 <= len(numbers) <= 6
    assert numbers[0] <= low + 1e-12 and numbers[-1] >= high - 1e-12
    assert {f"{b - a:.3e}"[0] for a, b in pairwise(numbers)} <= set("125")
