"""Regions to and from the formats of other node packs: MASK batches, BOUNDING_BOX dictionaries, JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .errors import RealignError
from .json_text import finite_number, json_values
from .masks import Size, as_masks, box_mask, check_memory, empty_masks, mask_box
from .phrases import nearest_span, noun_phrases
from .regions import CERTAIN, Box, Region, RegionSet, check_count, check_prompt, nearest_likelihood, with_occurrences
from .text import encodable, quote, shorten
from .words import content_words, occurrences, strip_weights

MOST_IMAGES = 10_000
"""The most images whose regions are read at once."""
MOST_WORDS = 1000
"""The most characters of a region's words."""
UNKNOWN = (512, 512)
"""(height, width) of masks made from boxes in fractions, where the image's size is unknown."""
OUTSIDE = 0.5
"""Pixels by which a box may reach out of its image without a note, as rounding makes it."""


def region_sets(value: Any, *, text: str | None = "", size: Size | None = None) -> tuple[RegionSet, ...]:
    """Whatever came through a REGIONS socket, as one set per image.

    value: region sets; masks [N, H, W] (mask i belongs to the i-th thing in the text); bounding boxes `{x, y, width,
    height}` in pixels, one, a list, or a list per image (a `label` becomes the phrase); or JSON text with such boxes or
    in the form of `to_json`, whose boxes are fractions, or pixels if a number exceeds 1.
    text: the prompt, for what does not bring its own; None counts as empty. size: (H, W) of the image, for boxes in
    pixels.

    A number that is NaN, infinite or a bool is refused. What is repaired (a likelihood between 0, 0.5 and 2, an
    occurrence that the prompt lacks, a box that reaches out of the image) is noted in the set.

    Raises:
        RealignError: none of these, a missing text or size, more masks than things in the text, a value out of its
            range, or more than `core.regions` and MOST_IMAGES allow.
    """
    text = encodable(text or "")
    if isinstance(value, RegionSet):
        return (value,)
    if isinstance(value, Tensor):
        return (_from_masks(value, _required(text, "masks")),)
    if isinstance(value, str):
        images = _images(_parse(value))
        _check_images(images, size)
        return tuple(_from_json(image, text, size) for image in images)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and value and all(isinstance(item, RegionSet) for item in value):
        return tuple(value)
    if isinstance(value, Sequence) and all(isinstance(item, (Mapping, Sequence)) for item in value):
        images = value if value and not isinstance(value[0], Mapping) else [value]
        _check_images(images, size)
        return tuple(_from_boxes(boxes, _required(text, "bounding boxes"), size) for boxes in images)
    raise RealignError(
        f"Regions cannot be made of a {type(value).__name__}: connect regions, masks, bounding boxes or JSON text."
    )


def broadcast_sets(sets: Sequence[RegionSet], count: int) -> tuple[RegionSet, ...]:
    """One set per image; a single set serves all of them, another number raises a RealignError."""
    if len(sets) not in (1, count):
        raise RealignError(f"There are regions for {len(sets)} images but {count} images: connect those of this batch.")
    return tuple(sets) * (count if len(sets) == 1 else 1)


def bounding_boxes(sets: Sequence[RegionSet], size: Size) -> list[list[dict[str, Any]]]:
    """Per image the boxes `{x, y, width, height, label, score}`, in pixels, of its regions that have one."""
    return [[_bounding_box(region, size) for region in regions if region.box is not None] for regions in sets]


def _bounding_box(region: Region, size: Size) -> dict[str, Any]:
    assert region.box is not None
    height, width = size
    x0, y0, x1, y1 = region.box
    left, top = round(x0 * width), round(y0 * height)
    box = {"x": left, "y": top, "width": round(x1 * width) - left, "height": round(y1 * height) - top}
    score = 1.0 if region.detection is None else region.detection
    return {**box, "label": region.phrase or region.tag, "score": score}


def to_json(sets: Sequence[RegionSet]) -> str:
    """All sets as JSON text: a list with one object per image. A mask is represented by its box and area."""
    return json.dumps([regions.to_dict() for regions in sets], indent=2, ensure_ascii=False)


# Masks and bounding boxes


def _from_masks(value: Tensor, text: str) -> RegionSet:
    check_prompt(text)
    masks, things = as_masks(value), noun_phrases(strip_weights(text))
    check_count(len(things), "things in the prompt")
    if len(masks) > len(things):
        raise RealignError(
            f"There are {len(masks)} masks but the text '{text}' names {len(things)} things: give one mask per thing, "
            "in the order of the text, or use Region from Mask to say which is which."
        )
    found = [_region(thing, text, mask=mask, box=mask_box(mask)) for thing, mask in zip(things, masks, strict=False)]
    rest = [_region(thing, text) for thing in things[len(masks) :]]
    return _region_set(text, [*found, *rest])


def _from_boxes(boxes: Any, text: str, size: Size | None) -> RegionSet:
    check_prompt(text)
    check_count(len(boxes), "bounding boxes")
    things = noun_phrases(strip_weights(text))
    corners_and_scores = [_pixels(box) for box in boxes]
    labels = [_words(box, "label") for box in boxes]
    if not any(labels) and len(boxes) > len(things):
        raise RealignError(
            f"There are {len(boxes)} bounding boxes but the text '{text}' names {len(things)} things: give one per "
            "thing."
        )
    if size is None:
        raise RealignError("Bounding boxes in pixels need the size of the image: connect the image they were drawn on.")
    regions, notes = [], []
    for i, (corners, score) in enumerate(corners_and_scores):
        phrase = labels[i] or (things[i] if i < len(things) else "")
        corners = _fractions(corners, size, phrase, notes)
        regions.append(_region(phrase, text, box=corners, mask=box_mask(corners, size), detection=score))
    return _region_set(text, regions, notes=notes)


def _pixels(box: Any) -> tuple[Box, float | None]:
    """The corners of a bounding box in pixels, and its score."""
    if not isinstance(box, Mapping):
        raise RealignError(f"A bounding box must have numbers x, y, width and height, but is {quote(box)}.")
    missing = [key for key in ("x", "y", "width", "height") if key not in box]
    if missing:
        raise RealignError(f"A bounding box has no {missing[0]}: give numbers x, y, width and height.")

    def number(key: str) -> float:
        return _number(box[key], f"The {key} of a bounding box is {quote(box[key])}: give a number.")

    x, y, width, height = map(number, ("x", "y", "width", "height"))
    return (x, y, x + width, y + height), None if box.get("score") is None else number("score")


# JSON text


def _parse(text: str) -> Any:
    """The JSON of a text, also where a language model put it into a fence or into prose."""
    values = list(json_values(text))
    if not values:
        raise RealignError(
            f"No JSON of regions can be read from this text: '{shorten(text)}'; connect regions, or JSON "
            "that lists them."
        )
    return next((value for value in values if _may_be_regions(value)), values[0])


def _may_be_regions(value: Any) -> bool:
    """Whether JSON may hold regions or boxes, and is not, say, a [1] in prose."""
    return isinstance(value, Mapping) or all(isinstance(item, (Mapping, list)) for item in value)


def _images(value: Any) -> list[Any]:
    """The JSON of each image: a list of sets, or of lists, is one of several images."""
    if not isinstance(value, list) or not value:
        return [value]
    sets = isinstance(value[0], Mapping) and "regions" in value[0]
    return value if sets or all(isinstance(item, list) for item in value) else [value]


def _check_images(images: Sequence[Any], size: Size | None) -> None:
    """Raise a RealignError where there are too many images, or no room for the masks of all their regions."""
    if len(images) > MOST_IMAGES:
        raise RealignError(
            f"There are regions for {len(images):,} images: give those of at most {MOST_IMAGES:,} at once."
        )
    regions = [image.get("regions") if isinstance(image, Mapping) else image for image in images]
    check_memory(sum(len(items) for items in regions if isinstance(items, list)), size or UNKNOWN)


def _from_json(value: Any, text: str, size: Size | None) -> RegionSet:
    """One image's regions: an object with `regions`, a list of regions or boxes, or a single one of these."""
    prompt = text
    if isinstance(value, Mapping):
        if not text and isinstance(value.get("prompt"), str):
            prompt = encodable(value["prompt"])
        single = any(key in value for key in ("width", "box", "bbox"))
        value = value.get("regions", [value] if single else None)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RealignError(
            'The JSON text lists no regions: write {"regions": [{"phrase": "a red circle", "box": [0, 0, 0.5, 1]}]}.'
        )
    if value and all("width" in item for item in value):
        return _from_boxes(value, _required(prompt, "bounding boxes"), size)
    check_prompt(_required(prompt, "JSON text without a prompt"))
    check_count(len(value))
    notes: list[str] = []
    regions = [_json_region(item, prompt, size, notes) for item in value]
    return _region_set(prompt, regions, [_json_occurrence(item, prompt, notes) for item in value], notes)


def _json_region(item: Mapping[str, Any], prompt: str, size: Size | None, notes: list[str]) -> Region:
    """A region as JSON describes it."""
    phrase = _words(item, "phrase", "label")
    box = item.get("box", item.get("bbox"))
    corners = None if box is None else _corners(box, size, phrase, notes)
    mask = None if corners is None else box_mask(corners, size or UNKNOWN)
    score = item.get("detection", item.get("score"))
    if score is not None:
        score = _region_number(score, "score", phrase, "a number from 0 to 1, or leave it out")
    region = _region(phrase, prompt, mask=mask, box=corners, detection=score)
    if _occurs(item.get("occurrence"), phrase, prompt):
        region = replace(region, phrase=phrase)
    tag = _words(item, "tag") or region.tag
    return replace(region, tag=tag, likelihood=_likelihood(item.get("likelihood"), phrase, notes))


def _json_occurrence(item: Mapping[str, Any], prompt: str, notes: list[str]) -> int | None:
    """The `occurrence` that JSON gives for a region; None where it gives none, or one that the prompt lacks."""
    occurrence, phrase = item.get("occurrence"), _words(item, "phrase", "label")
    if _occurs(occurrence, phrase, prompt):
        return occurrence
    if occurrence is not None and phrase and nearest_span(phrase, strip_weights(prompt)):
        notes.append(f"The prompt has no occurrence {shorten(occurrence)} of '{shorten(phrase)}': another was taken.")
    return None


def _occurs(occurrence: Any, phrase: str, prompt: str) -> bool:
    """Whether this is the number of one of a phrase's occurrences."""
    return type(occurrence) is int and 0 <= occurrence < len(occurrences(phrase, strip_weights(prompt)))


def _likelihood(value: Any, phrase: str, notes: list[str]) -> float:
    """One of LIKELIHOODS: CERTAIN without a value, and for another number the nearest one, with a note."""
    if value is None:
        return CERTAIN
    number = _region_number(value, "likelihood", phrase, "2 (certain), 0.5 (may appear) or 0 (unlikely)")
    nearest = nearest_likelihood(number)
    if nearest != number:
        notes.append(f"The likelihood {number:g} of '{shorten(phrase)}' was taken as {nearest:g}.")
    return nearest


def _region_number(value: Any, what: str, phrase: str, allowed: str) -> float:
    return _number(value, f"The {what} of '{shorten(phrase)}' is {quote(value)}: give {allowed}.")


# What all of them share


def _words(item: Mapping[str, Any], *keys: str) -> str:
    """The value of the first key that has one, as text: a label may be the number of a class."""
    value = next((item[key] for key in keys if item.get(key) is not None), "")
    text = encodable(value if isinstance(value, str) else shorten(value))
    if len(text) > MOST_WORDS:
        raise RealignError(f"The words '{shorten(text)}' are {len(text):,} characters: give at most {MOST_WORDS:,}.")
    return text


def _region(phrase: str, text: str, **values: Any) -> Region:
    """A region for words of the text. Words that are not in the text are a thing that it does not name."""
    span = nearest_span(phrase, strip_weights(text)) if phrase else None
    words = content_words(span or phrase)
    return Region(tag=words[-1] if words else "thing", phrase=span or "", **values)


def _region_set(
    prompt: str, regions: list[Region], given: Sequence[int | None] = (), notes: Sequence[str] = ()
) -> RegionSet:
    """The set, with a note on each region that re-weights nothing. given: the regions' occurrences, where known."""
    placed = with_occurrences(regions, strip_weights(prompt), given or [None] * len(regions))
    foreign = [f"'{r.tag}' is not in the prompt, so it re-weights nothing." for r in placed if not r.phrase]
    return RegionSet(prompt, tuple(placed), (*notes, *foreign, *empty_masks(placed)))


def _number(value: Any, error: str) -> float:
    number = finite_number(value)
    if number is None:
        raise RealignError(error)
    return number


def _corners(box: Any, size: Size | None, phrase: str, notes: list[str]) -> Box:
    """Four numbers of JSON as fractions of the image."""
    error = f"A region's box must be four numbers [x0, y0, x1, y1], but is {shorten(box)}."
    if not isinstance(box, list) or len(box) != 4:
        raise RealignError(error)
    x0, y0, x1, y1 = (_number(value, error) for value in box)
    if max(x0, y0, x1, y1) > 1:
        return _fractions((x0, y0, x1, y1), size, phrase, notes)
    return _clip((x0, y0, x1, y1), size or UNKNOWN, phrase, notes)


def _fractions(corners: Box, size: Size | None, phrase: str, notes: list[str]) -> Box:
    """Pixels as fractions of the image."""
    if size is None:
        raise RealignError("Bounding boxes in pixels need the size of the image: connect the image they were drawn on.")
    height, width = size
    x0, y0, x1, y1 = corners
    return _clip((x0 / width, y0 / height, x1 / width, y1 / height), size, phrase, notes)


def _clip(corners: Box, size: Size, phrase: str, notes: list[str]) -> Box:
    """The part of a box (in fractions) inside the image, with a note where that is not all."""
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    if not (x1 > x0 and y1 > y0):
        raise RealignError(
            f"The box {tuple(round(v, 3) for v in corners)} has no area inside the image; draw it again."
        )
    pixels = (size[1], size[0]) * 2
    if any(abs(a - b) * side > OUTSIDE for a, b, side in zip(corners, (x0, y0, x1, y1), pixels, strict=True)):
        notes.append(f"The box of '{shorten(phrase)}' reaches out of the image: what is inside was taken.")
    return x0, y0, x1, y1


def _required(text: str, what: str) -> str:
    if not text.strip():
        raise RealignError(f"Regions from {what} need the prompt: fill in the text that the image is made from.")
    return text
