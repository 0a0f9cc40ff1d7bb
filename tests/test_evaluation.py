"""The tables and their confidence intervals, and what compares training seeds and settings."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.demo.models import SETTINGS
from realigndiff.demo.prompts import two_object_prompts
from realigndiff.evaluation import coarse, tables, tune
from realigndiff.evaluation.bootstrap import mean_interval, paired_difference
from realigndiff.evaluation.methods import BASE, FINE, REDRAW, Method
from realigndiff.evaluation.scores import stayed_right
from realigndiff.evaluation.tune import evaluable_rules, parse_settings
from realigndiff.sampling.settings import SamplingSettings


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
    assert mean_interval(same) == (1, 0.99, 1.01)


def test_equal_data_gives_equal_intervals():
    a, b = np.arange(20.0), np.arange(20.0)[::-1]
    assert paired_difference(a, b) == paired_difference(a, b)


@pytest.mark.parametrize(("before", "after"), [(np.ones(3), np.ones(4)), (np.ones(1), np.ones(1))])
def test_what_is_not_paired_is_refused(before, after):
    with pytest.raises(ValueError, match="Paired values"):
        paired_difference(before, after)


METHODS = [
    Method("base"),
    Method("+ coarse", weights=Path("lora")),
    Method("+ fine", FINE),
    Method("both", FINE, Path("lora")),
    Method("theirs", images=Path("folder")),
    Method("+ redraw", REDRAW),
]


def told(scores, methods=None, whole=None):
    """The tables of scores, one list a method."""
    methods = METHODS[: len(scores)] if methods is None else methods
    columns = {m.name: {"both_right": np.array(ours, float)} for m, ours in zip(methods, scores, strict=True)}
    for ours in columns.values():
        ours["stayed_right"] = stayed_right(ours["both_right"], columns[methods[0].name]["both_right"])
    out = {"prompts": {"n": len(scores[0]), "source": "x"}, "notes": ["a note"]}
    return {**out, **tables.summarize(methods, columns, whole or {})}


def test_stayed_right_counts_only_what_was_right():
    out = told([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]])
    base, other = (row["columns"] for row in out["rows"])
    assert base["stayed_right"] == {"value": 1.0, "n": 4}
    assert (other["stayed_right"]["value"], other["stayed_right"]["n"]) == (0.75, 4)
    assert other["both_right"]["value"] == base["both_right"]["value"] == pytest.approx(4 / 6)
    assert [(d["column"], d["n"]) for d in out["differences"]] == [("both_right", 6), ("stayed_right", 4)]
    assert all(d["ci"][0] <= d["delta"] <= d["ci"][1] for d in out["differences"])
    text = tables.as_text(METHODS[:2], out)
    assert "**Right images lost**, of 4" in text and "| + coarse | 1 |" in text


def test_where_no_right_image_is_lost_the_text_says_how_many_may_be():
    assert "| + coarse | 0 | below 0.100 |" in tables.as_text(METHODS[:2], told([[1] * 30 + [0], [1] * 31]))


def test_with_no_right_image_there_is_nothing_that_could_stay_right():
    out = told([[0, 0, 0], [1, 0, 0]])
    assert out["rows"][1]["columns"]["stayed_right"] == {"value": None, "n": 0}
    assert "none could be lost" in tables.as_text(METHODS[:2], out)


def test_the_tables_are_the_papers():
    scores = [np.random.default_rng(i).integers(0, 2, 20) for i in range(len(METHODS))]
    out = told(scores, METHODS)
    rows = {number: [row["name"] for row in rows] for number, _, rows in tables.tables(METHODS, out)}
    assert rows == {
        1: [m.name for m in METHODS],
        2: ["base", "+ coarse", "+ fine", "both"],
        3: ["base", "+ fine", "both", "theirs", "+ redraw"],
    }
    pairs = list(dict.fromkeys((d["row"], d["to"]) for d in out["differences"]))
    assert pairs == [(m.name, "base") for m in METHODS[1:]] + [
        ("both", "+ coarse"),
        ("both", "+ fine"),
        ("+ fine", "+ redraw"),
        ("+ fine", "theirs"),
        ("both", "theirs"),
    ]
    delta, low, high = paired_difference(scores[1], scores[3])
    told_so = next(d for d in out["differences"] if (d["row"], d["to"]) == ("both", "+ coarse"))
    assert (told_so["delta"], *told_so["ci"]) == (delta, low, high)
    ablation = METHODS[:4]
    assert [title[:14] for _, title, _ in tables.tables(ablation, told(scores[:4]))] == ["Tables 1 and 2"]


def test_markdown_and_csv_hold_the_same_numbers():
    methods = [Method("base"), Method("a|b", images=Path("folder"))]
    whole = {m.name: {"fid": {"value": 12.3456, "n": 4}, "kid": {"value": 0.01, "std": 0.002}} for m in methods}
    out = told([[1, 0, 1, 1], [0, 0, 1, 0]], methods, whole)
    head, rule, base, other = tables.markdown(out["rows"]).splitlines()
    assert " ".join(head.split()) == "| | fid ↓ | kid ↓ | both_right ↑ | stayed_right ↑ |"
    assert len({len(line) for line in (head, rule, base, other)}) == 1 and r"| a\|b" in other
    assert "| 12.35 | 0.0100 ± 0.0020 | 0.750 ±" in " ".join(base.split())
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(out["rows"]))))
    assert [row["method"] for row in rows] == ["base", "a|b"]
    low, high = out["rows"][1]["columns"]["both_right"]["ci"]
    assert (float(rows[1]["both_right"]), float(rows[1]["both_right_low"])) == (0.25, low)
    assert f"± {(high - low) / 2:.3f}" in other and rows[0]["kid_std"] == "0.002"


@pytest.fixture
def tuned(models, tmp_path):
    """The demo models with a LoRA that nobody trained: the base's own words get lost."""
    import peft
    from realigndiff.cli.models import load_sampler
    from realigndiff.core.embedded import embedded
    from realigndiff.demo.models import load_models
    from realigndiff.lora_files.export import save_lora

    unet = load_models().sampler.unet
    torch.manual_seed(0)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_k"], init_lora_weights=False))
    save_lora(unet, tmp_path / "lora.safetensors")
    return replace(models, sampler=load_sampler(embedded("model"), weights=tmp_path / "lora.safetensors"))


def test_training_seeds_are_compared_with_the_base_by_their_mean(models, tuned, monkeypatch):
    monkeypatch.setattr(coarse, "SETTINGS", replace(SETTINGS, sampling=SamplingSettings(steps=4, cfg=3.0)))
    prompts = [text for text, _ in two_object_prompts(held_out=True, count=3)]
    output = coarse.compare({BASE: models, "one": tuned, "two": models}, prompts)
    base, one, two = output["rows"]
    assert base == {**two, "name": BASE} != {**one, "name": BASE}
    (reward, *_) = output["differences"]
    assert reward["column"] == "caption_reward"
    assert reward["delta"] == pytest.approx((one["caption_reward"] - base["caption_reward"]) / 2)
    assert "mean of 2 files less base" in coarse.as_text(output)


def test_a_variant_is_the_papers_settings_with_its_changes():
    assert parse_settings(["end=0.5", "gain_limit=none"]).modulation == ModulationSettings(end=0.5)
    assert parse_settings(["power=2"]).modulation == ModulationSettings(power=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [("nope=1", "'nope' is no setting.*choose from cross_strength"), ("end", "sets no number"), ("end=2", "end is 2")],
)
def test_a_variant_that_is_none_is_refused(change, message):
    with pytest.raises(RealignError, match=message):
        parse_settings([change])


def test_only_gates_under_which_all_was_sampled_again_are_told():
    assert {rule.gate for rule in evaluable_rules(0.9)} == {0.8, 0.9}
    assert None in {rule.gate for rule in evaluable_rules(np.inf)}


def test_a_script_tells_what_is_wrong_in_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tune", "--count", "2000"])
    with pytest.raises(SystemExit, match="tune: count is 2000; give"):
        tune.main()


@pytest.mark.parametrize("count", [0, 449])
def test_more_prompts_than_there_are_are_refused(count):
    with pytest.raises(RealignError, match="from 1 to 448"):
        two_object_prompts(held_out=True, count=count)
