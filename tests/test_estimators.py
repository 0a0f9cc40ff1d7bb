"""The estimators of the caption reward's gradient against computations of their own."""

import itertools

import pytest
import torch
from realigndiff.demo.train.data import draw_scenes
from realigndiff.rewards.caption_gradient import PromptLikelihood, StraightThrough
from realigndiff.rewards.caption_likelihood import CaptionLikelihood

THREE = ["a red circle", "a blue square", "a green ring"]


@pytest.fixture(scope="module")
def likelihood(models):
    return CaptionLikelihood(models.reward.captioner)


@pytest.fixture(scope="module")
def images():
    return draw_scenes(2, seed=3, objects=2, held_out=True).images.permute(0, 2, 3, 1).float() / 255


def log_likelihood(likelihood, image, text):
    """log p(text | image), and the number of its tokens, one text at a time."""
    captions = likelihood.encode([text], image.device)
    with torch.no_grad():
        return likelihood.log_prob(likelihood.encode_images(image), captions).sum(), captions.mask[:, 1:].sum()


def test_a_list_of_three_things_is_as_likely_as_all_its_orders_together(likelihood, images):
    image = images[:1]
    orders = [log_likelihood(likelihood, image, " and ".join(order)) for order in itertools.permutations(THREE)]
    log_p, lengths = (torch.stack(column).float() for column in zip(*orders, strict=True))
    expected = log_p.logsumexp(0) / lengths.mean()
    with torch.no_grad():
        for order in (THREE, THREE[::-1]):
            value = PromptLikelihood(likelihood)(image, [" and ".join(order)])[0]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert expected - (log_p / lengths).max() > 0.01  # more than one order counts


@pytest.mark.parametrize("prompt", [" and ".join([*THREE, "a pink cross"]), "a red circle, a blue square", "a ring"])
def test_other_prompts_are_as_likely_as_their_own_words(likelihood, images, prompt):
    image = images[:1]
    log_p, length = log_likelihood(likelihood, image, prompt)
    with torch.no_grad():
        torch.testing.assert_close(
            PromptLikelihood(likelihood)(image, [prompt])[0], log_p / length, rtol=1e-4, atol=1e-4
        )


def test_prompts_of_one_and_of_many_orders_in_a_batch_are_each_as_alone(likelihood, images):
    prompts = [" and ".join(THREE), "a green ring"]
    likely = PromptLikelihood(likelihood)
    with torch.no_grad():
        alone = torch.cat([likely(images[i : i + 1], prompts[i : i + 1]) for i in (0, 1)])
        torch.testing.assert_close(likely(images, prompts), alone, rtol=1e-4, atol=1e-4)


def word_embeddings(encoder, texts):
    """Each text's words as f_enc embeds them [N, L, E], padded to the longest, and where they are [N, L]."""
    ids = [encoder.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    table, length = encoder.model.embeddings.word_embeddings.weight.detach(), max(map(len, ids))
    rows = [torch.cat([table[ours], torch.full((length - len(ours), table.shape[1]), 0.5)]) for ours in ids]
    mask = torch.tensor([[1] * len(ours) + [0] * (length - len(ours)) for ours in ids])
    return torch.stack(rows), mask


def test_the_vector_of_a_texts_word_embeddings_is_that_of_the_text_whatever_it_is_padded_to(models):
    encoder, texts = models.reward.text_encoder, ["a red circle", "a green ring and a pink cross and a circle"]
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.embed_vectors(*word_embeddings(encoder, texts)), encoder.embed(texts), rtol=1e-4, atol=1e-5
        )


def captioners_words(likelihood, encoder):
    """For each token of the captioner the mean embedding of its spelling by f_enc: [V, E]."""
    spelled = [likelihood.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(likelihood.tokenizer))]
    ids = [encoder.tokenizer(text, add_special_tokens=False).input_ids for text in spelled]
    table = encoder.model.embeddings.word_embeddings.weight.detach()
    words = torch.zeros(likelihood.model.config.text_config.vocab_size, table.shape[1])
    for token, ours in enumerate(ids):
        if ours:
            words[token] = table[ours].mean(0)
    return words


def gradient(value, x):
    return torch.autograd.grad(value.sum(), x)[0]


def assert_close(ours, theirs):
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3 * float(theirs.abs().max()))


def test_straight_through_climbs_the_similarity_of_the_captions_words_without_its_end_token(models, likelihood, images):
    """By hand for one image: each word of the greedy caption, and nothing after the last, is its expected embedding."""
    encoder, prompt, x = models.reward.text_encoder, "a red circle", images[:1].clone().requires_grad_()
    ours = gradient(StraightThrough(likelihood, encoder, models.reward.similarity)(x, [prompt]), x)
    image_embeds = likelihood.encode_images(x)
    captions = likelihood.sample(image_embeds, greedy=True)
    assert captions.ids[0, -1] == likelihood.end
    expected = (likelihood.probabilities(image_embeds, captions) @ captioners_words(likelihood, encoder))[
        :, :-1
    ]  # the last is the end
    result = encoder.embed_vectors(expected, torch.ones(expected.shape[:2], dtype=torch.long))
    assert_close(ours, gradient(result @ encoder.embed([prompt]).clone().T, x))


def test_straight_through_has_the_same_gradient_for_an_image_in_a_batch_as_alone(models, likelihood):
    """Also where the captions of its neighbours are longer."""
    scenes = [draw_scenes(1, seed=5, objects=count, held_out=False).images for count in (1, 2)]
    x = (torch.cat(scenes).permute(0, 2, 3, 1).float() / 255).requires_grad_()
    lengths = likelihood.sample(likelihood.encode_images(x), greedy=True).mask.sum(1)
    assert lengths[0] < lengths[1]
    estimate = StraightThrough(likelihood, models.reward.text_encoder, models.reward.similarity)
    both = gradient(estimate(x, ["a red circle", "a green ring"]), x)[:1]
    one = x[:1].detach().requires_grad_()
    assert_close(both, gradient(estimate(one, ["a red circle"]), one))


def test_a_text_that_is_longer_than_captions_are_is_cut_to_their_length_and_ends(models):
    likelihood = CaptionLikelihood(models.reward.captioner, max_tokens=4)
    captions = likelihood.encode([" and ".join(THREE), "a ring"], torch.device("cpu"))
    whole = likelihood.tokenizer(" and ".join(THREE), add_special_tokens=False).input_ids
    assert captions.ids[0].tolist() == [likelihood.start, *whole[:4], likelihood.end]
    assert captions.mask.sum(1).tolist() == [
        6,
        2 + len(likelihood.tokenizer("a ring", add_special_tokens=False).input_ids),
    ]


def test_captions_are_sampled_as_often_as_they_are_likely(models, images):
    """Their first word, of 2,000 captions of one image: each is within four deviations of its probability."""
    likelihood = CaptionLikelihood(models.reward.captioner, max_tokens=1)
    torch.manual_seed(0)
    with torch.no_grad():
        image_embeds = likelihood.encode_images(images[:1].mean((1, 2), keepdim=True).expand(-1, 64, 64, -1))
        captions = likelihood.sample(image_embeds, 2000)
        p = likelihood.probabilities(image_embeds, captions._replace(ids=captions.ids[:1], mask=captions.mask[:1]))[
            0, 0
        ]
    drawn = captions.ids[:, 1].bincount(minlength=len(p)) / 2000
    assert ((drawn - p).abs() <= 4 * (p * (1 - p) / 2000).sqrt() + 1e-3).all()
    assert 0.02 < p.max() < 0.995
