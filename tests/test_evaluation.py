"""The table and its confidence intervals."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from realigndiff.attention.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.demo.models import SETTINGS
from realigndiff.demo.prompts import two_object_prompts
from realigndiff.evaluation import coarse
from realigndiff.evaluation.bootstrap import paired_difference
from realigndiff.evaluation.table import (
    BASE,
    BOTH,
    COARSE,
    COLUMNS,
    EVERY,
    FINE,
    REDRAW,
    as_text,
    better,
    rows,
    run,
    table,
    with_weights,
)
from realigndiff.evaluation.tune import rules, variant
from realigndiff.pipeline.realign import Look
from realigndiff.pipeline.settings import SamplingSettings


def test_the_interval_is_that_of_the_paired_differences():
    rng = np.random.default_rng(0)
    before = rng.normal(size=400)
    after = before + rng.normal(0.2, 0.5, size=400)
    delta, low, high = paired_difference(before, after)
    half = 1.96 * np.std(after - before) / np.sqrt(400)
    assert delta == pytest.approx(np.mean(after - before))
    assert (delta - low, high - delta) == pytest.approx((half, half), rel=0.1)


def test_where_nothing_differs_a_share_of_3_in_n_still_may():
    same = np.ones(300)
    assert paired_difference(same, same) == (0, -0.01, 0.01)


def test_equal_data_gives_equal_intervals():
    a, b = np.arange(20.0), np.arange(20.0)[::-1]
    assert paired_difference(a, b) == paired_difference(a, b)


@pytest.mark.parametrize(("before", "after"), [(np.ones(3), np.ones(4)), (np.ones(1), np.ones(1))])
def test_what_is_not_paired_is_refused(before, after):
    with pytest.raises(ValueError, match="Paired values"):
        paired_difference(before, after)


def scores(both):
    both = np.array(both, float)
    return {"bind": both, "both_right": both, "exact": both, "caption_reward": both}


def test_stayed_right_counts_only_what_was_right():
    told = table({"base": scores([1, 1, 1, 1, 0, 0]), "+ fine": scores([1, 1, 1, 0, 1, 0])})
    base, fine = told["rows"]
    assert told["n"] == 6
    assert (base["stayed_right"], fine["stayed_right"]) == (1.0, 0.75)
    assert fine["both_right"] == base["both_right"] == pytest.approx(4 / 6)
    assert [d["column"] for d in told["differences"]] == list(COLUMNS)
    assert all(d["row"] == "+ fine" and d["ci"][0] <= d["delta"] <= d["ci"][1] for d in told["differences"])
    assert "95 %" in as_text(told)
    assert "right images lost, of 4" in as_text(told)
    assert as_text(told).endswith("1")


def test_where_no_right_image_is_lost_the_text_says_how_many_may_be():
    told = table({BASE: scores([1] * 30 + [0]), FINE: scores([1] * 31)})
    assert as_text(told).endswith("0   below 0.100")


def test_all_rows_come_from_the_same_noise_and_the_controls_differ_in_one_thing_each(models):
    prompts = two_object_prompts(held_out=True, count=4)
    settings = replace(SETTINGS, sampling=SamplingSettings(steps=6, cfg=3.0), gate=0.95, box_threshold=0.1)
    told = rows(models, prompts, settings)
    kept = run(models, prompts, settings)
    assert told[FINE]["caption_reward"] == pytest.approx([result.after.reward for result in kept])
    assert told[BASE]["caption_reward"] == pytest.approx([result.before.reward for result in kept])
    every = [result.after.reward for result in run(models, prompts, replace(settings, keep_better=False))]
    assert told[EVERY]["caption_reward"] == pytest.approx(every)
    assert (told[REDRAW]["caption_reward"] >= told[BASE]["caption_reward"]).all()
    protected = told[BASE]["caption_reward"] >= settings.gate
    assert (told[REDRAW]["caption_reward"] == told[BASE]["caption_reward"])[protected].all()


@pytest.fixture
def tuned(models, tmp_path):
    """The demo models with a LoRA that nobody trained: the base's own words get lost."""
    import peft
    from realigndiff.demo.models import load_models
    from realigndiff.training.export import save_lora

    unet = load_models().sampler.unet
    torch.manual_seed(0)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_k"], init_lora_weights=False))
    save_lora(unet, tmp_path / "lora.safetensors")
    return with_weights(models, tmp_path / "lora.safetensors")


def test_the_rows_of_a_fine_tuned_model_are_its_own_images(models, tuned):
    prompts = two_object_prompts(held_out=True, count=3)
    settings = replace(SETTINGS, sampling=SamplingSettings(steps=4, cfg=3.0), gate=0.95)
    told = rows(models, prompts, settings, coarse=tuned)
    assert list(told) == [BASE, COARSE, FINE, BOTH, EVERY, REDRAW]
    alone = run(tuned, prompts, settings)
    assert told[COARSE]["caption_reward"] == pytest.approx([result.before.reward for result in alone])
    assert told[BOTH]["caption_reward"] == pytest.approx([result.after.reward for result in alone])
    assert (told[COARSE]["caption_reward"] != told[BASE]["caption_reward"]).any()


def test_training_seeds_are_compared_with_the_base_by_their_mean(models, tuned, monkeypatch):
    monkeypatch.setattr(coarse, "SETTINGS", replace(SETTINGS, sampling=SamplingSettings(steps=4, cfg=3.0)))
    prompts = two_object_prompts(held_out=True, count=3)
    told = coarse.compare({BASE: models, "one": tuned, "two": models}, prompts)
    base, one, two = told["rows"]
    assert base == {**two, "name": BASE} != {**one, "name": BASE}
    (reward, *_) = told["differences"]
    assert reward["column"] == "caption_reward"
    assert reward["delta"] == pytest.approx((one["caption_reward"] - base["caption_reward"]) / 2)
    assert "mean of 2 files less base" in coarse.as_text(told)


def test_the_better_of_two_is_the_first_of_equals():
    first, same, worse, best = (
        Look(None, name, reward) for name, reward in (("a", 0.5), ("b", 0.5), ("c", 0.4), ("d", 0.6))
    )
    assert better([first, first, first], [same, worse, best]) == [first, first, best]


def test_a_variant_is_the_papers_settings_with_its_changes():
    assert variant(["end=0.5", "gain_limit=none"]) == ModulationSettings(end=0.5)
    assert variant(["power=2"]) == ModulationSettings(power=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [("nope=1", "'nope' is no setting.*choose from cross_strength"), ("end", "sets no number"), ("end=2", "end is 2")],
)
def test_a_variant_that_is_none_is_refused(change, message):
    with pytest.raises(RealignError, match=message):
        variant([change])


def test_only_gates_under_which_all_was_sampled_again_are_told():
    assert {rule.gate for rule in rules(0.9)} == {0.8, 0.9}
    assert None in {rule.gate for rule in rules(np.inf)}


@pytest.mark.parametrize("script", ["table", "tune"])
def test_a_script_tells_what_is_wrong_in_one_sentence(script, monkeypatch):
    module = importlib.import_module(f"realigndiff.evaluation.{script}")
    monkeypatch.setattr("sys.argv", [script, "--count", "2000"])
    with pytest.raises(SystemExit, match=f"{script}: count is 2000; give"):
        module.main()


@pytest.mark.parametrize("count", [0, 449])
def test_more_prompts_than_there_are_are_refused(count):
    with pytest.raises(RealignError, match="from 1 to 448"):
        two_object_prompts(held_out=True, count=count)


def test_with_no_right_image_there_is_nothing_that_could_stay_right():
    told = table({"base": scores([0, 0, 0]), "+ fine": scores([1, 0, 0])})
    assert told["rows"][1]["stayed_right"] is None
    assert as_text(told)
