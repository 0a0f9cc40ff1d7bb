"""The tokenizers that single files of weights lack: from a given folder, beside the file, or Hugging Face's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, BertTokenizerFast, CLIPTokenizerFast, PreTrainedTokenizerBase

from ..core.errors import RealignError
from .folders import from_folder

T = TypeVar("T", bound=PreTrainedTokenizerBase)
_BERTS = ("bert-base-uncased", "google-bert/bert-base-uncased")
_BERT_FILES = ("tokenizer.json", "vocab.txt")
_CLIP_FILES = ("tokenizer.json", "vocab.json")
_CONFIGS = ("tokenizer_config.json", "config.json")


def bert_tokenizer(
    file: str | Path, size: int, given: str | Path | None = None, added: Sequence[str] = ()
) -> BertTokenizerFast:
    """The tokenizer of `bert-base-uncased` with a vocabulary of `size` for a file of weights.

    given: its folder, or a file in it; by default it is searched for beside the weights, then in Hugging Face's cache.
    added: special tokens that the model has beside BERT's.
    """
    file = Path(file)
    cached = (try_to_load_from_cache(model, name) for model in _BERTS for name in _BERT_FILES)
    beside = [file.parent, file.parent / "bert-base-uncased", file.parent.parent / "bert-base-uncased"]
    places = beside + [Path(place).parent for place in cached if isinstance(place, str)]
    folders = _folders_with(_BERT_FILES, places if given is None else [given])
    if not folders and given is not None:
        raise RealignError(f"'{given}' holds no tokenizer.json and no vocab.txt: give the folder of bert-base-uncased.")
    if not folders:
        raise RealignError(
            f"'{file}' comes without a tokenizer, and there is none beside it: put the vocab.txt or tokenizer.json of "
            f"bert-base-uncased into '{file.parent}'."
        )

    def read(folder: Path) -> BertTokenizerFast:
        tokenizer = from_folder(BertTokenizerFast, folder)
        tokenizer.add_tokens(list(added), special_tokens=True)
        return tokenizer

    return _first_that_fits(read, folders, file, size, "bert-base-uncased")


def clip_tokenizer(file: str | Path, size: int, other: str | Path | None = None) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer with a vocabulary of `size`, from beside the file of weights, else from the folder `other`."""
    places = [Path(file).parent] + ([Path(other)] if other is not None else [])
    folders = _folders_with(_CLIP_FILES, places)
    if not folders:
        searched = " or ".join(f"'{_folder_of(place)}'" for place in places)
        raise RealignError(
            f"'{file}' comes without a tokenizer, and there is none in {searched}: put the vocab.json and merges.txt, "
            "or the tokenizer.json, of a CLIP beside it."
        )

    def read(folder: Path) -> PreTrainedTokenizerBase:
        # If no config names the class, what transformers makes of the folder differs between its versions.
        return from_folder(AutoTokenizer if _folders_with(_CONFIGS, [folder]) else CLIPTokenizerFast, folder)

    return _first_that_fits(read, folders, file, size, "the CLIP that it was made from")


def _first_that_fits(read: Callable[[Path], T], folders: Sequence[Path], file: str | Path, size: int, model: str) -> T:
    """The first tokenizer of this size; the error is about one of another size, else about one that cannot be read."""
    unreadable, misfits = [], []
    for folder in folders:
        try:
            tokenizer = read(folder)
        except RealignError as error:
            unreadable.append(error)
            continue
        if len(tokenizer) == size:
            return tokenizer
        misfits.append(
            RealignError(
                f"The tokenizer in '{folder}' knows {len(tokenizer)} words, but the model '{file}' {size}: give it "
                f"the one of {model}."
            )
        )
    raise (misfits + unreadable)[0]


def _folders_with(names: Sequence[str], places: Iterable[str | Path]) -> list[Path]:
    """The folders that hold one of the files `names`, among places that are folders or files in them."""
    return [folder for folder in map(_folder_of, places) if any((folder / name).is_file() for name in names)]


def _folder_of(place: str | Path) -> Path:
    return Path(place).parent if Path(place).is_file() else Path(place)
