"""Where a phrase's words are in a CONDITIONING: with ComfyUI's own tokenizers, weights, windows and embeddings."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def sd1(comfy):
    from comfy.sd1_clip import SD1Tokenizer

    return clip(SD1Tokenizer())


@pytest.fixture(scope="module")
def sdxl(comfy):
    from comfy.sdxl_clip import SDXLTokenizer

    return clip(SDXLTokenizer())


def clip(tokenizer):
    """As much of a CLIP as finding words takes."""
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def positions(host, text, phrase, occurrence=0):
    from realigndiff.attention.comfy_conditioning import bind
    from realigndiff.core.regions import Region, RegionSet

    region = Region(tag=phrase, phrase=phrase, occurrence=occurrence, mask=torch.ones(8, 8))
    (found,) = bind(RegionSet(text, (region,)), host, text).positions
    return list(found)


def words_at(host, text, where):
    """The words that stand at these positions of the encoding."""
    windows = host.tokenize(text)
    flat = [token for window in windows.get("l", windows.get("g")) for token, *_ in window]
    inner = getattr(host.tokenizer, "clip_l", None) or host.tokenizer.clip_g
    return inner.tokenizer.decode([flat[i] for i in where]).strip()


@pytest.mark.parametrize(
    ("text", "phrase", "words"),
    [
        ("a red circle and a blue square", "a blue square", "a blue square"),
        ("a (red:1.3) circle and a blue square", "a red circle", "a red circle"),
        ("((a red circle)), [a blue square:0.5]", "a red circle", "a red circle"),
        ("a red circle\nand a Blue SQUARE", "a blue square", "a blue square"),
        (r"a red circle \(photo\) and a blue square", "a blue square", "a blue square"),
        ("a photo of 'square' and a red circle", "a red circle", "a red circle"),
        ("a photo of 'dog' and a red circle", "dog", "'d og"),
        (", ".join(["a very long prompt about nothing"] * 14) + ", a red circle", "a red circle", "a red circle"),
    ],
)
def test_words_are_found_where_the_encoder_reads_them(sd1, sdxl, text, phrase, words):
    for host in (sd1, sdxl):
        assert words_at(host, text, positions(host, text, phrase)) == words


def test_words_beyond_the_first_window_are_found_there(sd1):
    text = ", ".join(["a very long prompt about nothing"] * 14) + ", a red circle"
    assert min(positions(sd1, text, "a red circle")) > 77


def test_the_second_of_two_equal_phrases_can_be_meant(sd1):
    text = "a red circle and a red circle"
    first, second = (positions(sd1, text, "a red circle", occurrence) for occurrence in (0, 1))
    assert first == [1, 2, 3]
    assert second == [5, 6, 7]


def test_both_encoders_of_sdxl_have_a_word_at_the_same_place(sdxl):
    from realigndiff.attention.comfy_conditioning import prompt_tokens

    windows = sdxl.tokenize("a red circle and a blue square")
    places = [[i for i, (token, *_) in enumerate(windows[k][0]) if token not in (0, 49406, 49407)] for k in "lg"]
    assert (
        places[0] == places[1] == [position for position, _ in prompt_tokens(sdxl, "a red circle and a blue square")[1]]
    )


def test_another_kind_of_text_encoder_is_refused_in_a_sentence(comfy):
    from realigndiff.attention.comfy_conditioning import prompt_tokens
    from realigndiff.core.errors import RealignError

    t5 = SimpleNamespace(tokenizer=object(), tokenize=lambda text: {"t5xxl": [[(1, 1.0)]]})
    with pytest.raises(RealignError, match="no CLIP tokenizer; regions work with"):
        prompt_tokens(t5, "a red circle")
