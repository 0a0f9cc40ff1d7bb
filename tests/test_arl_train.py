"""Reward-ranked learning on the demo models: what is ranked, what is learnt, and that stopping it costs nothing."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.sampling.settings import SamplingSettings
from realigndiff.tests.close import SAMPLING, assert_close
from realigndiff.training.arl_train import ArlRun
from realigndiff.training.data import candidates
from realigndiff.training.data.prompts import load_prompts
from realigndiff.training.loop.models import load_models
from realigndiff.training.loop.plan import plan
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.files import parse
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import rankdata

ROOT = Path(__file__).parents[1]
QUICK = parse(
    ArlConfig,
    f"--config {ROOT}/training/configs/arl-demo.toml --rounds 2 --steps 4 --prompts-per-round 3 --images-per-prompt 3 "
    "--rollout-steps 3 --batch-size 2 --rank 4 --targets to_q to_k --warmup-steps 0 --decay-steps 0 "
    "--evaluate-prompts 2 --evaluate-every 2 --sample-every 4 --save-every 1 --keep-last 9".split(),
)


TEXTS = load_prompts(QUICK)[0].texts


@pytest.fixture(scope="module")
def trained():
    return load_models(QUICK, torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two rounds that nothing stopped."""
    output = tmp_path_factory.mktemp("arl")
    run_in(output).train()
    return output


def run_in(output: Path, **changes) -> ArlRun:
    return ArlRun(QUICK.replace(output=str(output), **changes))


def same(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rounds(output: Path) -> list[Path]:
    return sorted((output / "rounds").rglob("*.safetensors"))


def test_a_run_writes_what_every_training_writes_and_its_rounds(whole):
    rows = list(csv.DictReader((whole / "log.csv").open(encoding="utf-8")))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    assert [bool(row["held_out_reward"]) for row in rows] == [True, False, True, False, True]
    assert rows[1]["reward"] == rows[2]["reward"] != rows[3]["reward"] == rows[4]["reward"]  # of a round's images
    assert [file.parent.name for file in rounds(whole)] == ["0001", "0002"]
    assert Image.open(whole / "rounds/0001/best-first.png").size == (3 * 64, 3 * 64)
    assert "arl_train.py" in (whole / "report.html").read_text(encoding="utf-8")
    weights = load_file(whole / "last.safetensors")
    assert max(float(tensor.abs().max()) for name, tensor in weights.items() if "lora_up" in name) > 1e-4
    with safe_open(whole / "last.safetensors", "pt") as file:
        assert '"images_per_prompt": 3' in file.metadata()["realigndiff.config"]


def test_the_winner_has_the_smallest_sum_of_ranks(whole, models):
    """Drawn, judged and ranked again, one image after the other."""
    (file,) = rounds(whole)[:1]
    stored = load_file(file)
    ((_, prompts),) = candidates.round_files(QUICK, TEXTS, 0, 32).values()
    for place, prompt in enumerate(prompts):
        first = 42 * 10**9 + candidates.SEED_OF_CANDIDATES + place * 3
        noise = models.sampler.noise([first, first + 1, first + 2])
        latents = models.sampler.sample_latents([prompt] * 3, noise, SamplingSettings(steps=3, cfg=QUICK.rollout.cfg))
        assert_close(models.reward(models.sampler.decode(latents), [prompt] * 3), stored["caption"][place], SAMPLING)
        sums = sum(rankdata(-stored[name][place].numpy()) for name in stored if name != "winners")
        assert_close(stored["winners"][place], latents[sums.argmin()], SAMPLING)


def test_winners_are_of_the_best_ranks_or_by_chance():
    scores = [torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]]), torch.tensor([[0.0, 0.0, 9.0], [2.0, 1.0, 3.0]])]
    assert candidates.pick_winners(scores, "rank_sum", random.Random(0)).tolist() == [2, 0]
    chance = torch.stack([candidates.pick_winners(scores, "random", random.Random(seed)) for seed in range(300)])
    assert (torch.nn.functional.one_hot(chance).float().mean(0) - 1 / 3).abs().max() < 0.1


def test_a_run_that_goes_on_within_a_round_ends_with_the_same_weights(whole, tmp_path):
    """And does not draw again what is there."""
    name = "checkpoints/step-00000001.pt"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(whole / name, tmp_path / name)
    shutil.copytree(whole / "rounds/0001", tmp_path / "rounds/0001")
    before = [file.stat().st_mtime_ns for file in rounds(tmp_path)]
    run_in(tmp_path).train()
    assert same(tmp_path / "last.safetensors", whole / "last.safetensors")
    assert [file.stat().st_mtime_ns for file in rounds(tmp_path)[:1]] == before


def test_images_that_other_weights_drew_or_another_model_judged_are_not_taken(whole, tmp_path):
    shutil.copytree(whole / "rounds", tmp_path / "rounds")
    config = QUICK.replace(output=str(tmp_path))
    ((file, (_, prompts)),) = candidates.round_files(config, TEXTS, 0, 32).items()
    with safe_open(file, "pt") as opened:
        weights = json.loads(opened.metadata()["made_of"])["weights"]

    def kept(weights: str, **changes) -> bool:
        made_of = candidates.provenance_of(config.replace(**changes), prompts, weights)
        return candidates.read_file(file, made_of) is not None

    assert kept(weights)
    assert not kept("other")
    assert not kept(weights, tagger="another")


def test_stopping_while_images_are_drawn_keeps_those_that_are_there(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trained.sampler), "max_batch", 3)
    config, texts, drawn, draw = QUICK.replace(output=str(tmp_path)), TEXTS, [], candidates.draw_file
    monkeypatch.setattr(candidates, "draw_file", lambda *given: (drawn.append(given[4]), draw(*given)))
    candidates.draw_round(config, trained, texts, 0, "mine", should_stop=lambda: len(drawn) == 2)
    assert drawn == [0, 1] and len(rounds(tmp_path)) == 2
    rounds(tmp_path)[1].write_bytes(b"cut off")
    candidates.draw_round(config, trained, texts, 0, "mine")
    assert drawn == [0, 1, 1, 2] and len(rounds(tmp_path)) == 3
    read = candidates.read_round(config, trained, texts, 0, "mine")
    assert (len(read.prompts), read.latents.shape, read.scores["sam"].shape) == (3, (3, 4, 16, 16), (3, 3))


def test_more_images_of_a_prompt_than_are_sampled_at_once_are_drawn_in_parts(trained, tmp_path, monkeypatch):
    config = QUICK.replace(output=str(tmp_path), prompts_per_round=1)
    counts, sample = [], trained.sampler.sample_latents
    candidates.draw_round(config, trained, TEXTS, 0, "whole")
    whole = candidates.read_round(config, trained, TEXTS, 0, "whole")
    monkeypatch.setattr(type(trained.sampler), "max_batch", 2)
    monkeypatch.setattr(
        trained.sampler, "sample_latents", lambda asked, *more: (counts.append(len(asked)), sample(asked, *more))[1]
    )
    candidates.draw_round(config, trained, TEXTS, 0, "parts")
    parts = candidates.read_round(config, trained, TEXTS, 0, "parts")
    assert counts == [2, 1] and whole.prompts == parts.prompts
    assert_close(parts.latents, whole.latents, SAMPLING)
    assert_close(parts.scores["caption"], whole.scores["caption"], SAMPLING)


def test_an_image_that_is_not_finite_ranks_last_and_ends_nothing(trained, tmp_path, monkeypatch):
    config = QUICK.replace(output=str(tmp_path), prompts_per_round=1)
    sampler = trained.sampler
    decode = sampler.decode
    monkeypatch.setattr(sampler, "decode", lambda latents: decode(latents).index_fill(0, torch.tensor([1]), torch.nan))
    candidates.draw_round(config, trained, TEXTS, 0, "mine")
    read = candidates.read_round(config, trained, TEXTS, 0, "mine")
    for scores in read.scores.values():
        assert scores.isnan().tolist() == [[False, True, False]]
    assert -3 <= candidates.mean_reward(trained, read.scores) <= 3


def test_a_round_that_another_device_wrote_elsewhere_is_one_sentence(trained, tmp_path):
    config = QUICK.replace(output=str(tmp_path))
    with pytest.raises(RealignError, match="give an output that all devices"):
        candidates.read_round(config, trained, TEXTS, 0, "mine")


def test_devices_share_a_rounds_images(trained, tmp_path, monkeypatch):
    config, drawn = QUICK.replace(output=str(tmp_path)), []
    monkeypatch.setattr(type(trained.sampler), "max_batch", 3)
    monkeypatch.setattr(candidates, "draw_file", lambda *given: drawn.append(given[4]))
    for device in (1, 0):
        candidates.draw_round(config, trained, TEXTS, 0, "mine", share=(device, 2))
    assert drawn == [1, 0, 2]


def test_the_plan_says_how_many_images_are_ranked(tmp_path):
    text = plan(QUICK.replace(output=str(tmp_path / "none")))
    assert "ranks 2 times 3 × 3 images by caption, sam" in text
    assert "rounds/" in text and "prior.safetensors" not in text


def test_the_papers_first_version_is_the_default():
    assert (ArlConfig().rounds.images_per_prompt, ArlConfig().optimizer.learning_rate, ArlConfig().rounds.rounds) == (
        10,
        9e-6,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 5}, "give a multiple of the rounds, such as 6"),
        ({"reward": "caption=2, sam"}, "caption has a weight, but all rank alike"),
        ({"images_per_prompt": 1}, "images_per_prompt is 1; it should be greater than or equal to 2"),
        ({"reward": " "}, "reward is empty"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(changes, says):
    with pytest.raises(RealignError, match=says):
        QUICK.replace(**changes)


def test_a_reward_that_is_not_there_is_one_sentence():
    with pytest.raises(RealignError, match="The reward clip needs to know where clip is: give its path"):
        load_models(QUICK.replace(reward="clip", clip=""), torch.device("cpu"))
