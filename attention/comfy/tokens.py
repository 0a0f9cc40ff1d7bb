"""Where the words of a prompt stand in a CONDITIONING: which text encoders fill it, and the tokens that each reads.

Stable Diffusion 1, 2   CLIP, in windows of 77
SDXL                    both CLIPs at the same positions
Stable Diffusion 3      both CLIPs at the same positions, then T5: a phrase is read twice, and both count
Flux, Chroma            T5 (Flux's CLIP gives no tokens)
Wan, Cosmos-Predict2    T5
Qwen-Image, Z-Image     a language model; the prompt stands in a chat template, after images, and Qwen-Image's encoder
                        leaves out where that begins
Lumina 2                a language model; a node may put a system prompt before the prompt

What precedes the prompt of a language model, or of Stable Diffusion 3's T5, may be longer or shorter than in the
encoding of the prompt alone, and what follows is not: there, positions are negative and count from the end, as a
list's indices do, so that of concatenated conditionings the last one's words are meant. `absolute` tells them for a
conditioning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ...core.errors import RealignError
from ...core.words import strip_weights
from ..equation.tokens import common_prefix, decode_tokens, find_decoded_tokens, find_tokens

CLIPS = ("l", "h", "g")
"""ComfyUI's names of the CLIPs."""
LANGUAGE_MODELS = ("qwen", "gemma")
"""How ComfyUI's names of language models begin."""


class Part(NamedTuple):
    """The tokens of a text encoder in a conditioning that stand for the words of its prompt."""

    encoder: str
    """Its name."""
    tokenizer: Any
    """Of the transformers or sentencepiece library."""
    ids: list[int]
    positions: list[int]
    """In the conditioning, of each; negative: from its end."""
    weights: list[float]
    """Of each, as brackets in the prompt set them."""
    tokens: int
    """All tokens of the encoding of the prompt alone."""


def find_words(words: Sequence[tuple[str, int]], clip: Any, text: str) -> tuple[tuple[int, ...], ...]:
    """The positions in a conditioning of words of `text`, each with which of its occurrences is meant, from 0.

    Negative positions count from the conditioning's end; the encoders of Stable Diffusion 1, 2 and SDXL have none.

    Raises:
        RealignError: words are not in the text, or not so often; or nobody knows where this text encoder has them.
    """
    found = find_in_parts(prompt_tokens(clip, text), words, text)
    return tuple(tuple(p for own in of_parts for p in own) for of_parts in zip(*found, strict=True))


def find_in_parts(parts: Sequence[Part], words: Sequence[tuple[str, int]], text: str) -> list[list[list[int]]]:
    """`find_words` for each part alone: its positions of each of the words.

    Raises:
        RealignError: words are not in the text, or not so often.
    """
    return [_find_in(part, words, text) for part in parts]


def absolute(positions: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Positions in a conditioning of so many tokens, none negative.

    Raises:
        RealignError: it has fewer tokens.
    """
    needed = max((p + 1 if p >= 0 else -p for p in positions), default=0)
    if needed > tokens:
        raise RealignError(
            f"The words reach to token {needed}, but the conditioning has {tokens}: connect the conditioning "
            "that was encoded from the words' prompt, or give its text."
        )
    return tuple(p % tokens for p in positions)


def text_tokens(clip: Any, text: str, tokens: int) -> range:
    """Which of a conditioning's tokens were made of `text`, or pad it.

    Before them stand images and system prompts that a language model was shown, behind them what another node has
    appended: images (Redux), another prompt's encoding.
    """
    parts = prompt_tokens(clip, text)
    if len(parts) > 1 or not parts[0].positions:
        return range(tokens)
    first = parts[0].positions[0]
    return range(tokens + first, tokens) if first < 0 else range(min(parts[0].tokens, tokens))


def prompt_tokens(clip: Any, text: str) -> list[Part]:
    """What ComfyUI's text encoders read for the words of `text`.

    Start, end and padding tokens, textual-inversion vectors and the chat template are left out. Of two CLIPs side by
    side, which read alike, the first is asked.

    Raises:
        RealignError: the text encoder is none of those above.
    """
    windows, empty = clip.tokenize(text), clip.tokenize("")
    return [
        _part(name, _tokenizer(clip, name, windows), windows[name], empty[name], from_end)
        for name, from_end in _encoders(clip, windows)
    ]


def _encoders(clip: Any, windows: dict) -> list[tuple[str, bool]]:
    """The encoders that tell about tokens, in their order, and whether theirs are counted from the conditioning's end.

    Raises:
        RealignError: the text encoder is none of those above.
    """
    names = set(windows)
    clips = [name for name in CLIPS if name in names]
    if names == set(clips):
        found = [(name, False) for name in clips[:1]]
    elif names == {"l", "g", "t5xxl"}:  # Stable Diffusion 3, which may lack any of the three
        model = clip.cond_stage_model
        there = [name for name in clips if getattr(model, f"clip_{name}") is not None]
        found = [(name, False) for name in there[:1]] + [("t5xxl", True)] * (model.t5xxl is not None)
    elif names in ({"l", "t5xxl"}, {"t5xxl"}, {"umt5xxl"}):
        found = [(name, False) for name in names - {"l"}]
    else:
        found = [(name, True) for name in names if len(names) == 1 and name.startswith(LANGUAGE_MODELS)]
    if not found:
        raise _unknown(windows)
    return found


def _unknown(windows: dict) -> RealignError:
    return RealignError(
        f"Nothing tells where this text encoder ({', '.join(windows) or 'none'}) has a prompt's words; use one of "
        "Stable Diffusion 1, 2, XL or 3, Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, Wan or Cosmos-Predict2."
    )


def _tokenizer(clip: Any, name: str, windows: dict) -> Any:
    """ComfyUI's tokenizer of one of a CLIP's encoders: `clip_l`, but `t5xxl`, or `clip_t5xxl` where it is alone."""
    own = getattr(clip.tokenizer, f"clip_{name}", None) or getattr(clip.tokenizer, name, None)
    if own is None:
        raise _unknown(windows)
    return own


def _part(name: str, tokenizer: Any, windows: list, empty: list, from_end: bool) -> Part:
    """The words among the tokens (id or vector, weight, …) of each window; empty: the windows of no text.

    What both begin and end with alike is the chat template, whose words are not the prompt's.
    """
    weighted = [
        (token if isinstance(token, int) else None, weight) for window in windows for token, weight, *_ in window
    ]
    tokens: list[Any] = [token for token, _ in weighted]
    none = [token if isinstance(token, int) else None for window in empty for token, *_ in window]
    begin = common_prefix(tokens, none)
    end = len(tokens) - common_prefix(tokens[begin:][::-1], none[begin:][::-1])
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token, None}
    placed = [i for i, token in enumerate(tokens) if begin <= i < end and token not in special]
    first = -len(tokens) if from_end else 0
    return Part(
        encoder=name,
        tokenizer=tokenizer.tokenizer,
        ids=[tokens[i] for i in placed],
        positions=[first + i for i in placed],
        weights=[weighted[i][1] for i in placed],
        tokens=len(tokens),
    )


def _find_in(part: Part, words: Sequence[tuple[str, int]], text: str) -> list[list[int]]:
    """The positions of each of the words that one encoder reads."""
    tokenizer, ids, written = part.tokenizer, part.ids, strip_weights(text)
    if part.encoder in CLIPS:
        if tokenizer(written, add_special_tokens=False, verbose=False).input_ids != ids:
            written = tokenizer.decode(ids)
        find = partial(find_tokens, prompt=written, ids=ids, tokenizer=tokenizer)
    else:
        decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # ComfyUI wraps sentencepiece's once more
        find = partial(find_decoded_tokens, prompt=written, decoded=decode_tokens(ids, decode))
    return [[part.positions[i] for i in find(phrase, occurrence=occurrence)] for phrase, occurrence in words]
