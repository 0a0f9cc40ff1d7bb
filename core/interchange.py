"""Regions to and from what other node packs speak: MASK batches, BOUNDING_BOX dictionaries, JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .errors import RealignError
from .json_text import json_values
from .masks import Size, as_masks, box_mask, check_memory, empty_masks, mask_box
from .phrases import nearest_span, noun_phrases
from .regions import CERTAIN, LIKELIHOODS, Box, Region, RegionSet, check_count, with_occurrences
from .text import encodable, quote, shorten
from .words import content_words, occurrences, strip_weights

MOST_IMAGES = 10_000
"""Images whose regions are read at once."""
MOST_WORDS = 1000
"""Characters of a region's words."""
UNKNOWN = (512, 512)
"""(height, width) of the masks of boxes in fractions, where the image's size is not known."""
OUTSIDE = 0.5
"""Pixels by which a box may reach out of its image without a note, as by rounding."""


def region_sets(value: Any, *, text: str | None = "", size: Size | None = None) -> tuple[RegionSet, ...]:
    """Whatever came through a REGIONS socket, as one set an image.

    value: our own sets; masks [N, H, W] (mask i belongs to the text's i-th thing); bounding boxes `{x, y, width,
    height}` in pixels, one, a list, or a list for each image (a `label` is taken as the phrase); or text with JSON of
    such boxes, or as `to_json` writes it, its boxes as fractions or, above 1, in pixels.
    text: the prompt, needed for what does not bring its own; None as from a linked node is none. size: (H, W) of the
    image, needed for boxes in pixels.

    A number that is none, as NaN or True, is refused. What is repaired (a likelihood between 0, 0.5 and 2, an
    occurrence that the prompt lacks, a box that reaches out of the image) is noted in the set.

    Raises:
        RealignError: none of these, a missing text or size, more masks than the text has things, a value out of its
            range, or more than `core.regions` and MOST_IMAGES allow.
    """
    text = encodable(text or "")
    if isinstance(value, RegionSet):
        return (value,)
    if isinstance(value, Tensor):
        return (_from_masks(value, _needed(text, "masks")),)
    if isinstance(value, str):
        images = _images(_parsed(value))
        _check_images(images, size)
        return tuple(_from_json(one, text, size) for one in images)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and value and all(isinstance(one, RegionSet) for one in value):
        return tuple(value)
    if isinstance(value, Sequence) and all(isinstance(one, (Mapping, Sequence)) for one in value):
        images = value if value and not isinstance(value[0], Mapping) else [value]
        _check_images(images, size)
        return tuple(_from_boxes(boxes, _needed(text, "bounding boxes"), size) for boxes in images)
    raise RealignError(
        f"Regions cannot be made of a {type(value).__name__}: connect regions, masks, bounding boxes or JSON text."
    )


def broadcast_sets(sets: Sequence[RegionSet], count: int) -> tuple[RegionSet, ...]:
    """One set an image: a single set serves all of them.

    Raises:
        RealignError: another number of sets.
    """
    if len(sets) not in (1, count):
        raise RealignError(f"There are regions for {len(sets)} images but {count} images: connect those of this batch.")
    return tuple(sets) * (count if len(sets) == 1 else 1)


def bounding_boxes(sets: Sequence[RegionSet], size: Size) -> list[list[dict[str, Any]]]:
    """For each image the boxes `{x, y, width, height, label, score}` in pixels of its regions that have one."""
    height, width = size
    out = []
    for one in sets:
        boxes = []
        for region in one:
            if region.box is None:
                continue
            x0, y0, x1, y1 = region.box
            left, top = round(x0 * width), round(y0 * height)
            box = {"x": left, "y": top, "width": round(x1 * width) - left, "height": round(y1 * height) - top}
            score = 1.0 if region.detection is None else region.detection
            boxes.append({**box, "label": region.phrase or region.tag, "score": score})
        out.append(boxes)
    return out


def to_json(sets: Sequence[RegionSet]) -> str:
    """All sets as JSON text: a list with one object an image; masks are told by their box and area."""
    return json.dumps([one.to_dict() for one in sets], indent=2, ensure_ascii=False)


def _from_masks(value: Tensor, text: str) -> RegionSet:
    RegionSet(text)  # not too long
    masks, things = as_masks(value), noun_phrases(strip_weights(text))
    check_count(len(things), "things in the prompt")
    if len(masks) > len(things):
        raise RealignError(
            f"There are {len(masks)} masks but the text '{text}' names {len(things)} things: give one mask a thing, "
            "in the order of the text, or use Region from Mask to say which is which."
        )
    found = [_region(thing, text, mask=mask, box=mask_box(mask)) for thing, mask in zip(things, masks, strict=False)]
    rest = [_region(thing, text) for thing in things[len(masks) :]]
    return _noted(text, [*found, *rest])


def _from_boxes(boxes: Any, text: str, size: Size | None) -> RegionSet:
    RegionSet(text)  # not too long
    check_count(len(boxes), "bounding boxes")
    things = noun_phrases(strip_weights(text))
    found = [_pixels(box) for box in boxes]
    labels = [_words(box, "label") for box in boxes]
    if not any(labels) and len(boxes) > len(things):
        raise RealignError(
            f"There are {len(boxes)} bounding boxes but the text '{text}' names {len(things)} things: give one a thing."
        )
    if size is None:
        raise RealignError("Bounding boxes in pixels need the size of the image: connect the image they were drawn on.")
    regions, notes = [], []
    for i, (corners, score) in enumerate(found):
        phrase = labels[i] or (things[i] if i < len(things) else "")
        corners = _fractions(corners, size, phrase, notes)
        assert size is not None  # `_fractions` has raised an error otherwise
        regions.append(_region(phrase, text, box=corners, mask=box_mask(corners, size), detection=score))
    return _noted(text, regions, notes=notes)


def _pixels(box: Any) -> tuple[Box, float | None]:
    """The corners of a bounding box in pixels, and its score."""
    try:
        x, y, width, height = (_of_box(box, key) for key in ("x", "y", "width", "height"))
        score = None if box.get("score") is None else _of_box(box, "score")
    except (AttributeError, TypeError) as error:
        raise RealignError(f"A bounding box must have numbers x, y, width and height, but is {quote(box)}.") from error
    return (x, y, x + width, y + height), score


def _of_box(box: Mapping[str, Any], key: str) -> float:
    if key not in box:
        raise RealignError(f"A bounding box has no {key}: give numbers x, y, width and height.")
    try:
        return _number(box[key])
    except (TypeError, ValueError, OverflowError) as error:
        raise RealignError(f"The {key} of a bounding box is {quote(box[key])}: give a number.") from error


def _images(value: Any) -> list[Any]:
    """What was read from JSON, for each image: a list of sets or of lists is one of several images."""
    several = isinstance(value, list) and value and (_is_set(value[0]) or all(isinstance(one, list) for one in value))
    return value if several else [value]


def _check_images(images: Sequence[Any], size: Size | None) -> None:
    """Raise a RealignError where there are too many images, or no room for the masks of all their regions."""
    if len(images) > MOST_IMAGES:
        raise RealignError(
            f"There are regions for {len(images):,} images: give those of at most {MOST_IMAGES:,} at once."
        )
    listed = [one.get("regions") if isinstance(one, Mapping) else one for one in images]
    check_memory(sum(len(one) for one in listed if isinstance(one, list)), size or UNKNOWN)


def _from_json(value: Any, text: str, size: Size | None) -> RegionSet:
    """One image's regions: an object with `regions`, or a list of regions or boxes, or one of these alone."""
    own = value.get("prompt") if isinstance(value, Mapping) else None
    prompt = text or (encodable(own) if isinstance(own, str) else "")
    if isinstance(value, Mapping):
        value = value["regions"] if "regions" in value else [value] if _is_placed(value) else None
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RealignError(
            'The JSON text lists no regions: write {"regions": [{"phrase": "a red circle", "box": [0, 0, 0.5, 1]}]}.'
        )
    if value and all("width" in one for one in value):
        return _from_boxes(value, _needed(prompt, "bounding boxes"), size)
    RegionSet(_needed(prompt, "JSON text without a prompt"))  # not too long
    check_count(len(value))
    notes: list[str] = []
    regions = [_written(one, prompt, size, notes) for one in value]
    return _noted(prompt, regions, [_place(one, prompt, notes) for one in value], notes)


def _box_of(one: Mapping[str, Any]) -> Any:
    return one.get("box", one.get("bbox"))


def _written(one: Mapping[str, Any], prompt: str, size: Size | None, notes: list[str]) -> Region:
    """A region as JSON describes it."""
    phrase = _words(one, "phrase", "label")
    corners = None if _box_of(one) is None else _corners(_box_of(one), size, phrase, notes)
    mask = None if corners is None else box_mask(corners, size or UNKNOWN)
    score = one.get("detection", one.get("score"))
    score = None if score is None else _given(score, "score", phrase, "a number from 0 to 1, or leave it out")
    region = _region(phrase, prompt, mask=mask, box=corners, detection=score)
    if _is_place(one.get("occurrence"), phrase, prompt):
        region = replace(region, phrase=phrase)
    tag = _words(one, "tag") or region.tag
    return replace(region, tag=tag, likelihood=_likelihood(one.get("likelihood"), phrase, notes))


def _place(one: Mapping[str, Any], prompt: str, notes: list[str]) -> int | None:
    """The `occurrence` that JSON gives for a region; None where there is none, or the prompt has it not."""
    given, phrase = one.get("occurrence"), _words(one, "phrase", "label")
    if _is_place(given, phrase, prompt):
        return given
    if given is not None and phrase and nearest_span(phrase, strip_weights(prompt)):
        notes.append(f"The prompt has no occurrence {shorten(given)} of '{shorten(phrase)}': another was taken.")
    return None


def _is_place(given: Any, phrase: str, prompt: str) -> bool:
    """Whether it is one of the occurrences of a phrase."""
    return type(given) is int and 0 <= given < len(occurrences(phrase, strip_weights(prompt)))


def _words(one: Mapping[str, Any], *keys: str) -> str:
    """The first of the keys that has a value, as text: a label may be the number of a class."""
    value = next((one[key] for key in keys if one.get(key) is not None), "")
    text = encodable(value if isinstance(value, str) else shorten(value))
    if len(text) > MOST_WORDS:
        raise RealignError(f"The words '{shorten(text)}' are {len(text):,} characters: give at most {MOST_WORDS:,}.")
    return text


def _region(phrase: str, text: str, **found: Any) -> Region:
    """A region for words of the text; words that are not in it are a thing that the prompt does not name."""
    span = nearest_span(phrase, strip_weights(text)) if phrase else None
    words = content_words(span or phrase)
    return Region(tag=words[-1] if words else "thing", phrase=span or "", **found)


def _noted(
    prompt: str, regions: list[Region], given: Sequence[int | None] = (), notes: Sequence[str] = ()
) -> RegionSet:
    """The set: equal phrases get the occurrences that are not `given` in order, and what re-weights nothing is told."""
    placed = with_occurrences(regions, strip_weights(prompt), given or [None] * len(regions))
    foreign = [f"'{r.tag}' is not in the prompt, so it re-weights nothing." for r in placed if not r.phrase]
    return RegionSet(prompt, tuple(placed), (*notes, *foreign, *empty_masks(placed)))


def _likelihood(value: Any, phrase: str, notes: list[str]) -> float:
    """One of LIKELIHOODS; CERTAIN without a value, and the nearest with a note for another number."""
    if value is None:
        return CERTAIN
    number = _given(value, "likelihood", phrase, "2 (certain), 0.5 (may appear) or 0 (unlikely)")
    nearest = min(LIKELIHOODS, key=lambda allowed: abs(allowed - number))
    if nearest != number:
        notes.append(f"The likelihood {number:g} of '{shorten(phrase)}' was taken as {nearest:g}.")
    return nearest


def _given(value: Any, what: str, phrase: str, allowed: str) -> float:
    """A number of a region."""
    try:
        return _number(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RealignError(f"The {what} of '{shorten(phrase)}' is {quote(value)}: give {allowed}.") from error


def _number(value: Any) -> float:
    """A finite number, also one written as a string; True and False are none."""
    number = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _corners(box: Any, size: Size | None, phrase: str, notes: list[str]) -> Box:
    try:
        x0, y0, x1, y1 = (_number(value) for value in ([] if isinstance(box, (str, Mapping)) else box))
    except (TypeError, ValueError, OverflowError) as error:
        raise RealignError(f"A region's box must be four numbers [x0, y0, x1, y1], but is {shorten(box)}.") from error
    if max(x0, y0, x1, y1) > 1:
        return _fractions((x0, y0, x1, y1), size, phrase, notes)
    return _inside((x0, y0, x1, y1), size or UNKNOWN, phrase, notes)


def _fractions(corners: Box, size: Size | None, phrase: str, notes: list[str]) -> Box:
    if size is None:
        raise RealignError("Bounding boxes in pixels need the size of the image: connect the image they were drawn on.")
    height, width = size
    x0, y0, x1, y1 = corners
    return _inside((x0 / width, y0 / height, x1 / width, y1 / height), size, phrase, notes)


def _inside(corners: Box, size: Size, phrase: str, notes: list[str]) -> Box:
    """What of a box (fractions) is inside the image, with a note where that is not all."""
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    if not (x1 > x0 and y1 > y0):
        raise RealignError(
            f"The box {tuple(round(v, 3) for v in corners)} has no area inside the image; draw it again."
        )
    pixels = (size[1], size[0]) * 2
    if any(abs(a - b) * side > OUTSIDE for a, b, side in zip(corners, (x0, y0, x1, y1), pixels, strict=True)):
        notes.append(f"The box of '{shorten(phrase)}' reaches out of the image: what is inside was taken.")
    return x0, y0, x1, y1


def _parsed(text: str) -> Any:
    """The JSON of a text, also when a language model wrapped it into a fence or into prose."""
    found = list(json_values(text))
    if not found:
        raise RealignError(
            f"No JSON of regions can be read from this text: '{shorten(text)}'; connect regions, or JSON "
            "that lists them."
        )
    return next((value for value in found if _lists(value)), found[0])


def _lists(value: Any) -> bool:
    """Whether it may be regions or boxes, and is not, say, a [1] in prose."""
    return isinstance(value, Mapping) or all(isinstance(one, (Mapping, list)) for one in value)


def _is_placed(value: Mapping[str, Any]) -> bool:
    """Whether it is a single region or box."""
    return any(key in value for key in ("width", "box", "bbox"))


def _is_set(value: Any) -> bool:
    return isinstance(value, Mapping) and "regions" in value


def _needed(text: str, what: str) -> str:
    if not text.strip():
        raise RealignError(f"Regions from {what} need the prompt: fill in the text that the image is made from.")
    return text
