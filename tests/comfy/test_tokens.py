"""Where a phrase's words are in a CONDITIONING: with ComfyUI's own tokenizers, weights, windows and embeddings."""

import re
from functools import cache
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


def regions_of(text, phrase, occurrence=0):
    from realigndiff.core.regions import Region, RegionSet

    return RegionSet(text, (Region(tag=phrase, phrase=phrase, occurrence=occurrence, mask=torch.ones(8, 8)),))


def positions(host, text, phrase, occurrence=0):
    from realigndiff.attention.comfy.conditioning import bind
    from realigndiff.attention.comfy.encoded_text import EncodedText

    (found,) = bind(regions_of(text, phrase, occurrence), EncodedText(host, text)).positions
    return list(found)


def words_at(host, text, where, name="clip_l"):
    """The words that stand at these positions of what the tokenizer of this name makes of the text."""
    windows = host.tokenize(text)[name.removeprefix("clip_")]
    flat = [token for window in windows for token, *_ in window]
    inner = getattr(host.tokenizer, name).tokenizer
    return getattr(inner, "tokenizer", inner).decode([flat[i] for i in where]).strip()


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
    text = "a red circle and a blue square"
    windows = sdxl.tokenize(text)
    places = [[i for i, (token, *_) in enumerate(windows[k][0]) if token not in (0, 49406, 49407)] for k in "lg"]
    assert places[0] == places[1] == positions(sdxl, text, text)


@pytest.fixture(scope="module")
def flux(comfy):
    from comfy.text_encoders.flux import FluxTokenizer

    return clip(FluxTokenizer())


@pytest.fixture(scope="module")
def qwen(comfy):
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    return clip(QwenImageTokenizer())


@pytest.fixture(scope="module")
def wan(comfy):
    from comfy.text_encoders.wan import WanT5Tokenizer
    from realigndiff.tests.comfy.text_encoders import sentence_pieces

    return clip(WanT5Tokenizer(tokenizer_data={"spiece_model": sentence_pieces(gemma=False)}))


@pytest.fixture(scope="module")
def lumina(comfy):
    from comfy.text_encoders.lumina2 import LuminaTokenizer
    from realigndiff.tests.comfy.text_encoders import sentence_pieces

    return clip(LuminaTokenizer(tokenizer_data={"spiece_model": sentence_pieces(gemma=True)}))


@pytest.mark.parametrize(
    ("text", "phrase", "words"),
    [
        ("a red circle and a blue square", "a red circle", "a red circle"),
        ("A Red circle and a BLUE Square", "a blue square", "a BLUE Square"),
        ("a red circle\nand a blue\n square", "a blue square", "a blue square"),
        ("a (red:1.3) circle and a blue square", "a red circle", "a red circle"),
        ("((a red circle)), a blue square", "a red circle", "a red circle"),
        (r"a red circle \(photo\) and a blue square", "a blue square", "a blue square"),
        (r"a red circle \(photo\) and a blue square", "red circle (photo)", "red circle (photo"),
        ("the photo of 'dog', the extraordinary blue square", "extraordinary blue square", "extraordinary blue square"),
        ("the photo of 'dog' and a red circle", "dog", "dog"),
        ("a red circles and a blue square", "the blue squares", "a blue square"),
        (", ".join(["a very long photo of nothing"] * 40) + ", a red circle", "a red circle", "a red circle"),
    ],
)
@pytest.mark.parametrize("family", ["flux", "qwen", "wan", "lumina"])
def test_words_are_found_where_other_encoders_read_them(request, family, text, phrase, words):
    host = request.getfixturevalue(family)
    name = {"flux": "t5xxl", "qwen": "qwen25_7b", "wan": "clip_umt5xxl", "lumina": "gemma2_2b"}[family]
    read = words_at(host, text, positions(host, text, phrase), name)
    assert " ".join(re.sub(r":1.3|[()]", " ", read).split()) == " ".join(re.sub("[()]", " ", words).split())


def test_a_sign_of_several_bytes_is_found_with_all_of_them(qwen, lumina):
    for host, name in ((qwen, "qwen25_7b"), (lumina, "gemma2_2b")):
        for phrase in ("龘", "circle"):
            found = positions(host, "a red 龘, circle", phrase)
            assert words_at(host, "a red 龘, circle", found, name) == phrase


def test_letters_that_an_encoder_does_not_know_are_named(flux):
    from realigndiff.core.errors import RealignError

    with pytest.raises(RealignError, match=r"'红色' .* does not know its letters"):
        positions(flux, "a red circle and 红色", "红色")


@pytest.mark.parametrize("family", ["sd1", "flux", "qwen", "wan", "lumina"])
def test_every_encoder_tells_equal_phrases_apart(request, family):
    from realigndiff.core.errors import RealignError

    host = request.getfixturevalue(family)
    text = "a red circle and a (red:1.2) circle"
    first, second = (positions(host, text, "red circle", occurrence) for occurrence in (0, 1))
    assert max(first) < min(second)
    with pytest.raises(RealignError, match="is 2 times in the prompt"):
        positions(host, text, "red circle", 2)
    with pytest.raises(RealignError, match="No word of 'an old cat' is in the prompt"):
        positions(host, text, "an old cat")


def test_the_words_of_a_chat_template_are_not_the_prompts(qwen):
    from realigndiff.core.errors import RealignError

    text = "a shape with a color"  # as are in the template
    assert words_at(qwen, text, positions(qwen, text, "color"), "qwen25_7b") == "color"
    assert positions(qwen, text, "color") == [
        -6
    ]  # before `<|im_end|>`, a new line, `<|im_start|>assistant`, a new line
    for phrase in ("texture", "user", "im_end"):
        with pytest.raises(RealignError, match="No word of"):
            positions(qwen, text, phrase)


def test_a_language_model_may_have_another_template(comfy):
    """Omnigen 2's, as Z-Image's, is read with its beginning."""
    from comfy.text_encoders.omnigen2 import Omnigen2Tokenizer

    host, text = clip(Omnigen2Tokenizer()), "images of a blue square"
    (found,) = positions(host, text, "images")
    assert found == -7  # `of a blue square`, `<|im_end|>` and a new line follow
    assert words_at(host, text, [found], "qwen25_3b") == "images"


def test_words_after_an_embedding_stand_after_its_vectors(comfy, tmp_path):
    from comfy.text_encoders.flux import FluxTokenizer
    from safetensors.torch import save_file

    save_file({"t5xxl": torch.zeros(5, 4096)}, tmp_path / "thing.safetensors")
    host = clip(FluxTokenizer(embedding_directory=str(tmp_path)))
    text = "a embedding:thing red circle"
    found = positions(host, text, "red circle")
    assert words_at(host, text, found, "t5xxl") == "red circle"
    assert found[0] == positions(host, "a red circle", "red circle")[0] + 5


def test_another_kind_of_text_encoder_is_refused_in_a_sentence(comfy):
    from realigndiff.attention.comfy.encoded_text import EncodedText
    from realigndiff.core.errors import RealignError

    for keys in (("llama", "l"), ("g", "l", "t5xxl", "llama"), ("qwen25_7b", "byt5"), ("t5xxl",), ()):
        foreign = SimpleNamespace(tokenizer=object(), tokenize=lambda text, keys=keys: {k: [[(1, 1.0)]] for k in keys})
        with pytest.raises(
            RealignError, match=r"Nothing tells where this text encoder \(.*use one of Stable Diffusion"
        ):
            EncodedText(foreign, "a red circle").find([("a red circle", 0)])


TEXT = "a red circle and a {} square"


@pytest.fixture(scope="module")
def encoder(comfy):
    """Makes a text encoder in miniature, by its name, once."""
    from realigndiff.tests.comfy import text_encoders

    return cache(lambda name, **options: getattr(text_encoders, name)(**options))


def encoded(host, text, **options):
    return host.encode_from_tokens_scheduled(host.tokenize(text, **options))


def carried(conditioning):
    """The positions that an entry carries to the model, None where it carries none."""
    _, options = conditioning
    payload = options.get("model_conds", {}).get("realign")
    return None if payload is None else list(payload.cond.images[0].positions[0])


@pytest.mark.parametrize(
    ("family", "options", "tokens"),
    [
        ("flux_clip", {}, 256),
        ("chroma_clip", {}, 10),
        ("sd3_clip", {}, 77 + 77),
        ("sd3_clip", {"clip_l": False}, 77 + 77),
        ("sd3_clip", {"clip_g": False}, 77 + 77),
        ("sd3_clip", {"t5": False}, 77),
        ("sd3_clip", {"clip_l": False, "clip_g": False}, 77),
        ("qwen_clip", {}, 12),
        ("lumina_clip", {}, 8),
        ("wan_clip", {}, 512),
        ("cosmos_clip", {}, 512),
    ],
)
def test_the_positions_are_those_where_another_word_changes_the_conditioning(encoder, family, options, tokens):
    from realigndiff.attention.comfy.conditioning import attach

    host = encoder(family, **options)
    ours, other = (encoded(host, TEXT.format(color)) for color in ("blue", "black"))
    (entry,) = attach(ours, host, [regions_of(TEXT.format("blue"), "blue")])
    assert entry[0].shape[1] == tokens
    assert carried(entry) == changed(ours, other)


def made_of_text(conditioning):
    """The tokens of an entry that its words' text made."""
    return conditioning[1]["model_conds"]["realign"].cond.text_tokens


def test_tokens_that_another_node_appends_are_told_from_the_texts(encoder):
    """As Redux appends an image's."""
    from realigndiff.attention.comfy.conditioning import attach

    host, text = encoder("flux_clip"), TEXT.format("blue")
    [[words, options]] = encoded(host, text)
    (entry,) = attach([[torch.cat([words, words[:, :30]], 1), options]], host, [regions_of(text, "blue")])
    assert made_of_text(entry) == range(256)


def changed(one, other):
    """The tokens in which two conditionings differ most; what the rest have heard of it is little."""
    one, other = one[0][0][0], other[0][0][0]
    return ((one - other).norm(dim=-1) > 0.5 * one.norm(dim=-1)).nonzero().flatten().tolist()


@pytest.mark.parametrize("images", [1, 2])
def test_words_are_found_after_images(encoder, images):
    """As ComfyUI's nodes for edits encode: an image is many tokens of the conditioning, and one of the text's."""
    from realigndiff.attention.comfy.conditioning import attach

    host, pictures = encoder("qwen_clip"), [torch.rand(1, 112, 168, 3)] * images
    template = f"<|im_start|>system\nDescribe.<|im_end|>\n<|im_start|>user\n{EYE * images}{{}}<|im_end|>\n{ANSWER}"
    ours, other = (
        encoded(host, TEXT.format(color), images=pictures, llama_template=template) for color in ("blue", "black")
    )
    (entry,) = attach(ours, host, [regions_of(TEXT.format("blue"), "blue")])
    assert entry[0].shape[1] > 24 * images
    assert carried(entry) == changed(ours, other)
    assert made_of_text(entry) == range(carried(entry)[0] - 5, entry[0].shape[1]), "it begins with 'a red circle and a'"


EYE, ANSWER = "<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>assistant\n"


def test_words_are_found_after_a_system_prompt(encoder):
    """As ComfyUI's node for Lumina 2 encodes; the same words in the system prompt are not meant."""
    from realigndiff.attention.comfy.conditioning import attach

    host, text = encoder("lumina_clip"), TEXT.format("blue")
    system = "You are an assistant designed to generate a blue square. <Prompt Start> "
    ours, other = (encoded(host, system + TEXT.format(color)) for color in ("blue", "black"))
    (entry,) = attach(ours, host, [regions_of(text, "blue")])
    assert carried(entry) == changed(ours, other)


def test_a_large_encoder_does_not_encode_again_for_a_single_conditioning(encoder, monkeypatch, caplog):
    from realigndiff.attention.comfy.conditioning import attach

    host, text = encoder("flux_clip"), TEXT.format("blue")
    conditioning = encoded(host, "quite another text, as an upsampled prompt is")
    monkeypatch.setattr(host, "encode_from_tokens", None)
    (entry,) = attach(conditioning, host, [regions_of(text, "blue")])
    assert carried(entry) == positions(host, text, "blue")
    assert not caplog.records


def test_of_several_conditionings_the_one_that_says_the_text_gets_its_regions(encoder, caplog):
    from realigndiff.attention.comfy.conditioning import attach

    text = TEXT.format("blue")
    for family in ("flux_clip", "qwen_clip"):
        host = encoder(family)
        conditioning = [*encoded(host, TEXT.format("black")), *encoded(host, text), *encoded(host, "a dog")]
        found = [carried(entry) for entry in attach(conditioning, host, [regions_of(text, "square")])]
        assert [bool(positions) for positions in found] == [False, True, False]
    assert not caplog.records


def test_where_no_conditioning_says_the_text_each_gets_the_words_by_its_own_length(encoder, caplog):
    from realigndiff.attention.comfy.conditioning import attach

    host, text = encoder("lumina_clip"), TEXT.format("blue")
    conditioning = [*encoded(host, f"You are a dog {text}"), *encoded(host, f"You {text}")]
    first, second = attach(conditioning, host, [regions_of(text, "square")])
    assert (carried(first), carried(second)) == ([11], [8])
    assert "no conditioning is the plain encoding" in caplog.text


def test_a_conditioning_that_is_too_short_for_the_words_is_refused(encoder):
    from realigndiff.attention.comfy.conditioning import attach
    from realigndiff.core.errors import RealignError

    host = encoder("lumina_clip")
    with pytest.raises(RealignError, match="reach to token 7, but the conditioning has 3: connect the conditioning"):
        attach(encoded(host, "a dog"), host, [regions_of(TEXT.format("blue"), "a red circle")])
