"""Read prompts from files of many forms, for training, evaluation and re-alignment."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RealignError

COLUMNS = ("caption", "prompt", "text")
"""The columns that may hold the prompt when none is named; then their plurals. Case does not matter."""
MAX_LENGTH = 1000
"""The most characters of a prompt. A longer text is rather the rest of a file after a missing quotation mark."""
FORMS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
"""The suffixes of prompt files."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their file, and what was skipped."""

    texts: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """One sentence per broken row, with file and line; and one if successive rows of a prompt were merged."""

    @property
    def duplicates(self) -> int:
        """How many texts are repetitions. They are kept, so they weigh more."""
        return len(self.texts) - len(set(self.texts))


class Row(NamedTuple):
    """A row of a file."""

    place: str
    """E.g. "prompts.csv, line 3"."""
    value: Any
    """The prompt, or why there is none (`_Broken`)."""
    table: bool = False
    """Whether the row holds more than the prompt; then several rows may be on one prompt, as in a file of questions."""


class _Broken(str):
    """Why a row holds no prompt."""


def read_prompts(
    path: str | Path,
    column: str | None = None,
    strict: bool = False,
    *,
    one_caption: bool = False,
    repeats: bool = False,
) -> Prompts:
    """Read prompts from a file or a folder.

    path: one of these, in UTF-8:
        a .txt file with one prompt per line (blank lines and lines that begin with # are skipped);
        a .csv, .tsv or .jsonl file;
        a .json file: a list of texts or objects, such as ImageReward's `refl_data.json`, or COCO's `captions_*.json`;
        a folder with a metadata.csv or metadata.jsonl, or a folder of .txt files with one prompt each;
        a folder that `datasets` saved (`save_to_disk`).
    column: the column with the prompt; by default the first of `COLUMNS` that exists.
    strict: refuse a broken row instead of reporting it in `problems`.
    one_caption: from COCO's file, take one caption per image, the one with the lowest id, in the order of image ids.
        Otherwise all captions, in the order of the file.
    repeats: keep a prompt that successive rows of a table repeat. Otherwise such rows count as one prompt, as in a file
        with one row per question about a prompt; `problems` says so.

    Raises:
        RealignError: there is no prompt, the file cannot be read, or, with `strict`, a row is broken.
    """
    path = Path(path)
    texts, problems, rows, merged = [], [], 0, 0
    for row in _rows(path, column or None, one_caption):
        text = row.value if isinstance(row.value, _Broken) else _checked(row.value)
        if isinstance(text, _Broken):
            problems.append(f"{row.place}: {text}.")
            continue
        rows += 1
        if row.table and not repeats and texts and texts[-1] == text:
            merged += 1
        else:
            texts.append(text)
    if problems and strict:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RealignError(f"{problems[0]} Mend it{more}, or leave out --strict to skip what is broken.")
    if not texts:
        raise RealignError(f"There is no prompt in {path}; {problems[0] if problems else 'it is empty.'}")
    if merged:
        problems.append(
            f"{path.name}: its {rows} rows hold {len(set(texts))} different prompts; successive rows of one prompt "
            "are taken as one."
        )
    return Prompts(tuple(texts), tuple(problems))


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


# One reader per form


def _rows(path: Path, column: str | None, one_caption: bool) -> Iterator[Row]:
    if path.is_dir():
        return _folder(path, column)
    if not path.is_file():
        raise RealignError(f"There is no file or folder {str(path)!r}, so its prompts cannot be read: check the path.")
    if path.suffix.lower() == ".json":
        return _json(path, column, one_caption)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RealignError(f"{path} is not a file of prompts; give {', '.join(FORMS)} or a folder.")
    return reader(path, column)


def _lines(path: Path) -> io.StringIO:
    """The file as lines. A byte that is not UTF-8 becomes a surrogate, which `_checked` finds in its row."""
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
            yield Row(f"{path.name}, line {number}", text)


def _csv(path: Path, column: str | None) -> Iterator[Row]:
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    reader = csv.reader(_lines(path), dialect, strict=True)
    header = _row(reader) or []
    if isinstance(header, _Broken):
        raise RealignError(f"{path.name}, line 1: {header}.")
    index = header.index(_column(header, column, path))
    while True:
        place = f"{path.name}, line {reader.line_num + 1}"
        row = _row(reader)
        if row is None:
            return
        if isinstance(row, _Broken):
            yield Row(place, row)
        elif row:
            text = row[index] if index < len(row) else _Broken(f"the column {header[index]!r} is missing")
            yield Row(place, text, len(header) > 1)


def _row(reader: Iterator[list[str]]) -> list[str] | _Broken | None:
    """The next row: [] for a blank line, None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return _Broken(f"the row's quotation marks do not fit together ({error})")


def _jsonl(path: Path, column: str | None) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = _Broken("it is not JSON")
            yield _row_of(f"{path.name}, line {number}", row, column)


def _row_of(place: str, row: Any, column: str | None) -> Row:
    """A row of JSON: an object with the prompt in a column, or the prompt itself."""
    if isinstance(row, str):
        return Row(place, row)
    if not isinstance(row, dict):
        return Row(place, _Broken("it is not a JSON object"))
    name = _find(row, column)
    return Row(place, _Broken(f"there is no {_wanted(column)}") if name is None else row[name], len(row) > 1)


def _json(path: Path, column: str | None, one_caption: bool) -> Iterator[Row]:
    """A list of prompts or of objects, also inside an object; or COCO's captions."""
    content = _json_value(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        yield from _coco(path, content["annotations"], one_caption)
        return
    if isinstance(content, dict):
        rows = content.get(_find([*content], column) or "data")
        content = [content] if isinstance(rows, str) else content if rows is None else rows
    if isinstance(content, dict) and all(isinstance(row, dict | str) for row in content.values()):
        content = list(content.values())
    if not isinstance(content, list):
        raise RealignError(
            f"{path} is no list of prompts, nor a file of COCO captions (captions_*.json): give a list of texts or of "
            f"objects with {_wanted(column)}."
        )
    for number, row in enumerate(content, 1):
        yield _row_of(f"{path.name}, entry {number}", row, column)


def _json_value(path: Path) -> Any:
    text = _lines(path).read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        several = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        mend = "where each line is JSON of its own, call it .jsonl" if several else "mend it, or give another file"
        raise RealignError(f"{path} is no file of JSON ({error}): {mend}.") from error


def _coco(path: Path, rows: Sequence[Any], one_caption: bool) -> Iterator[Row]:
    """COCO's captions, with white space normalised."""
    rows = [row for row in rows if isinstance(row, dict)]
    if not any("caption" in row for row in rows):
        raise RealignError(
            f"{path} is no file of COCO captions: its annotations hold none. Give captions_*.json, or prompts as "
            f"{', '.join(FORMS)}."
        )
    if one_caption and all("image_id" in row for row in rows):
        rows = sorted(rows, key=lambda row: (_sort_key(row["image_id"]), _sort_key(row.get("id"))))
        rows = list({str(row["image_id"]): row for row in reversed(rows)}.values())[::-1]
    for number, row in enumerate(rows, 1):
        text = row.get("caption")
        text = " ".join(text.replace("\0", " ").split()) if isinstance(text, str) else text
        yield Row(f"{path.name}, annotation {row.get('id', number)}", text)


def _sort_key(number: Any) -> tuple[int, int, str]:
    """Sorts numbers by value, also those written as text, before everything else."""
    text = str(number)
    return (0, int(text), "") if text.isdecimal() and len(text) < 20 else (1, 0, text)


_READERS = {".txt": _txt, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl}


def _folder(path: Path, column: str | None) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        yield from _saved_dataset(path, column)
        return
    for name in ("metadata.csv", "metadata.jsonl"):
        if (path / name).is_file():
            yield from _rows(path / name, column, False)
            return
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.txt") if file.is_file()}
    if not files:
        raise RealignError(f"The folder {path} holds no .txt captions, no metadata.csv or .jsonl and no saved dataset.")
    for name in sorted(files):
        try:
            yield Row(name, " ".join(_lines(files[name]).read().split()))
        except RealignError as error:
            yield Row(name, _Broken(str(error).rstrip(".")))


def _saved_dataset(path: Path, column: str | None) -> Iterator[Row]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
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
        yield Row(f"{path.name}, row {number}", row[name], len(loaded.column_names) > 1)


def _column(names: Sequence[str], column: str | None, path: Path) -> str:
    name = _find(names, column)
    if name is None:
        found = ", ".join(repr(name) for name in names) or "none"
        raise RealignError(f"{path} has no column {_wanted(column)}, only {found}; name one with prompt_column.")
    return name


def _find(names: Iterable[str], column: str | None) -> str | None:
    """The column that is meant: spelt exactly so, or but for case and outer spaces."""
    columns = {name.strip().casefold(): name for name in reversed(list(names))}
    columns.update({name: name for name in names})
    usual = (*COLUMNS, *(f"{name}s" for name in COLUMNS))
    wanted = usual if column is None else (column, column.strip().casefold())
    return next((columns[name] for name in wanted if name in columns), None)


def _wanted(column: str | None) -> str:
    return " or ".join(COLUMNS) if column is None else repr(column)
