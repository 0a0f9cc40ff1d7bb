"""What a pickle would import if it were loaded, read from its instructions; nothing in it runs."""

from __future__ import annotations

import io
import pickletools
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

from ..core.errors import RealignError

MAX_INSTRUCTIONS = 500_000  # in all pickles of a file; a checkpoint with its optimizer has some thirty per tensor
MAX_BYTES = 2**28  # of the pickles in torch's zip, beside which the tensors lie
MAX_TUPLE = 10_000
"""Values in a tuple, with nested tuples. Nesting can double them with each instruction, and hashing visits all."""
_EXPANSION = 20  # by what factor a zip's content may exceed the file; torch does not compress
_LEGACY_PICKLES = 5  # before torch 1.6: magic number, version, machine, content, storage names; then the tensors' bytes

_TENSORS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch(\.cuda)?\.\w+Storage|torch\.storage\.(Untyped|Typed)Storage|torch\.(Tensor|Size|device)"
    r"|torch\.(nn\.parameter\.(Parameter|Buffer)|nn\.Parameter)|torch(\.cuda)?(\.sparse)?\.\w+Tensor"
    r"|torch\.(u?int\d+|q?u?int\d+x?\d*|bool|half|float|double|short|long|int|cfloat|cdouble|chalf|complex\d+"
    r"|b?float\d+\w*|bits\d+(x\d+)?|per_(tensor|channel)_\w+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
"""Imports that tensors and plain values need; torch's restricted reader checks each of them again."""
_PLAIN = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|pathlib\._local\.\w*Path|datetime\.\w+|zoneinfo\.\w+"
    r"|collections\.(defaultdict|deque|ChainMap|UserDict|UserList)|typing\.\w+|decimal\.Decimal|fractions\.Fraction"
    r"|uuid\.UUID|enum\.\w+|copyreg\._reconstructor"
    r"|builtins\.(object|int|float|bool|str|bytes|list|dict|tuple|frozenset|slice|range|type)"
    r"|numpy\.(dtype|ndarray|bool_?|object_|str_|bytes_|void|u?int\w*|float\w*|complex\w*|longlong|datetime64"
    r"|timedelta64)|numpy\.(_core|core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
    r"|numpy\.random\._pickle\.__\w+|numpy\.random\.\w+\.__pyx_unpickle_\w+|numpy\.dtypes\.\w+|numpy\.ma\.core\._mareconstruct"
)
"""Values that training scripts keep beside weights; they are replaced by inert objects."""


@dataclass
class Imports:
    """What a file's pickles would import."""

    names: dict[str, None] = field(default_factory=dict)
    """`module.name` of each import that tensors do not need, in the order of the file."""
    mappings: set[str] = field(default_factory=set)  # names whose objects are filled like a dict
    lists: set[str] = field(default_factory=set)  # names whose objects are filled like a list
    protocol: int = 0  # the highest protocol of the pickles


class _Import(str):
    """On the pickle's stack: the name of an import, or of the object that calling it makes."""


_MARK = object()
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_IMPORTING = ("GLOBAL", "STACK_GLOBAL", "INST")
_CALLING = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "BUILD")
_FILLING = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS")
_TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_OPERANDS = {code.name: [item.name for item in code.stack_before] for code in pickletools.opcodes}
_RESULTS = {code.name: len(code.stack_after) for code in pickletools.opcodes}
_TAKEN = {
    name: (before.index("mark") if "mark" in before else len(before), "mark" in before)
    for name, before in _OPERANDS.items()
}
"""{instruction: (number of operands, whether it also takes everything down to the last mark)}"""


def is_data(name: str) -> bool:
    """Whether an import can only be a value, by its name alone: plain data, or a class of some training script."""
    if _PLAIN.fullmatch(name):
        return True
    module, _, last = name.rpartition(".")
    public = last.lstrip("_")  # functions' names begin with a small letter
    return module.partition(".")[0] not in sys.stdlib_module_names and public[:1].isupper()


def scan(file: Path) -> Imports:
    """What a file's pickles would import; an OSError or BadZipFile if it cannot be read."""
    found, counter = Imports(), count(1)
    with _pickles(file) as streams:
        for stream in streams:
            _follow_pickle(stream, found, file, counter)
    return found


@contextmanager
def _pickles(file: Path) -> Iterator[Iterator[IO[bytes]]]:
    """The pickles in a file: those in torch's zip, or the file itself, which may be several pickles in a row."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield (stream for _ in range(_LEGACY_PICKLES))
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _EXPANSION * max(file.stat().st_size, 2**20):
            raise too_large(file, f"more than {_EXPANSION} times its size when it is unpacked")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if sum(entry.file_size for entry in pickles) > MAX_BYTES:
            raise too_large(file, f"more than {MAX_BYTES // 2**20} MiB beside its tensors")
        yield (io.BytesIO(archive.read(entry)) for entry in pickles)


def too_large(file: Path, what: str) -> RealignError:
    """The error for a file that holds more than weights need."""
    return RealignError(f"'{file}' holds {what}, which no file of weights does: get the model from its own authors.")


def _follow_pickle(stream: IO[bytes], found: Imports, file: Path, counter: Iterator[int]) -> None:
    """Follow a pickle as far as it can be read. The counter counts the instructions of all pickles.

    The stack holds strings, imports, and for all else how many values hashing it visits.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for code, argument, _ in pickletools.genops(stream):
            if next(counter) > MAX_INSTRUCTIONS:
                raise too_large(file, f"a pickle of more than {MAX_INSTRUCTIONS:,} instructions")
            if code.name in _PUT:
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif code.name in _GET:
                stack.append(memo[argument])
            else:
                stack.extend(_results(code.name, argument, _operands(code.name, stack), found))
            if stack and type(stack[-1]) is int and stack[-1] > MAX_TUPLE:
                raise too_large(file, f"a tuple of more than {MAX_TUPLE:,} values")
    except RealignError:
        raise
    except Exception:  # the pickles end and the weights begin, or the file is damaged
        return


def _operands(name: str, stack: list[Any]) -> list[Any]:
    """Take an instruction's operands off the stack."""
    fixed, marked = _TAKEN[name]
    operands: list[Any] = []
    if marked:
        at = len(stack) - 1
        while stack[at] is not _MARK:  # an IndexError if there is none
            at -= 1
        operands = stack[at + 1 :]
        del stack[at:]
    if fixed:
        operands = stack[-fixed:] + operands
        del stack[-fixed:]
    return operands


def _results(name: str, argument: Any, operands: list[Any], found: Imports) -> list[Any]:
    """What an instruction puts on the stack in place of its operands."""
    if name in _IMPORTING:
        module, _, last = argument.partition(" ") if argument else (str(operands[0]), "", str(operands[1]))
        return [_add_import(module, last, found)]
    if name == "MARK":
        return [_MARK]
    if name == "DUP":
        return operands * 2
    if name in _FILLING and type(operands[0]) is _Import:
        (found.mappings if name.startswith("SETITEM") else found.lists).add(operands[0])
    if name in (*_FILLING, *_CALLING):
        return operands[:1]
    if name in _TUPLES:
        return [1 + sum(item if type(item) is int else 1 for item in operands)]
    if name == "PROTO":
        found.protocol = max(found.protocol, argument)
    return [argument if type(argument) is str else 1] * _RESULTS[name]


def _add_import(module: str, last: str, found: Imports) -> _Import:
    """Note an import under its name in Python 3, as torch's reader does."""
    module, last = NAME_MAPPING.get((module, last), (IMPORT_MAPPING.get(module, module), last))
    name = _Import(f"{module}.{last}")
    if not _TENSORS.fullmatch(name):
        found.names.setdefault(name)
    return name
