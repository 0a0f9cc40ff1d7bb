"""The prompts that a run trains on and those that it is only evaluated on, from the files people have."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RealignError

if TYPE_CHECKING:
    from .settings import TrainingConfig

COLUMNS = ("caption", "prompt", "text")
"""Where a prompt is looked for when no column is named; upper and lower case are one."""
MAX_LENGTH = 1000
"""A longer text is no prompt but, say, the rest of a file after a forgotten quotation mark."""
DEMO = "demo"
"""In the place of a file: the prompts of the demo world."""
Row = tuple[str, Any]
"""Where a prompt stands ("prompts.csv, line 3") and what stands there: a text, or a `_Broken`."""


class _Broken(str):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their file, and what was skipped."""

    texts: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """One sentence a broken row, with file and line."""

    @property
    def duplicates(self) -> int:
        """How many texts stood there before; they are kept, so they weigh more."""
        return len(self.texts) - len(set(self.texts))


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of the texts in their order: two runs with the same value used the same prompts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def read_prompts(path: str | Path, column: str | None = None, strict: bool = False) -> Prompts:
    """Read prompts from a file or a folder.

    path: a .txt file (a prompt a line; blank lines and lines that begin with # are skipped); a .csv, .tsv or .jsonl
        file; a folder that `datasets` saved (`save_to_disk`); a folder with a metadata.csv or metadata.jsonl; or a
        folder of .txt files, a prompt each. Text is UTF-8.
    column: where the prompt stands in a row; by default in the first of `COLUMNS`.
    strict: refuse a broken row instead of reporting it in `problems`.

    Raises:
        RealignError: there is no prompt, the file cannot be read at all, or, with `strict`, a row is broken.
    """
    path = Path(path)
    texts, problems = [], []
    for place, row in _rows(path, column or None):
        text = row if isinstance(row, _Broken) else _checked(row)
        if isinstance(text, _Broken):
            problems.append(f"{place}: {text}.")
        else:
            texts.append(text)
    if problems and strict:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RealignError(f"{problems[0]} Mend it{more}, or leave out --strict to skip what is broken.")
    if not texts:
        raise RealignError(f"There is no prompt in {path}; {problems[0] if problems else 'it is empty.'}")
    return Prompts(tuple(texts), tuple(problems))


def split(prompts: Prompts, held_out: float, seed: int) -> tuple[Prompts, Prompts]:
    """Split into (training, held out), by a hash of each text: equal texts are never on both sides.

    held_out: below 1 a share. Whether a text is held out then depends on that text alone, so adding prompts never moves
        one into training. From 1 on the number of different texts, those with the lowest hashes; no rule can keep both
        to a number and to that promise: an added text with a lower hash takes a place.

    Raises:
        RealignError: a side would be empty, unless `held_out` is 0.
    """
    keys = {text: _key(text) for text in prompts.texts}
    hashes = {key: _hash(key, seed) for key in keys.values()}
    if held_out < 1:
        chosen = {key for key, value in hashes.items() if value < held_out}
    else:
        chosen = set(sorted(hashes, key=lambda key: (hashes[key], key))[: int(held_out)])
    if len(chosen) == len(hashes) or (held_out and not chosen):
        side = "held out" if not chosen else "left for training"
        raise RealignError(
            f"held_out is {held_out:g} of {len(hashes)} different prompts, so none is {side}; "
            "give another held_out, or more prompts."
        )
    training = tuple(text for text in prompts.texts if keys[text] not in chosen)
    return Prompts(training, prompts.problems), Prompts(tuple(t for t in prompts.texts if keys[t] in chosen))


def load_prompts(config: TrainingConfig) -> tuple[Prompts, Prompts]:
    """The prompts of a run: (training, held out). What is in both files is not trained on."""
    prompts = _read(config.prompts, config, held_out=False)
    if not config.held_out_prompts:
        return split(prompts, config.held_out, config.seed)
    held_out = _read(config.held_out_prompts, config, held_out=True)
    keys = {_key(text) for text in held_out.texts}
    training = tuple(text for text in prompts.texts if _key(text) not in keys)
    if not training:
        raise RealignError(
            f"Every prompt in {config.prompts} is also in {config.held_out_prompts}; give other prompts."
        )
    left_out = len(prompts.texts) - len(training)
    told = f"{config.prompts}: not trained on, because also in {config.held_out_prompts}: {left_out} of its prompts."
    return Prompts(training, (*prompts.problems, *([told] if left_out else []))), held_out


def _read(path: str, config: TrainingConfig, held_out: bool) -> Prompts:
    if path != DEMO:
        return read_prompts(path, config.prompt_column, config.strict)
    from ..demo.prompts import two_object_prompts

    return Prompts(tuple(text for text, _ in two_object_prompts(held_out)))


def _key(text: str) -> str:
    """The text without what makes no difference to what is drawn: upper case and spacing."""
    return " ".join(text.casefold().split())


def _hash(key: str, seed: int) -> float:
    """Evenly in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6], "big") / 2**48


def _checked(given: Any) -> str:
    if given is None:
        return _Broken("there is no text")
    if not isinstance(given, str):
        return _Broken(f"it is not text but {given!r:.40}")
    text = given.strip()
    if not text:
        return _Broken("the text is empty")
    if len(text) > MAX_LENGTH:
        hint = "; is a closing quotation mark missing?" if "\n" in text else ""
        return _Broken(f"the text has {len(text)} characters, more than {MAX_LENGTH}{hint}")
    if "\0" in text:
        return _Broken("the text holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _Broken("the text is not UTF-8")
    return text


# One reader a form


def _rows(path: Path, column: str | None) -> Iterator[Row]:
    if path.is_dir():
        return _folder(path, column)
    if not path.is_file():
        raise RealignError(f"There is no file or folder {str(path)!r} to read prompts from.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RealignError(f"{path} is not a file of prompts; give {', '.join(_READERS)} or a folder.")
    return reader(path, column)


def _lines(path: Path) -> io.StringIO:
    """The file as lines; a byte that is not UTF-8 becomes a surrogate, which `_checked` finds in its row."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RealignError(f"{path} could not be read: {error.strerror}.") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RealignError(f"{path} is UTF-16; save it as UTF-8.")
    return io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")


def _txt(path: Path, column: str | None) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield _place(path, number), text


def _csv(path: Path, column: str | None) -> Iterator[Row]:
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    reader = csv.reader(_lines(path), dialect, strict=True)
    header = _row(reader) or []
    if isinstance(header, _Broken):
        raise RealignError(f"{_place(path, 1)}: {header}.")
    index = header.index(_column(header, column, path))
    while True:
        place = _place(path, reader.line_num + 1)
        row = _row(reader)
        if row is None:
            return
        if isinstance(row, _Broken):
            yield place, row
        elif row:
            yield place, row[index] if index < len(row) else _Broken(f"the column {header[index]!r} is missing")


def _row(reader: Iterator[list[str]]) -> list[str] | _Broken | None:
    """The next row, [] where the line is blank; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return _Broken(f"the row's quotation marks do not fit together ({error})")


def _jsonl(path: Path, column: str | None) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield _place(path, number), _in_object(line, column)


def _in_object(line: str, column: str | None) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return _Broken("it is not JSON")
    if not isinstance(row, dict):
        return _Broken("it is not a JSON object")
    name = _find(row, column)
    return _Broken(f"there is no {_wanted(column)}") if name is None else row[name]


_READERS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".txt": _txt,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
}


def _folder(path: Path, column: str | None) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        yield from _saved_dataset(path, column)
        return
    for name in ("metadata.csv", "metadata.jsonl"):
        if (path / name).is_file():
            yield from _rows(path / name, column)
            return
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.txt") if file.is_file()}
    if not files:
        raise RealignError(f"The folder {path} holds no .txt captions, no metadata.csv or .jsonl and no saved dataset.")
    for name in sorted(files):
        try:
            yield name, " ".join(_lines(files[name]).read().split())
        except RealignError as error:
            yield name, _Broken(str(error).rstrip("."))


def _saved_dataset(path: Path, column: str | None) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise RealignError(
            f"{path} is a dataset saved by the package datasets, which is not installed; pip install datasets, or save "
            "the prompts as .jsonl."
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, by file system and format
        raise RealignError(f"{path} could not be read as a saved dataset: {error}") from error
    if isinstance(loaded, dict):
        names = list(loaded)
        name = "train" if "train" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise RealignError(f"{path} has the splits {', '.join(names)}; give the folder of one of them.")
        loaded = loaded[name]
    name = _column(loaded.column_names, column, path)
    for number, row in enumerate(loaded.select_columns([name]), 1):
        yield f"{path.name}, row {number}", row[name]


def _place(path: Path, line: int) -> str:
    return f"{path.name}, line {line}"


def _column(names: Sequence[str], column: str | None, path: Path) -> str:
    name = _find(names, column)
    if name is None:
        found = ", ".join(repr(name) for name in names) or "none"
        raise RealignError(f"{path} has no column {_wanted(column)}, only {found}; name one with prompt_column.")
    return name


def _find(names: Iterable[str], column: str | None) -> str | None:
    """The name that is meant: spelt so, or but for upper case and spaces around it."""
    spelt = {name.strip().casefold(): name for name in reversed(list(names))}
    spelt.update({name: name for name in names})
    wanted = COLUMNS if column is None else (column, column.strip().casefold())
    return next((spelt[name] for name in wanted if name in spelt), None)


def _wanted(column: str | None) -> str:
    return " or ".join(COLUMNS) if column is None else repr(column)
