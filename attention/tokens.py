"""Where the words of a phrase are among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import RealignError
from ..core.words import nearest_span

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


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


def find_tokens(
    phrase: str, prompt: str, ids: Sequence[int], tokenizer: CLIPTokenizer, occurrence: int = 0
) -> Sequence[int]:
    """Where among `ids`, the prompt's tokens without start, end and padding, the tokens of the phrase stand.

    Raises:
        RealignError: the prompt has no word of the phrase, or too few occurrences.
    """
    starts, length = _find(phrase, ids, tokenizer)
    if not starts:
        nearest = nearest_span(phrase, prompt)
        if nearest is None:
            raise RealignError(f"No word of '{phrase}' is in the prompt '{prompt}'; use words of the prompt.")
        starts, length = _find(nearest, ids, tokenizer)
    if not 0 <= occurrence < len(starts):
        raise RealignError(
            f"'{phrase}' is {len(starts)} times in the prompt '{prompt}', so occurrence {occurrence} (counted from 0) "
            "does not exist; choose a smaller one."
        )
    return range(starts[occurrence], starts[occurrence] + length)


def _find(phrase: str, ids: Sequence[int], tokenizer: CLIPTokenizer) -> tuple[list[int], int]:
    """Where the phrase's ids start among the prompt's, at the beginning of a word; and how many they are."""
    wanted = _ids(phrase, tokenizer)
    if not wanted:
        return [], 0
    ids = list(ids)
    word_ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    starts = [
        i
        for i in range(len(ids) - len(wanted) + 1)
        if ids[i : i + len(wanted)] == wanted and (i == 0 or word_ends[i - 1])
    ]
    return starts, len(wanted)


def _ids(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    """The ids of a text without start and end token, however long it is."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
