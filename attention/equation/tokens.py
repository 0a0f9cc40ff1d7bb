"""Where the words of a phrase are among the tokens of a prompt: by CLIP's ids, or by the letters that tokens spell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import RealignError
from ...core.phrases import nearest_span
from ...core.words import mask_prompt_syntax, occurrences

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Stretch = tuple[int, int]
"""(start, stop) in letters of a text."""


def token_positions(phrase: str, prompt: str, tokenizer: CLIPTokenizer, occurrence: int = 0) -> list[int]:
    """Positions of the phrase's tokens in the prompt's padded encoding, where position 0 is the start token.

    A phrase whose words the prompt does not have in this form stands for the prompt's nearest words. `occurrence` says
    which of several equal phrases is meant, from 0. Of a phrase that the encoding's end cuts in two, the first tokens
    remain.

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
    """Where among `ids`, the prompt's CLIP tokens without start, end and padding, the tokens of the phrase stand.

    Raises:
        RealignError: as `_meant` does.
    """
    return _meant(phrase, prompt, occurrence, lambda words: _find(words, prompt, ids, tokenizer))


def find_spelled(phrase: str, prompt: str, spelling: Spelling, occurrence: int = 0) -> Sequence[int]:
    """Where among the prompt's tokens those stand that spell any letter of the phrase.

    The brackets and weights of ComfyUI do not matter: an encoder that does not know them reads them as letters.

    Raises:
        RealignError: as `_meant` does.
    """
    text = mask_prompt_syntax(spelling.text)
    return _meant(
        phrase,
        prompt,
        occurrence,
        lambda words: _covering(occurrences(mask_prompt_syntax(words), text), spelling.stretches),
    )


class Spelling(NamedTuple):
    """A text as its tokens spell it, and which of its letters each token stands for."""

    text: str
    stretches: list[Stretch]


def spelling(ids: Sequence[int], decode: Callable[[list[int]], str]) -> Spelling:
    """What tokens spell, by any tokenizer's `decode`: a token stands for the letters that come with it.

    One that ends within a letter's bytes, as tokens of Chinese may, stands for that letter too.
    """
    texts = [decode(list(ids[:n])) for n in range(1, len(ids) + 1)]
    text = texts[-1] if texts else ""
    stretches, start = [], 0
    for begun in texts:
        stop = alike(begun, text)
        stretches.append((start, max(stop + begun.endswith("\N{REPLACEMENT CHARACTER}"), start + 1)))
        start = stop
    return Spelling(text, stretches)


def alike(a: Sequence, b: Sequence) -> int:
    """How many of their items two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _meant(phrase: str, prompt: str, occurrence: int, find: Callable[[str], list[Sequence[int]]]) -> Sequence[int]:
    """The tokens of one occurrence of the phrase, or of the prompt's nearest words where it is not in the prompt.

    find: words of the prompt → the tokens of each occurrence.

    Raises:
        RealignError: the prompt has no word of the phrase, or too few occurrences, or the tokenizer has joined the
            phrase with its neighbours.
    """
    found = find(phrase)
    if not found:
        nearest = nearest_span(phrase, prompt)
        if nearest is None:
            raise RealignError(f"No word of '{phrase}' is in the prompt '{prompt}'; use words of the prompt.")
        found = find(nearest)
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


def _find(phrase: str, prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer) -> list[Sequence[int]]:
    """The tokens of each occurrence of the phrase.

    Letters are asked only where ids find another number of occurrences: a host may give a prompt whose letters are not
    quite those that its ids were made of.
    """
    by_ids = _by_ids(phrase, ids, tokenizer)
    places = occurrences(phrase, prompt)
    return by_ids if len(by_ids) == len(places) else _by_letters(places, prompt, ids, tokenizer) or by_ids


def _by_ids(phrase: str, ids: Sequence[int], tokenizer: CLIPTokenizer) -> list[Sequence[int]]:
    """Wherever the phrase's own ids stand among the prompt's, at the beginning of a word."""
    wanted, ids = _ids(phrase, tokenizer), list(ids)
    if not wanted:
        return []
    word_ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    return [
        range(i, i + len(wanted))
        for i in range(len(ids) - len(wanted) + 1)
        if ids[i : i + len(wanted)] == wanted and (i == 0 or word_ends[i - 1])
    ]


def _by_letters(
    places: Sequence[Stretch], prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer
) -> list[Sequence[int]]:
    """The tokens with any letter of each place in the prompt, also where they are not the phrase's own.

    CLIP reads `'square'` as `'s` and `quare`. Empty when the tokenizer does not tell where its tokens stand, or makes
    other tokens of the prompt than `ids`.
    """
    if not tokenizer.is_fast:
        return []
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if encoded.input_ids != list(ids):
        return []
    return _covering(places, encoded.offset_mapping)


def _covering(places: Sequence[Stretch], stretches: Sequence[Stretch]) -> list[Sequence[int]]:
    """The tokens, of which each stands for a stretch of letters, that share a letter with each place."""
    tokens = list(enumerate(stretches))
    return [[i for i, (begin, end) in tokens if begin < stop and end > start] for start, stop in places]


def _ids(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    """The ids of a text without start and end token, however long it is."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
