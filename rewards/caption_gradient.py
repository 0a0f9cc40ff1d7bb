"""How to change an image so that its caption reward rises: three estimators of ∇ R_cap (eq. 4).

A caption is discrete text, so R_cap has no gradient in the image. Each estimator returns one number per image, whose
gradient estimates the reward's. Training *reports* the reward of freely generated captions (`rewards/caption.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import RealignError
from ..core.phrases import noun_phrases
from ..perception.text_encoder import TextEncoder
from .caption_likelihood import CaptionLikelihood

Similarity = Callable[[Sequence[str], Sequence[str]], Tensor]
"""N captions, N prompts → rewards [N] in [-1, 1]."""


class Estimator(Protocol):
    """Images [B, H, W, 3] in [0, 1] with gradient, B prompts → [B], differentiable in the images."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


class ScoreFunction:
    """∇ E[R] = E[(R_k − b_k) ∇ log p(caption_k | image)], b_k the mean reward of the image's other captions.

    Unbiased for the expected reward of sampled captions; the leave-one-out baseline keeps the variance low. Value: the
    mean reward of the K captions, in [-1, 1].
    """

    def __init__(self, likelihood: CaptionLikelihood, similarity: Similarity, samples: int = 4) -> None:
        if samples < 2:
            raise RealignError(
                f"samples_per_image is {samples}; the score function needs at least 2 captions to compare."
            )
        self.likelihood, self.similarity, self.samples = likelihood, similarity, samples

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        K = self.samples
        image_embeds = self.likelihood.encode_images(images)
        captions = self.likelihood.sample(image_embeds, K)
        repeated = [prompt for prompt in prompts for _ in range(K)]
        R = self.similarity(self.likelihood.decode(captions), repeated).to(image_embeds.device).clone().view(-1, K)
        b = (R.sum(1, keepdim=True) - R) / (K - 1)
        log_p = self.likelihood.log_prob(image_embeds.repeat_interleave(K, 0), captions).sum(1).view(-1, K)
        return _with_gradient_of(((R - b) * log_p).mean(1), R.mean(1))


class PromptLikelihood:
    """Mean log-likelihood of the prompt's tokens as the image's caption. Low variance, but another goal than R_cap.

    A captioner names things in any order. So for a prompt that lists up to three things, all orders count (log of the
    sum of their likelihoods). Value: in (-inf, 0].
    """

    def __init__(self, likelihood: CaptionLikelihood) -> None:
        self.likelihood = likelihood

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        orders = [_orders(prompt) for prompt in prompts]
        index = torch.tensor([i for i, texts in enumerate(orders) for _ in texts], device=images.device)
        captions = self.likelihood.encode([text for texts in orders for text in texts], images.device)
        log_p = self.likelihood.log_prob(self.likelihood.encode_images(images)[index], captions).sum(1)
        lengths = captions.mask[:, 1:].sum(1).float()
        rows = [index == i for i in range(len(prompts))]
        return torch.stack([log_p[row].logsumexp(0) / lengths[row].mean() for row in rows])


class StraightThrough:
    """The greedy caption's reward, with the gradient of f_enc at the captioner's *expected* word embeddings.

    Each token of the captioner stands for the mean of f_enc's embeddings of its text. Biased, because f_enc was not
    trained on mixtures of words. Value: R_cap, in [-1, 1].
    """

    def __init__(self, likelihood: CaptionLikelihood, text_encoder: TextEncoder, similarity: Similarity) -> None:
        self.likelihood, self.text_encoder, self.similarity = likelihood, text_encoder, similarity
        text_encoder.model.requires_grad_(False)
        self.token_embeds = _token_embeds(likelihood, text_encoder)  # [V, D]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        image_embeds = self.likelihood.encode_images(images)
        captions = self.likelihood.sample(image_embeds, greedy=True)
        R = self.similarity(self.likelihood.decode(captions), prompts).to(image_embeds.device).clone()
        probabilities = self.likelihood.probabilities(image_embeds, captions)
        expected = probabilities @ self.token_embeds.to(image_embeds.device)  # [B, L − 1, D]
        without_end = captions.mask[:, 1:] * (captions.ids[:, 1:] != self.likelihood.end)
        caption = self.text_encoder.embed_vectors(expected, without_end)
        prompt = self.text_encoder.embed(list(prompts)).clone().to(caption)
        return _with_gradient_of((caption * prompt).sum(-1), R)


def _with_gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    """`value` with the gradient of `surrogate`."""
    return value.detach() + surrogate - surrogate.detach()


def _orders(prompt: str) -> list[str]:
    """The prompt; a prompt that only lists two or three things, in every order of the things."""
    things = noun_phrases(prompt)
    if not 2 <= len(things) <= 3 or prompt != " and ".join(things):
        return [prompt]
    return list(dict.fromkeys(" and ".join(order) for order in itertools.permutations(things)))


def _token_embeds(likelihood: CaptionLikelihood, text_encoder: TextEncoder) -> Tensor:
    """For each token of the captioner the mean of f_enc's word embeddings of its text, 0 for an empty one: [V, D]."""
    table = text_encoder.model.embeddings.word_embeddings.weight.detach().float()
    out = torch.zeros(likelihood.model.config.text_config.vocab_size, table.shape[1], device=table.device)
    for token in range(len(out)):
        text = likelihood.tokenizer.decode([token], skip_special_tokens=True)
        ids = text_encoder.tokenizer(text, add_special_tokens=False).input_ids
        if ids:
            out[token] = table[ids].mean(0)
    return out
