"""Read picture files of many kinds as 8-bit RGB, and find the pictures in a folder."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .errors import RealignError

_WANTED = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
SUFFIXES = tuple(sorted(kind for kind in _WANTED if Image.registered_extensions().get(kind) in Image.OPEN))
"""The suffixes of picture files that this Pillow reads."""
UNREAD_SUFFIXES = {
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".xcf", ".tga", ".ico", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".qoi", ".exr", ".hdr", ".dds", ".eps", ".pcx"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    *(_WANTED - {*SUFFIXES}),
}
"""The suffixes of picture files that are not read."""
LARGEST = 2**24
"""The most pixels of a picture that is returned."""
ORIENTATION = 0x0112
"""The EXIF tag that says how to turn a picture."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(file: Path) -> Image.Image:
    """The picture in a file, upright, in RGB: the first frame of an animation; transparent parts become white.

    A picture of more than `LARGEST` pixels is scaled down by an integer factor, to save memory.

    Raises:
        RealignError: it has more pixels than Pillow reads (twice `Image.MAX_IMAGE_PIXELS`).
        Exception: it cannot be read; Pillow raises errors of many kinds.
    """
    # Given a path, Pillow maps an uncompressed TIFF into memory, and garbles it when it turns it.
    with open(file, "rb") as content, _read_header(content) as picture:
        if (factor := _reduction(picture)) > 1:
            picture.draft(None, (picture.width // factor, picture.height // factor))  # JPEG is then decoded smaller
        picture.load()
        turn = _turn(picture)
        small = scale_down(picture)
    upright = small if turn is None else small.transpose(turn)
    if upright.mode.startswith(("I", "F")):
        return to_8_bits(upright).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def _read_header(content: BinaryIO) -> Image.Image:
    """Open a picture without decoding its pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it will be scaled down
            return Image.open(content)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise RealignError(f"it has more than {most} million pixels: scale it down") from error


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; None where its EXIF is damaged. `ImageOps.exif_transpose` would also write the
    EXIF again, which fails where any other tag is damaged."""
    try:
        return _TURNS.get(picture.getexif().get(ORIENTATION, 0))
    except Exception:  # of many kinds, as from reading the picture
        return None


def _reduction(picture: Image.Image) -> int:
    """The integer factor by which a picture must be scaled down."""
    return math.ceil(math.sqrt(picture.width * picture.height / LARGEST))


def scale_down(picture: Image.Image) -> Image.Image:
    """The picture with at most `LARGEST` pixels."""
    if (factor := _reduction(picture)) < 2:
        return picture
    if picture.mode.startswith("I;16"):
        return picture.convert("I").reduce(factor).convert("I;16")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "P"):
        picture = picture.convert("RGB")
    return picture.reduce(factor)


def to_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits (Pillow's I;16, I, F) in 8 bits; Pillow itself would clip it at 255.

    White is 65535 for 16 bits. Otherwise it is the least of 1 (F only), 255 and 65535 that no value exceeds, or the
    highest value.
    """
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
    highest = values.max()
    whites = {"I": (255, 65535, highest), "F": (1, 255, 65535, highest)}.get(picture.mode, (65535,))
    white = next(white for white in whites if white >= highest)
    return Image.fromarray((values.clip(min=0) / white * 255).round().astype(np.uint8))


def is_whole_png(file: Path) -> bool:
    """Whether the file is a complete PNG, by the checksums of its chunks; its pixels are not decoded."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            picture.verify()
    except Exception:  # of many kinds
        return False
    return True


class PictureFolder(NamedTuple):
    """The picture files of a folder, sorted; and a sentence about those that were left out, empty if none were."""

    files: list[Path]
    left_out: str


def find_pictures(folder: Path, *, recursive: bool = True) -> PictureFolder:
    """The picture files of a folder, by their suffixes (`SUFFIXES`).

    Hidden files are left out, such as `._photo.png`, which macOS writes beside each photo on other systems' disks.
    """
    found, hidden, others = [], [], Counter()
    for file in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        kind = file.suffix.lower()
        if kind not in SUFFIXES and kind not in UNREAD_SUFFIXES:
            continue
        if any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts):
            hidden.append(file)
        elif not file.is_file():
            continue
        elif kind in SUFFIXES:
            found.append(file)
        else:
            others[kind] += 1
    reasons = []
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        reasons.append(f"{count_noun(others.total(), 'picture')} of kinds that are not read ({kinds})")
    if hidden:
        reasons.append(f"{count_noun(len(hidden), 'hidden file')} ({list_names(hidden)})")
    return PictureFolder(found, f"Left out in '{folder}': {', and '.join(reasons)}." if reasons else "")


def count_noun(count: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def list_names(files: Iterable[Path], most: int = 3) -> str:
    """The names of the first files, with … if there are more."""
    names = [f"'{file.name}'" for file in files]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
