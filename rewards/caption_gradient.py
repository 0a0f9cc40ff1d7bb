"""How to change an image so that its caption reward rises: three estimators of ∇ R_cap (eq. 4).

A caption is discrete text, so R_cap has no gradient in the image. Each estimator returns, for every image, a number
whose value is its reward and whose gradient estimates the reward's; what is *reported* is always the reward of freely
generated captions (`rewards/caption.py`).
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
from .caption_likelihood import Captions, Speech

Similarity = Callable[[Sequence[str], Sequence[str]], Tensor]
"""Captions and prompts, N each → rewards [N] in [-1, 1]."""


class Estimator(Protocol):
    """Images [B, H, W, 3] in [0, 1] with gradient and a prompt each → [B], differentiable in the images."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


class ScoreFunction:
    """∇ E[R] = E[(R_k − b_k) ∇ log p(caption_k | image)], b_k the mean reward of the image's other captions.

    Unbiased for the expected reward of sampled captions; the leave-one-out baseline keeps the variance low. Value: the
    mean reward of the K captions, in [-1, 1].
    """

    def __init__(self, speech: Speech, similarity: Similarity, samples: int = 4) -> None:
        if samples < 2:
            raise RealignError(
                f"samples_per_image is {samples}; the score function needs at least 2 captions to compare."
            )
        self.speech, self.similarity, self.samples = speech, similarity, samples

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        K = self.samples
        seen = self.speech.see(images)
        captions = self.speech.sample(seen, K)
        asked = [prompt for prompt in prompts for _ in range(K)]
        R = self.similarity(self.speech.decode(captions), asked).to(seen.device).clone().view(-1, K)
        b = (R.sum(1, keepdim=True) - R) / (K - 1)
        log_p = self.speech.log_prob(seen.repeat_interleave(K, 0), captions).sum(1).view(-1, K)
        return _value(R.mean(1), ((R - b) * log_p).mean(1))


class PromptLikelihood:
    """Mean log-likelihood of a prompt's tokens as the image's caption; low variance, but another goal than R_cap.

    A captioner names things in an order of its own, so for a prompt that lists up to three things all orders count
    (log of the sum of their likelihoods). Value: in (-inf, 0].
    """

    def __init__(self, speech: Speech) -> None:
        self.speech = speech

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        orders = [_orders(prompt) for prompt in prompts]
        owner = torch.tensor([i for i, own in enumerate(orders) for _ in own], device=images.device)
        captions = self.speech.encode([text for own in orders for text in own], images.device)
        log_p = self.speech.log_prob(self.speech.see(images)[owner], captions).sum(1)
        lengths = captions.mask[:, 1:].sum(1)
        rows = [(log_p[owner == i], lengths[owner == i]) for i in range(len(prompts))]
        return torch.stack([own.logsumexp(0) / length.float().mean() for own, length in rows])


class StraightThrough:
    """The greedy caption's reward, with the gradient of f_enc at the captioner's *expected* word embeddings.

    The captioner's words are f_enc's in embeddings: each token stands for the mean embedding of its spelling. Biased,
    because f_enc was not trained on mixtures of words. Value: R_cap, in [-1, 1].
    """

    def __init__(self, speech: Speech, text_encoder: TextEncoder, similarity: Similarity) -> None:
        self.speech, self.text_encoder, self.similarity = speech, text_encoder, similarity
        text_encoder.model.requires_grad_(False)
        self.words = _words_of_the_captioner(speech, text_encoder)  # [V, D]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = self.speech.see(images)
        captions = self.speech.sample(seen, greedy=True)
        R = self.similarity(self.speech.decode(captions), prompts).to(seen.device).clone()
        expected = self.speech.probabilities(seen, captions) @ self.words.to(seen.device)  # [B, L − 1, D]
        said = self.text_encoder.embed_vectors(expected, self._without_end(captions))
        return _value(R, (said * self.text_encoder.embed(list(prompts)).clone().to(said)).sum(-1))

    def _without_end(self, captions: Captions) -> Tensor:
        """[B, L − 1]: the places of words, the end token's left out."""
        return captions.mask[:, 1:] * (captions.ids[:, 1:] != self.speech.end)


def _value(value: Tensor, surrogate: Tensor) -> Tensor:
    """A number that is `value` and has the gradient of `surrogate`."""
    return value.detach() + surrogate - surrogate.detach()


def _orders(prompt: str) -> list[str]:
    """The prompt, and where it is nothing but a list of two or three things, the list in every order."""
    things = noun_phrases(prompt)
    if not 2 <= len(things) <= 3 or prompt != " and ".join(things):
        return [prompt]
    return list(dict.fromkeys(" and ".join(order) for order in itertools.permutations(things)))


def _words_of_the_captioner(speech: Speech, text_encoder: TextEncoder) -> Tensor:
    """For each token of the captioner the mean of f_enc's word embeddings of its spelling: [V, D]; 0 for none."""
    table = text_encoder.model.embeddings.word_embeddings.weight.detach().float()
    out = torch.zeros(speech.model.config.text_config.vocab_size, table.shape[1], device=table.device)
    for token in range(len(out)):
        spelling = speech.tokenizer.decode([token], skip_special_tokens=True)
        ids = text_encoder.tokenizer(spelling, add_special_tokens=False).input_ids
        if ids:
            out[token] = table[ids].mean(0)
    return out
