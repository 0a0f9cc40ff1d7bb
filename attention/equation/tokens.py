"""Where the words of a phrase are among the tokens of a prompt: by CLIP's ids, or by the text that tokens decode to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import RealignError
from ...core.phrases import nearest_span
from ...core.words import mask_prompt_syntax, occurrences

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Span = tuple[int, int]
"""(start, stop) in characters of a text."""


def token_positions(phrase: str, prompt: str, tokenizer: CLIPTokenizer, occurrence: int = 0) -> list[int]:
    """Positions of the phrase's tokens in the prompt's padded encoding, where position 0 is the start token.

    A phrase that the prompt does not have in this form stands for the prompt's nearest words. `occurrence` selects one
    of several equal phrases, from 0. Where the encoding ends within the phrase, its first tokens are returned.

    Raises:
        RealignError: the prompt has no word of the phrase, too few occurrences, or has it beyond the encoding's end.
    """
    found = find_tokens(phrase, prompt, _ids(prompt, tokenizer), tokenizer, occurrence)
    end = tokenizer.model_max_length - 1  # where the end token is when the prompt is too long
    positions = [index + 1 for index in found if index + 1 < end]  # after the start token
    if not positions:
        raise RealignError(
            f"'{phrase}' comes after the {end - 1} tokens of the prompt that the text encoder reads; "
            "move it forward or shorten the prompt."
        )
    return positions


def phrase_ids(phrase: str, prompt: str, tokenizer: CLIPTokenizer, occurrence: int = 0) -> list[int]:
    """CLIP's tokens of the phrase as the prompt has it, also those beyond the encoding's end.

    Raises:
        RealignError: the prompt has no word of the phrase, or too few occurrences.
    """
    ids = _ids(prompt, tokenizer)
    return [ids[index] for index in find_tokens(phrase, prompt, ids, tokenizer, occurrence)]


def find_tokens(
    phrase: str, prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer, occurrence: int = 0
) -> Sequence[int]:
    """Find the phrase's tokens among `ids`, the prompt's CLIP tokens without start, end and padding.

    It raises as `phrase_ids` does.
    """
    return _resolve_phrase(phrase, prompt, occurrence, lambda words: _find_all(words, prompt, ids, tokenizer))


def find_decoded_tokens(phrase: str, prompt: str, decoded: DecodedTokens, occurrence: int = 0) -> Sequence[int]:
    """Find the prompt's tokens that share a character with the phrase.

    ComfyUI's brackets and weights do not matter: an encoder that does not know them reads them as text. It raises as
    `phrase_ids` does.
    """
    text, spans = mask_prompt_syntax(decoded.text), decoded.spans
    return _resolve_phrase(
        phrase, prompt, occurrence, lambda words: _overlapping(occurrences(mask_prompt_syntax(words), text), spans)
    )


class DecodedTokens(NamedTuple):
    """The text that tokens decode to, and which of its characters each token stands for."""

    text: str
    spans: list[Span]


def decode_tokens(ids: Sequence[int], decode: Callable[[list[int]], str]) -> DecodedTokens:
    """Decode tokens one by one, with any tokenizer's `decode`: a token stands for the characters that it adds.

    A token that ends within a character's bytes, as tokens of Chinese may, stands for that character too.
    """
    prefixes = [decode(list(ids[:n])) for n in range(1, len(ids) + 1)]
    text = prefixes[-1] if prefixes else ""
    spans, start = [], 0
    for prefix in prefixes:
        stop = common_prefix(prefix, text)
        spans.append((start, max(stop + prefix.endswith("\N{REPLACEMENT CHARACTER}"), start + 1)))
        start = stop
    return DecodedTokens(text, spans)


def common_prefix(a: Sequence, b: Sequence) -> int:
    """The number of items with which both sequences begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _resolve_phrase(
    phrase: str, prompt: str, occurrence: int, find_all: Callable[[str], list[Sequence[int]]]
) -> Sequence[int]:
    """The tokens of one occurrence of the phrase, or of the prompt's nearest words where it is not in the prompt.

    find_all: words of the prompt → the tokens of each occurrence.
    """
    found = find_all(phrase)
    if not found:
        nearest = nearest_span(phrase, prompt)
        if nearest is None:
            raise RealignError(f"No word of '{phrase}' is in the prompt '{prompt}'; use words of the prompt.")
        found = find_all(nearest)
        if not found:
            raise RealignError(
                f"The tokenizer joins '{nearest}' with the signs around it, or does not know its letters, in the "
                f"prompt '{prompt}'; put spaces there, or use other words."
            )
    if not 0 <= occurrence < len(found):
        raise RealignError(
            f"'{phrase}' is {len(found)} times in the prompt '{prompt}', so occurrence {occurrence} (counted from 0) "
            "does not exist; choose a smaller one."
        )
    return found[occurrence]


def _find_all(phrase: str, prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer) -> list[Sequence[int]]:
    """The tokens of each occurrence of the phrase.

    Characters are compared only where ids find another number of occurrences: a host may give a prompt that differs a
    little from the one that its ids were made from.
    """
    by_ids = _find_ids(phrase, ids, tokenizer)
    spans = occurrences(phrase, prompt)
    return by_ids if len(by_ids) == len(spans) else _find_characters(spans, prompt, ids, tokenizer) or by_ids


def _find_ids(phrase: str, ids: Sequence[int], tokenizer: CLIPTokenizer) -> list[Sequence[int]]:
    """Wherever the phrase's ids stand among the prompt's, at the beginning of a word."""
    wanted, ids = _ids(phrase, tokenizer), list(ids)
    if not wanted:
        return []
    word_ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    return [
        range(i, i + len(wanted))
        for i in range(len(ids) - len(wanted) + 1)
        if ids[i : i + len(wanted)] == wanted and (i == 0 or word_ends[i - 1])
    ]


def _find_characters(
    spans: Sequence[Span], prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer
) -> list[Sequence[int]]:
    """The tokens with any character of each span, also where they are not those of the phrase alone.

    CLIP reads `'square'` as `'s` and `quare`. Empty where the tokenizer gives no offsets, or makes other tokens of the
    prompt than `ids`.
    """
    if not tokenizer.is_fast:
        return []
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if encoded.input_ids != list(ids):
        return []
    return _overlapping(spans, encoded.offset_mapping)


def _overlapping(spans: Sequence[Span], of_tokens: Sequence[Span]) -> list[Sequence[int]]:
    """For each span, the tokens that share a character with it."""
    tokens = list(enumerate(of_tokens))
    return [[i for i, (begin, end) in tokens if begin < stop and end > start] for start, stop in spans]


def _ids(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    """The ids of a text without start and end token, however long it is."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
