"""A prompt as ComfyUI's text encoders read it: where its words stand in a CONDITIONING.

`families.py` says which text encoders fill a conditioning. In a segment that is counted from the end, positions are
negative, so that they hold for conditionings of any length, and of concatenated conditionings the last one is meant.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from torch import Tensor

from ...core.errors import RealignError
from ...core.words import strip_weights
from ..equation.tokens import common_prefix, decode_tokens, find_decoded_tokens, find_tokens
from .families import Segment, text_encoders_of, unknown_text_encoder

Words = Sequence[tuple[str, int]]
"""Words of a prompt, each with the occurrence that is meant, from 0."""


class TextPart(NamedTuple):
    """The tokens of one segment of a conditioning that stand for the words of its prompt."""

    segment: Segment
    tokenizer: Any
    """That of the transformers or sentencepiece library."""
    ids: list[int]
    positions: list[int]
    """Of each token in the conditioning; negative: from its end."""
    weights: list[float]
    """Of each token, as brackets in the prompt set them."""
    tokens: int
    """All tokens of the encoding of the prompt alone."""


class EncodedText:
    """A text and the CLIP that encodes it. Made once, it is passed to all that ask where words are."""

    def __init__(self, clip: Any, text: str) -> None:
        self.clip, self.text = clip, text

    @cached_property
    def windows(self) -> dict[str, Any]:
        """The tokens (id or vector, weight, …) of each window, by encoder."""
        return self.clip.tokenize(self.text)

    @cached_property
    def encoding(self) -> Tensor:
        """[B, tokens, C], float32 on the CPU."""
        return self.clip.encode_from_tokens(self.windows).float().cpu()

    @property
    def clip_only(self) -> bool:
        """Whether all text encoders are CLIPs, which encode windows of 77 tokens and are fast."""
        return all(segment.clip for segment in self._segments)

    @cached_property
    def parts(self) -> list[TextPart]:
        """The segments in their order, those whose encoders are loaded.

        Start, end and padding tokens, textual-inversion vectors and the chat template are left out.

        Raises:
            RealignError: the text encoder belongs to no known family.
        """
        empty, parts = self.clip.tokenize(""), []
        for segment in self._segments:
            loaded = [name for name in self.encoders(segment) if self._is_loaded(name)]
            for name in loaded[:1]:
                tokenizer = self.clip.tokenizer
                tokenizer = getattr(tokenizer, f"clip_{name}", None) or getattr(tokenizer, name, None)
                if tokenizer is None:
                    raise unknown_text_encoder(self.windows)
                parts.append(_make_part(segment, tokenizer, self.windows[name], empty[name]))
        return parts

    @property
    def _segments(self) -> Sequence[Segment]:
        return text_encoders_of(self.windows).segments

    def encoders(self, segment: Segment) -> list[str]:
        """ComfyUI's names of the text encoders that fill a segment."""
        return [name for pattern in segment.encoders for name in fnmatch.filter(self.windows, pattern)]

    def _is_loaded(self, name: str) -> bool:
        """Stable Diffusion 3 may lack any of its text encoders."""
        model = getattr(self.clip, "cond_stage_model", None)
        return getattr(model, f"clip_{name}", getattr(model, name, True)) is not None

    def find(self, words: Words) -> tuple[tuple[int, ...], ...]:
        """The positions of words in a conditioning, in all segments.

        Raises:
            RealignError: words are not in the text, or not so often; or the text encoder belongs to no known family.
        """
        by_part = self.find_by_part(words)
        return tuple(tuple(p for positions in of_parts for p in positions) for of_parts in zip(*by_part, strict=True))

    def find_by_part(self, words: Words) -> list[list[list[int]]]:
        """For each part, its positions of each of the words; raises as `find` does."""
        return [_find(part, words, self.text) for part in self.parts]

    def text_tokens(self, n_tokens: int) -> range:
        """Which of a conditioning's tokens were made of the text, or pad it.

        Before them stand images and system prompts that a language model was shown, after them what another node has
        appended: images (Redux), another prompt's encoding.
        """
        first = self.parts[0]
        if len(self.parts) > 1 or not first.positions:
            return range(n_tokens)
        start = first.positions[0]
        return range(n_tokens + start, n_tokens) if start < 0 else range(min(first.tokens, n_tokens))


def resolve_positions(positions: Sequence[int], n_tokens: int) -> tuple[int, ...]:
    """Positions in a conditioning of so many tokens, none negative.

    Raises:
        RealignError: it has fewer tokens.
    """
    needed = max((p + 1 if p >= 0 else -p for p in positions), default=0)
    if needed > n_tokens:
        raise RealignError(
            f"The words reach to token {needed}, but the conditioning has {n_tokens}: connect the conditioning "
            "that was encoded from the words' prompt, or give its text."
        )
    return tuple(p % n_tokens for p in positions)


def _make_part(segment: Segment, tokenizer: Any, windows: list, empty: list) -> TextPart:
    """The words among the tokens of each window; empty: the windows of no text.

    What both begin and end with is the chat template, whose words are not the prompt's.
    """
    weights = [weight for window in windows for _, weight, *_ in window]
    tokens, template = _ids(windows), _ids(empty)
    begin = common_prefix(tokens, template)
    end = len(tokens) - common_prefix(tokens[begin:][::-1], template[begin:][::-1])
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token, None}
    words = [i for i in range(begin, end) if tokens[i] not in special]
    first = -len(tokens) if segment.from_end else 0
    return TextPart(
        segment=segment,
        tokenizer=tokenizer.tokenizer,
        ids=[token for i in words if (token := tokens[i]) is not None],
        positions=[first + i for i in words],
        weights=[weights[i] for i in words],
        tokens=len(tokens),
    )


def _ids(windows: list) -> list[int | None]:
    """The tokens of all windows; None for a textual-inversion vector."""
    return [token if isinstance(token, int) else None for window in windows for token, *_ in window]


def _find(part: TextPart, words: Words, text: str) -> list[list[int]]:
    """The positions of each of the words in one part."""
    tokenizer, ids, prompt = part.tokenizer, part.ids, strip_weights(text)
    if part.segment.clip:
        if tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids != ids:
            prompt = tokenizer.decode(ids)
        find = partial(find_tokens, prompt=prompt, ids=ids, tokenizer=tokenizer)
    else:
        decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # ComfyUI wraps sentencepiece's once more
        find = partial(find_decoded_tokens, prompt=prompt, decoded=decode_tokens(ids, decode))
    return [[part.positions[i] for i in find(phrase, occurrence=occurrence)] for phrase, occurrence in words]
