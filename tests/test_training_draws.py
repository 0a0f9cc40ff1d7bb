"""What a training draws: noise of its own for each image, and the steps, captions and weights that the settings say."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from realigndiff.rewards.caption_gradient import PromptLikelihood, ScoreFunction, StraightThrough
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.training.arl_train import ArlRun
from realigndiff.training.data.candidates import draw_round
from realigndiff.training.loop.models import load_models, make_estimators
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.arl import ArlConfig
from realigndiff.training.settings.files import load as read
from realigndiff.training.settings.refl import ReflConfig

CONFIGS = Path(__file__).parents[1] / "training/configs"
CLIP = {"precision": "fp32", "reward": "clip", "clip": "demo", "rank": 1, "targets": ("to_q",)}
QUIET = {"sample_every": 0, "evaluate_every": 0, "save_every": 0, "warmup_steps": 0, "decay_steps": 0}
REFL = read(ReflConfig, CONFIGS / "demo.toml").replace(
    **{**CLIP, **QUIET, "prior_weight": 0.0, "rollout_steps": 10, "first_gradient_step": 4},
    judged="predicted",
    gradient_steps=1,
    steps=5,
    batch_size=2,
    gradient_accumulation=3,
)


class Brightness:
    """A reward that is an image's mean."""

    name, differentiable = "clip", True

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))

    def networks(self):
        return ()


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """One run serves all tests of this module, which need what accelerate keeps of it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose images and reward cost nothing: all images are grey, of reward 0.5."""
    made = ReflRun(REFL.replace(output=str(tmp_path_factory.mktemp("run"))))
    made.indices, made.noises = [], []

    def drawn(texts, noise, index, unet):
        made.indices.append(index)
        made.noises += list(noise)
        weights = sum(weight.sum() for weight in made.models.weights)
        return 0.5 + 1e-3 * (weights - weights.detach()) * torch.ones(len(texts), 8, 8, 3)

    made.rollout = SimpleNamespace(predict_x0=drawn)
    made.estimators = {"clip": lambda images, texts: images.mean((1, 2, 3))}
    made.models.rewards["clip"] = Brightness()
    return made


def losses(run, **changes):
    """The loss of a batch at each step of the run, with other settings."""
    was, run.config = run.config, run.config.replace(**changes)
    try:
        out = []
        for run.step in range(REFL.optimizer.steps):
            out.append(run.add_gradient(0)[1].item())
        return out
    finally:
        run.config, run.step = was, 0


def test_no_two_images_of_a_run_have_the_same_noise(run):
    run.noises.clear()
    for run.step in range(3):
        for part in range(3):
            run.add_gradient(part)
    run.step = 0
    assert len(run.noises) == 3 * 3 * 2
    assert len({noise.sum().item() for noise in run.noises}) == 18
    evaluated = run.models.sampler.noise([10**7 + i for i in range(64)])
    assert not {noise.sum().item() for noise in run.noises} & {noise.sum().item() for noise in evaluated}


def test_the_gradient_enters_at_each_step_of_the_window_and_at_no_other(run):
    run.indices.clear()
    for run.step in range(90):
        run.add_gradient(0)
    run.step = 0
    counts = Counter(run.indices)
    assert set(counts) == {4, 5, 6, 7, 8, 9} and min(counts.values()) > 4


def test_a_rewards_weight_goes_from_the_first_step_of_the_training_to_the_last(run, monkeypatch):
    """An image's reward is 0.5: the loss is λ · ReLU(margin − weight · 0.5)."""
    (term,) = run.models.terms
    monkeypatch.setitem(vars(run.models), "terms", (term._replace(start=0.0, end=1.0),))
    settings = {"schedule": "steps", "reward_weight": 2.0, "margin": 1.0}
    assert losses(run, **settings) == pytest.approx([2 * (1 - 0.5 * step / 4) for step in range(5)], rel=1e-4)


@pytest.mark.parametrize(("asked", "count"), [(0, 2), (5, 5)])
def test_the_prior_learns_from_as_many_pairs_as_its_batch_size_says(run, monkeypatch, asked, count):
    seen = []

    def loss(sampler, unet, seeds):
        seen.append(list(seeds))
        return sum(weight.sum() for weight in run.models.weights) * 0 + 1.0

    monkeypatch.setattr(run, "prior", SimpleNamespace(loss=loss))
    values = losses(run, prior_batch_size=asked, prior_weight=0.25, reward_weight=1.0, margin=0.0)
    assert [len(seeds) for seeds in seen] == [count] * 5
    assert len({seed for seeds in seen for seed in seeds}) == 5 * count
    assert values == pytest.approx([0.25] * 5)


def gradients(run):
    """The distinct values of the gradient that one batch adds."""
    run.optimizer.zero_grad()
    run.add_gradient(0)
    values = torch.cat([weight.grad.flatten() for weight in run.models.weights])
    run.optimizer.zero_grad()
    return sorted({round(value, 9) for value in values.tolist()})


def slope(sampler, unet, seeds):
    """In the place of L_pre: its gradient is 1 in each weight that is trained."""
    return sum(weight.sum() for weight in unet.parameters() if weight.requires_grad)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_batchs_gradient_is_its_share_of_the_steps(run, monkeypatch, accumulated):
    """Of -λ · 1e-3 from the reward and 1 · the weight of L_pre, over the batches of a step."""
    settings = {"reward_weight": 100.0, "margin": 1.0, "gradient_accumulation": accumulated}
    monkeypatch.setattr(run, "config", run.config.replace(**settings, prior_weight=0.5))
    assert gradients(run) == pytest.approx([-0.1 / accumulated], rel=1e-3)
    monkeypatch.setattr(run, "prior", SimpleNamespace(loss=slope))
    assert gradients(run) == pytest.approx([(0.5 - 0.1) / accumulated], rel=1e-3)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_batchs_gradient_is_its_share_of_the_steps_in_reward_ranked_learning(tmp_path, monkeypatch, accumulated):
    config = read(ArlConfig, CONFIGS / "arl-demo.toml").replace(**CLIP, **QUIET, output=str(tmp_path))
    run = ArlRun(config.replace(gradient_accumulation=accumulated))
    run.pairs, run.reward = SimpleNamespace(loss=slope), 0.0
    assert gradients(run) == pytest.approx([1 / accumulated], rel=1e-4)


def test_each_estimator_is_the_one_that_is_asked_for(models):
    kinds = {
        "score_function": ScoreFunction,
        "prompt_likelihood": PromptLikelihood,
        "straight_through": StraightThrough,
    }
    for name, kind in kinds.items():
        made = make_estimators(REFL.replace(estimator=name, samples_per_image=3), {"caption": models.reward})
        assert type(made["caption"]) is kind


def test_the_score_function_samples_as_many_captions_of_an_image_as_asked_for(models, monkeypatch):
    made = make_estimators(REFL.replace(estimator="score_function", samples_per_image=3), {"caption": models.reward})[
        "caption"
    ]
    asked = []

    def similarity(captions, prompts):
        asked.append((len(captions), list(prompts)))
        return torch.zeros(len(captions))

    monkeypatch.setattr(made, "similarity", similarity)
    with torch.no_grad():
        made(torch.rand(2, 64, 64, 3), ["a ring", "a cross"])
    assert asked == [(6, ["a ring"] * 3 + ["a cross"] * 3)]


def test_no_two_images_of_a_trainings_rounds_have_the_same_noise(tmp_path, monkeypatch):
    """Nor one of its steps', whatever is sampled at once."""
    config = read(ArlConfig, CONFIGS / "arl-demo.toml").replace(
        **{**CLIP, **QUIET, "output": str(tmp_path), "rounds": 2, "steps": 2, "rollout_steps": 1},
        prompts_per_round=3,
        images_per_prompt=3,
    )
    models = load_models(config, torch.device("cpu"))
    models.rewards["clip"] = Brightness()
    seen, noise = [], models.sampler.noise

    def noted(seeds):
        seen.extend(seeds)
        return noise(seeds)

    monkeypatch.setattr(models.sampler, "noise", noted)
    monkeypatch.setattr(models.sampler, "sample_latents", lambda prompts, noise, settings: noise)
    monkeypatch.setattr(models.sampler, "decode", lambda latents: torch.zeros(len(latents), 8, 8, 3))
    monkeypatch.setattr(DiffusersSampler, "max_batch", 3)
    for number in (0, 1):
        draw_round(config, models, ["a ring", "a cross", "a circle"], number, "weights")
    assert len(seen) == len(set(seen)) == 2 * 3 * 3
    steps = {config.run.seed * 10**9 + i for i in range(10**6)}
    assert not steps & set(seen)
