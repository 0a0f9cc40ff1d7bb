"""The tokenizers that single files of weights lack: from a folder given, from beside the file, or from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from ...core.errors import RealignError
from ..loading import from_folder

_BERT_FILES = ("tokenizer.json", "vocab.txt")
_CLIP_FILES = ("tokenizer.json", "vocab.json")


def bert_tokenizer(
    file: str | Path, words: int, given: str | Path | None = None, added: Sequence[str] = ()
) -> BertTokenizerFast:
    """The tokenizer of `bert-base-uncased` for a file of weights.

    file: the weights; the tokenizer is searched for beside it, then among what transformers has downloaded.
    words: how many the model knows.
    given: the tokenizer's folder, or a file in it; nothing else is searched then.
    added: marks that the model has beside BERT's.

    Raises:
        RealignError: there is none, or it is another model's.
    """
    folder = _bert_folder(Path(file), given)
    tokenizer = from_folder(BertTokenizerFast, folder)
    tokenizer.add_tokens(list(added), special_tokens=True)
    _check(tokenizer, folder, file, words, "bert-base-uncased")
    return tokenizer


def clip_tokenizer(file: str | Path, words: int, other: str | Path | None = None) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer for a file of weights: from beside the file, else from the folder `other`.

    words: how many the model knows.

    Raises:
        RealignError: there is none, or it is another model's.
    """
    places = [Path(file).parent] + ([Path(other)] if other is not None else [])
    places = [place.parent if place.is_file() else place for place in places]
    folder = next((place for place in places if _has(place, _CLIP_FILES)), None)
    if folder is None:
        searched = " or ".join(f"'{place}'" for place in places)
        raise RealignError(
            f"'{file}' comes without a tokenizer, and there is none in {searched}: put the vocab.json and merges.txt, "
            "or the tokenizer.json, of a CLIP beside it."
        )
    tokenizer = from_folder(AutoTokenizer, folder)
    _check(tokenizer, folder, file, words, "the CLIP that it was made from")
    return tokenizer


def _check(tokenizer: PreTrainedTokenizerBase, folder: Path, file: str | Path, words: int, whose: str) -> None:
    if len(tokenizer) != words:
        raise RealignError(
            f"The tokenizer in '{folder}' knows {len(tokenizer)} words, but the model '{file}' {words}: give it the "
            f"one of {whose}."
        )


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _bert_folder(file: Path, given: str | Path | None) -> Path:
    if given is not None:
        given = Path(given)
        places = [given.parent if given.is_file() else given]
    else:
        cached = [
            try_to_load_from_cache(model, name)
            for model in ("bert-base-uncased", "google-bert/bert-base-uncased")
            for name in _BERT_FILES
        ]
        beside = [file.parent, file.parent / "bert-base-uncased", file.parent.parent / "bert-base-uncased"]
        places = beside + [Path(found).parent for found in cached if isinstance(found, str)]
    for place in places:
        if _has(place, _BERT_FILES):
            return place
    if given is not None:
        raise RealignError(f"'{given}' holds no tokenizer.json and no vocab.txt: give the folder of bert-base-uncased.")
    raise RealignError(
        f"'{file}' comes without a tokenizer, and there is none beside it: put the vocab.txt or tokenizer.json of "
        f"bert-base-uncased into '{file.parent}'."
    )
