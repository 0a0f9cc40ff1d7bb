"""The three estimators of the caption reward's gradient."""

import itertools
import math

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.rewards.caption_gradient import PromptLikelihood, ScoreFunction, StraightThrough
from realigndiff.rewards.caption_likelihood import CaptionLikelihood, Captions
from realigndiff.tests.close import NETWORK, assert_close

PROMPTS = ["a red circle and a blue square", "a green ring"]


class TwoTokens:
    """A captioner that says two words, each A or B, with a chance that the image's mean decides."""

    words = ("A", "B")

    def encode_images(self, images):
        return images.flatten(1).mean(1)[:, None, None]  # [B, 1, 1]

    def log_p(self, image_embeds, first=None):
        tilt = 0.0 if first is None else 0.7 * (2 * first.float() - 1)
        odds = 1.5 * image_embeds[:, 0, 0] - 0.4 + tilt
        return torch.stack([-odds, odds], -1).log_softmax(-1)  # [N, 2]

    @torch.no_grad()
    def sample(self, image_embeds, count=1):
        image_embeds = image_embeds.repeat_interleave(count, 0)
        one = torch.multinomial(self.log_p(image_embeds).exp(), 1)[:, 0]
        two = torch.multinomial(self.log_p(image_embeds, one).exp(), 1)[:, 0]
        ids = torch.stack([torch.zeros_like(one), one, two], 1)
        return Captions(ids, torch.ones_like(ids))

    def log_prob(self, image_embeds, captions):
        one, two = captions.ids[:, 1], captions.ids[:, 2]
        first = self.log_p(image_embeds).gather(1, one[:, None])
        return torch.cat([first, self.log_p(image_embeds, one).gather(1, two[:, None])], 1)

    def decode(self, captions):
        return [self.words[one] + self.words[two] for _, one, two in captions.ids.tolist()]


def reward(captions, prompts):
    return torch.tensor([{"AA": 0.9, "AB": 0.1, "BA": -0.3, "BB": 0.6}[caption] for caption in captions])


def exact_gradient(image):
    """∇ of the expected reward, every caption enumerated."""
    toy, image = TwoTokens(), image.clone().requires_grad_()
    total = 0.0
    for one, two in itertools.product((0, 1), repeat=2):
        ids = torch.tensor([[0, one, two]])
        p = toy.log_prob(toy.encode_images(image), Captions(ids, torch.ones_like(ids))).sum().exp()
        total = total + p * reward([toy.words[one] + toy.words[two]], [""])[0]
    return torch.autograd.grad(total, image)[0]


@pytest.mark.parametrize("samples", [2, 5])
def test_the_score_functions_mean_gradient_is_the_exact_one(samples):
    torch.manual_seed(0)
    image = torch.rand(1, 2, 2, 3)
    estimate = ScoreFunction(TwoTokens(), reward, samples)
    draws = 4000
    batch = image.expand(draws, -1, -1, -1).clone().requires_grad_()
    estimate(batch, ["any"] * draws).sum().backward()
    gradients = batch.grad.sum((1, 2, 3))  # one number an estimate
    error = float(gradients.mean() - exact_gradient(image).sum())
    assert abs(error) < 3.3 * float(gradients.std()) / math.sqrt(draws)
    assert float(exact_gradient(image).sum().abs()) > 0.05


def test_the_score_function_is_worth_the_mean_reward_of_its_captions():
    torch.manual_seed(0)
    values = ScoreFunction(TwoTokens(), reward, 4)(torch.rand(64, 2, 2, 3), ["any"] * 64)
    assert values.min() >= -0.3
    assert values.max() <= 0.9


def test_one_caption_alone_cannot_be_compared():
    with pytest.raises(RealignError, match="needs at least 2 captions"):
        ScoreFunction(TwoTokens(), reward, 1)


@pytest.fixture(scope="module")
def likelihood(models):
    return CaptionLikelihood(models.reward.captioner)


@pytest.fixture(scope="module")
def images(models):
    from realigndiff.sampling.settings import SamplingSettings

    return models.sampler.sample(PROMPTS, models.sampler.noise([0, 1]), SamplingSettings(steps=10, cfg=3.0)).clone()


@pytest.fixture(scope="module")
def mixed_up(models):
    """Twelve images of few steps, some of them wrong, with their prompts."""
    from realigndiff.demo.prompts import two_object_prompts
    from realigndiff.sampling.settings import SamplingSettings

    prompts = [prompt for prompt, _ in two_object_prompts(held_out=False, count=12, seed=3)]
    sampling = SamplingSettings(steps=6, cfg=3.0)
    return models.sampler.sample(prompts, models.sampler.noise(range(12)), sampling).clone(), prompts


def estimators(models, likelihood):
    similarity = models.reward.similarity
    return {
        "score_function": ScoreFunction(likelihood, similarity, 8),
        "prompt_likelihood": PromptLikelihood(likelihood),
        "straight_through": StraightThrough(likelihood, models.reward.text_encoder, similarity),
    }


def test_a_greedy_caption_is_what_the_captioner_says(models, likelihood, images):
    result = likelihood.decode(likelihood.sample(likelihood.encode_images(images), greedy=True))
    assert result == models.reward.captioner.caption(images)


def test_the_likelihoods_of_sampled_captions_are_those_they_were_drawn_with(likelihood, images):
    """Log-likelihoods under teacher forcing agree with those of the words one by one."""
    image_embeds = likelihood.encode_images(images)
    captions = likelihood.sample(image_embeds)
    log_p = likelihood.log_prob(image_embeds, captions)
    p = likelihood.probabilities(image_embeds, captions).gather(2, captions.ids[:, 1:, None])[..., 0]
    assert_close(log_p.exp() * captions.mask[:, 1:], p * captions.mask[:, 1:], NETWORK)
    assert (log_p[captions.mask[:, 1:] == 0] == 0).all()


@pytest.mark.parametrize("name", ["score_function", "prompt_likelihood", "straight_through"])
class TestOnTheDemoCaptioner:
    def test_gradients_reach_the_images_and_no_weight(self, models, likelihood, mixed_up, name):
        torch.manual_seed(0)
        image_embeds = mixed_up[0].clone().requires_grad_()
        estimators(models, likelihood)[name](image_embeds, mixed_up[1]).sum().backward()
        assert image_embeds.grad.isfinite().all()
        assert image_embeds.grad.abs().max() > 0
        weights = [*likelihood.model.parameters(), *models.reward.text_encoder.model.parameters()]
        assert all(weight.grad is None for weight in weights)

    def test_following_the_gradient_raises_the_reward_of_a_fixed_batch(self, models, likelihood, mixed_up, name):
        """25 steps on the pixels; the reward is the true one, of freely generated captions."""
        torch.manual_seed(0)
        images, prompts = mixed_up
        estimate = estimators(models, likelihood)[name]
        x = images.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.005)
        for _ in range(25):
            optimizer.zero_grad()
            (-estimate(x, prompts).mean()).backward()
            optimizer.step()
        before, after = (models.reward(y.detach(), prompts).mean() for y in (images, x))
        assert after > before + 0.01


def test_straight_through_is_worth_the_true_reward(models, likelihood, images):
    estimate = StraightThrough(likelihood, models.reward.text_encoder, models.reward.similarity)
    assert_close(estimate(images, PROMPTS), models.reward(images, PROMPTS).clone(), NETWORK)


def test_a_prompt_is_as_likely_in_either_order(likelihood, images):
    turned = ["a blue square and a red circle", "a green ring"]
    likely = PromptLikelihood(likelihood)
    assert_close(likely(images, PROMPTS), likely(images, turned), NETWORK)


def test_a_list_of_the_same_thing_has_one_order(likelihood, images):
    twice = "a red circle and a red circle"
    captions = likelihood.encode([twice], images.device)
    with torch.no_grad():
        log_p = likelihood.log_prob(likelihood.encode_images(images[:1]), captions).sum() / captions.mask[:, 1:].sum()
        assert_close(PromptLikelihood(likelihood)(images[:1], [twice])[0], log_p, NETWORK)
