"""The demo models' tokenizers: small vocabularies in the classes of the real models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from ..world import COLORS, SHAPES

WORDS = [
    *(
        "a",
        "an",
        "and",
        "the",
        "of",
        "photo",
        "picture",
        "image",
        "there",
        "is",
        "to",
        "left",
        "right",
        "above",
        "below",
    ),
    *("with", "two", "three", "one", "shape", "shapes", "background", "on", "in", "light", "plain", "grey", "shows"),
    *("next", *COLORS, *SHAPES),
]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP BPE tokenizer, 77 tokens, that knows each word of the demo world as one token and any other by letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        while len(pieces := _bpe(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
            vocabulary.setdefault("".join(merges[-1]), len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _bpe(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: the earliest merge that fits is applied until none does."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while fits := [pair for pair in itertools.pairwise(pieces) if pair in merges]:
        pair = min(fits, key=merges.index)
        at = next(i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == pair)
        pieces[at : at + 2] = ["".join(pair)]
    return pieces


def word_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One token per word, for the captioner's language model; `</s>` begins and ends a text, as OPT has it."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """A WordPiece tokenizer; GroundingDINO looks for `[CLS]`, `[SEP]`, `.` and `?` at 101, 102, 1012 and 1029."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [f"[unused{i}]" for i in range(1030)]
    for token, i in {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}.items():
        vocabulary[i] = token
    for i, word in enumerate(WORDS):
        vocabulary[200 + i] = word
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder)
