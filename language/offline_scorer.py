"""A `LanguageModel` that needs no language model: it compares words, and embeddings for tags that the prompt lacks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core.phrases import noun_phrases
from ..core.regions import CERTAIN, MAYBE, UNLIKELY
from ..core.words import mentions
from ..perception.text_encoder import TextEncoder


class OfflineScorer:
    """Answers both questions from the prompt's words; f_enc scores the tags that are not among them. Deterministic."""

    MAY_APPEAR = 0.6
    """From this cosine of f_enc between tag and prompt, a tag that the prompt does not name may appear."""

    def __init__(self, text_encoder: TextEncoder | None = None) -> None:
        """text_encoder: f_enc; without it, a tag that the prompt does not name is unlikely."""
        self.text_encoder = text_encoder

    def networks(self) -> tuple[nn.Module, ...]:
        return () if self.text_encoder is None else (self.text_encoder.model,)

    def bind(self, prompt: str, tags: Sequence[str]) -> dict[str, list[str]]:
        """Each tag with every noun phrase of the prompt that mentions it."""
        phrases = noun_phrases(prompt)
        bindings = {tag: [phrase for phrase in phrases if mentions(phrase, tag)] for tag in tags}
        return {tag: mentioning for tag, mentioning in bindings.items() if mentioning}

    def score(self, prompt: str, tags: Sequence[str]) -> dict[str, float]:
        """2 for a tag that the prompt mentions; 0.5 or 0 for any other, by its similarity to the prompt."""
        scores = {tag: CERTAIN if mentions(prompt, tag) else UNLIKELY for tag in tags}
        others = [tag for tag in tags if scores[tag] != CERTAIN]
        if others and self.text_encoder is not None:
            embedded = self.text_encoder.embed([prompt, *others])
            for tag, similarity in zip(others, (embedded[1:] @ embedded[0]).tolist(), strict=True):
                scores[tag] = MAYBE if similarity >= self.MAY_APPEAR else UNLIKELY
        return scores
