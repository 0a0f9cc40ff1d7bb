"""The tokens of a phrase are found in the padded encoding of its prompt, by a real CLIP tokenizer."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from realigndiff.attention.equation.tokens import decode_tokens, find_decoded_tokens, token_positions
from realigndiff.core.errors import RealignError
from realigndiff.language.binding import bind_tags
from realigndiff.language.offline_scorer import OfflineScorer
from transformers import CLIPTokenizer

WORDS = "a an the red blue circle square circles and next to with tie bow".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """CLIP's byte pairs for a few words; any other word falls into letters. `bowtie` is two tokens, `circ-les` too."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(33, 127)]
    tokens, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[-2]} {parts[-1]}")
            parts[-2:] = ["".join(parts[-2:])]
            tokens.append(parts[-1])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_at(positions, prompt, tokenizer):
    """What stands at these positions of the encoding a text encoder is given."""
    ids = tokenizer(prompt, padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    return tokenizer.decode([ids[i] for i in positions]).strip()


@pytest.mark.parametrize(
    ("phrase", "prompt", "words"),
    [
        ("a red circle", "a red circle and a blue square", "a red circle"),
        ("a blue square", "a red circle and a blue square", "a blue square"),
        ("A Red CIRCLE", "the a red circle", "a red circle"),
        ("a red circle", "A  Red\n circle, with a tie", "a red circle"),
        ("red circle.", "a red circle, a blue square", "a red circle"),
        ("blue zebra", "a red circle, a blue zebra", "blue zebra"),
        ("tie", "a bowtie with a tie", "tie"),
    ],
)
def test_the_positions_hold_the_words_of_the_phrase(phrase, prompt, words, tokenizer):
    assert text_at(token_positions(phrase, prompt, tokenizer), prompt, tokenizer) == words


def test_a_phrase_inside_a_word_is_not_the_phrase(tokenizer):
    prompt = "a bowtie with a tie"
    assert tokenizer.tokenize("bowtie")[-1] == tokenizer.tokenize("tie")[-1]  # the trap
    assert token_positions("tie", prompt, tokenizer) == [len(tokenizer.tokenize(prompt))]


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("the red circle", "a red circle"),
        ("red circles", "a red circle"),
        ("square, blue", "a blue square"),
        ("a large blue square", "a blue square"),
    ],
)
def test_a_phrase_in_other_words_stands_for_the_nearest(phrase, words, tokenizer):
    prompt = "a red circle and a blue square"
    assert text_at(token_positions(phrase, prompt, tokenizer), prompt, tokenizer) == words


def test_equal_phrases_are_told_apart_by_their_occurrence(tokenizer):
    prompt = "a red circle next to a red circle"
    first, second = (token_positions("red circle", prompt, tokenizer, occurrence=i) for i in (0, 1))
    assert (first, second) == ([2, 3], [7, 8])
    with pytest.raises(RealignError, match="2 times"):
        token_positions("red circle", prompt, tokenizer, occurrence=2)


@pytest.mark.parametrize(
    ("phrase", "occurrence", "words"),
    [
        ("square", 0, "s quare"),
        ("red circle", 0, "re d circle"),
        ("red circle", 1, "red circle"),
        ("Red  circle", 0, "re d circle"),
    ],
)
def test_a_phrase_that_clip_cuts_otherwise_in_quotes_is_found_by_its_letters(phrase, occurrence, words, tokenizer):
    prompt = "a 'square', a 'red circle' and a red circle"
    found = token_positions(phrase, prompt, tokenizer, occurrence)
    assert text_at(found, prompt, tokenizer).split() == words.split()


@pytest.mark.parametrize(
    ("prompt", "occurrence", "positions"),
    [
        ("A red circle and a red circle", 0, [1, 2, 3]),
        ("A red circle and a red circle", 1, [5, 6, 7]),
    ],
)
def test_occurrences_are_counted_in_any_case(prompt, occurrence, positions, tokenizer):
    assert token_positions("a red circle", prompt, tokenizer, occurrence) == positions


@pytest.mark.parametrize("prompt", ["A red circle and a red circle", "a red circle and circle", "red red, red red red"])
def test_the_regions_of_a_prompt_stand_for_different_tokens(prompt, tokenizer):
    found = [token_positions(r.phrase, prompt, tokenizer, r.occurrence) for r in bind_tags(prompt, [], OfflineScorer())]
    assert all(not set(a) & set(b) for a, b in combinations(found, 2))


def test_without_the_tokens_letters_a_joined_phrase_is_refused_with_a_mend(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(RealignError, match=r"joins 'square' with the signs around it.*put spaces"):
        token_positions("square", "a 'square'", tokenizer)


@pytest.mark.parametrize("phrase", ["a zebra", "", "the"])
def test_a_phrase_without_a_word_of_the_prompt_is_refused(phrase, tokenizer):
    with pytest.raises(RealignError, match="is in the prompt"):
        token_positions(phrase, "a red circle", tokenizer)


def test_a_phrase_cut_by_the_border_keeps_the_tokens_that_are_read(tokenizer):
    prompt = "a " * 74 + "red circle and blue square"
    assert token_positions("red circle", prompt, tokenizer) == [75]
    assert text_at([75], prompt, tokenizer) == "red"
    assert text_at([76], prompt, tokenizer) == tokenizer.eos_token
    with pytest.raises(RealignError, match="75 tokens"):
        token_positions("blue square", prompt, tokenizer)


def by_pieces(*pieces):
    """The tokens of a tokenizer with one for each of these pieces of bytes, as they would be decoded."""
    return decode_tokens(
        range(len(pieces)), lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace").strip()
    )


@pytest.mark.parametrize(
    ("phrase", "tokens"),
    [
        ("a red circle", [0, 1, 2]),
        ("red", [1]),
        ("blue square", [4, 5, 6, 7]),
        ("蓝", [9, 10]),
        ("the red circles", [0, 1, 2]),
    ],
)
def test_tokens_are_found_by_the_letters_that_come_with_them(phrase, tokens):
    sign = "蓝".encode()
    decoded = by_pieces(b" a", b" red", b" circle", b", ", b"blu", b"e ", b"squ", b"are", b" ", sign[:2], sign[2:])
    assert decoded.text == "a red circle, blue square 蓝"
    assert find_decoded_tokens(phrase, decoded.text, decoded) == tokens


def test_weights_that_are_read_as_letters_do_not_hide_a_phrase():
    decoded = by_pieces(b"a", b" red", b" circle", b" and", b" a (", b"red", b":", b"1.3", b")", b" circle")
    prompt = "a red circle and a red circle"
    assert [find_decoded_tokens("red circle", prompt, decoded, i) for i in (0, 1)] == [[1, 2], [5, 6, 7, 8, 9]]
