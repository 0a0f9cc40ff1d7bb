"""Every setting of training has a test that it acts: this table names it, and the tests below fill the gaps."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.training import arl_train, refl_train
from realigndiff.training.arl_train import ArlRun
from realigndiff.training.data import candidates
from realigndiff.training.loop import models as loading
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.refl import ReflConfig
from realigndiff.training.settings.schema import fields

TESTS = Path(__file__).parent
ACTS = {
    "test_settings_act": "model captioner text_encoder clip negclip blip image_reward tagger detector segmenter llm "
    "llm_model reward precision offload_captioner rollout_steps cfg judged gradient_steps first_gradient_step prior "
    "winner images_per_prompt prompts_per_round rounds min_timestep",
    "test_training_effects": "seed rank alpha max_grad_norm targets gradient_checkpointing learning_rate "
    "evaluate_every evaluate_prompts steps save_every keep_last",
    "test_training_draws": "batch_size reward_weight margin gradient_accumulation prior_weight prior_batch_size "
    "estimator samples_per_image",
    "test_refl_train": "output sample_every ema train schedule",
    "test_prior": "prior_keep prior_min_timestep",
    "test_prior_images": "prior_images prior_steps prior_captions",
    "test_training_prompts": "prompts held_out held_out_prompts prompt_column",
    "test_optimization": "optimizer_8bit warmup_steps decay_steps",
    "test_watching": "log_with",
    "test_resume_checks": "resume",
}
"""Each module of tests with the settings that it gives two values and sees act."""


@pytest.mark.parametrize("config", [ReflConfig, ArlConfig])
def test_every_setting_has_a_test_that_it_acts(config):
    covered = {name for names in ACTS.values() for name in names.split()}
    assert set(fields(config)) - covered == set()
    assert covered - set(fields(ReflConfig)) - set(fields(ArlConfig)) == set()


@pytest.mark.parametrize("module", ACTS)
def test_the_modules_of_the_table_give_their_settings(module):
    source = (TESTS / f"{module}.py").read_text(encoding="utf-8")
    for name in ACTS[module].split():
        assert re.search(rf"\b{name}\b|--{name.replace('_', '-')}\b", source), name


# Models


@pytest.fixture
def read(monkeypatch):
    """What `load` asks for, in place of models."""
    asked = {}

    def load_sampler(path, device, dtype):
        asked.update(model=str(path), precision=dtype)
        return SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000)), unet=None)

    def load_language_model(llm, name, *_):
        asked.update(llm=llm, llm_model=name)

    def load_rewards(names, places, *_, **__):
        asked.update(reward=names, **places)
        return {}

    monkeypatch.setattr(DiffusersSampler, "load", load_sampler)
    monkeypatch.setattr(loading, "load_language_model", load_language_model)
    monkeypatch.setattr(loading, "load_rewards", load_rewards)
    monkeypatch.setattr(loading, "make_trainable", lambda *_: [])
    return asked


def test_each_model_is_read_from_its_setting(read):
    names = "model captioner text_encoder clip negclip blip image_reward tagger detector segmenter llm llm_model"
    places = {name: f"my {name}" for name in names.split()}
    loading.load_models(ArlConfig(**places, reward="sam, clip", precision="bf16"), torch.device("cpu"))
    assert read == {**places, "reward": ["sam", "clip"], "precision": torch.bfloat16}


@pytest.mark.parametrize(("offloaded", "place"), [(True, "cpu"), (False, "cuda")])
def test_reward_models_rest_on_the_cpu_where_asked(offloaded, place):
    config = ReflConfig(offload_captioner=offloaded, precision="bf16")
    assert loading.reward_device_and_dtype(config, torch.device("cuda")) == (torch.device(place), torch.bfloat16)


# Images and gradient, of runs that have no models


def bare(kind, config, **attributes):
    """A run as it is before its models are read, with these attributes."""
    run = kind.__new__(kind)
    vars(run).update(config=config, step=0, asked_to_stop=False, stopping=False, average=None, **attributes)
    run.accelerator = SimpleNamespace(process_index=0, num_processes=1, backward=lambda loss: None, print=print)
    run.accelerator.is_main_process = True
    return run


def test_images_are_sampled_in_as_many_steps_and_as_guided_as_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(refl_train, "Rollout", lambda sampler, steps, cfg: asked.append((steps, cfg)))
    config = ReflConfig(rollout_steps=7, first_gradient_step=0, cfg=2.5, prior_weight=0)
    bare(ReflRun, config, models=SimpleNamespace(sampler=None, rewards={})).prepare()
    assert asked == [(7, 2.5)]


@pytest.mark.parametrize(("judged", "count"), [("predicted", 1), ("finished", 3)])
def test_finished_images_have_gradient_at_as_many_steps_of_the_window_as_asked(judged, count):
    asked = []

    def drawn(way):
        def draw(texts, noise, *more):
            asked.append((way, more[0] if way == "finished" else more[:-1]))
            raise StopIteration

        return draw

    config = ReflConfig(judged=judged, gradient_steps=count, rollout_steps=9, first_gradient_step=5)
    rollout = SimpleNamespace(predict_x0=drawn("predicted"), roll_out=drawn("finished"))
    models = SimpleNamespace(sampler=SimpleNamespace(noise=lambda seeds: seeds))
    prompts = SimpleNamespace(texts=["a ring"])
    run = bare(ReflRun, config, rollout=rollout, models=models, prompts=prompts, unet=None)
    for run.step in range(40):
        with pytest.raises(StopIteration):
            run.add_gradient(0)
    assert {way for way, _ in asked} == {judged}
    assert all(len(set(steps)) == count for _, steps in asked)
    assert {step for _, steps in asked for step in steps} == {5, 6, 7, 8}


@pytest.mark.parametrize("folder", ["frozen", "my pictures"])
def test_the_prior_is_drawn_or_read_from_a_folder(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(refl_train, "folder_prior", lambda folder, *_: asked.append(str(folder)))
    monkeypatch.setattr(refl_train, "frozen_prior", lambda *_: asked.append("frozen"))
    models = SimpleNamespace(sampler=None, resolution=64, rewards={}, rewards_on_device=lambda: SimpleContext())
    accelerator = SimpleNamespace(main_process_first=SimpleContext, print=print, is_main_process=True)
    run = bare(ReflRun, ReflConfig(prior=folder), models=models, prompts=SimpleNamespace(texts=["a ring"]))
    run.accelerator = accelerator
    run._prior()
    assert asked == [folder]


class SimpleContext:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


# Rounds


@pytest.mark.parametrize("winner", ["rank_sum", "random"])
def test_a_round_is_drawn_and_its_winners_chosen_as_the_settings_say(winner, tmp_path, monkeypatch):
    """The last image of each prompt is the best."""
    config = ArlConfig(winner=winner, images_per_prompt=3, prompts_per_round=2, output=str(tmp_path), seed=1)

    def judged(config, models, asked, noise):
        scores = torch.arange(float(len(asked)))
        return scores.view(-1, 1, 1, 1), torch.zeros(len(asked), 8, 8, 3), {"clip": scores}

    monkeypatch.setattr(candidates, "_sample_and_score", judged)
    monkeypatch.setattr(candidates, "provenance_of", lambda *_: {})
    sampler = SimpleNamespace(max_batch=6, noise=lambda seeds: torch.zeros(len(seeds), 1))
    models = SimpleNamespace(sampler=sampler, rewards={"clip": None})
    candidates.draw_round(config, models, ["a", "b", "c", "d"], 0, "weights")
    drawn = candidates.read_round(config, models, ["a", "b", "c", "d"], 0, "weights")
    assert len(drawn.prompts) == 2 and drawn.scores["clip"].shape == (2, 3)
    assert (drawn.latents.flatten().tolist() == [2, 5]) == (winner == "rank_sum")


def test_a_new_round_begins_after_its_share_of_the_steps(monkeypatch):
    begun = []
    monkeypatch.setattr(arl_train, "draw_round", lambda *given, **_: begun.append(given[3]))
    result = candidates.Round(0, ["a"], torch.zeros(1, 4, 8, 8), {})
    monkeypatch.setattr(arl_train, "read_round", lambda *given: result._replace(number=given[3]))
    monkeypatch.setattr(arl_train, "mean_reward", lambda *_: 0.0)
    models = SimpleNamespace(weights=[torch.zeros(1)])
    config = ArlConfig(steps=6, rounds=3, min_timestep=700)
    run = bare(ArlRun, config, models=models, prompts=SimpleNamespace(texts=["a"]))
    monkeypatch.setattr(run, "agree_to_stop", lambda: None)
    for run.step in range(6):
        run.prepare_step()
    assert begun == [0, 1, 2]
    assert run.pairs.min_timestep == 700
