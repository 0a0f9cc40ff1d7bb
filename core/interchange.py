"""Regions to and from what other node packs speak: MASK batches, BOUNDING_BOX dictionaries, JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .errors import RealignError
from .json_text import json_values
from .masks import Size, as_masks, box_mask, empty_masks, mask_box
from .regions import CERTAIN, LIKELIHOODS, Box, Region, RegionSet, free_occurrence
from .words import content_words, nearest_span, noun_phrases, occurrences, unweighted


def region_sets(value: Any, *, text: str | None = "", size: Size | None = None) -> tuple[RegionSet, ...]:
    """Whatever came through a REGIONS socket, as one set an image.

    value: our own sets; masks [N, H, W] (mask i belongs to the text's i-th thing); bounding boxes `{x, y, width,
    height}` in pixels, one, a list, or a list for each image (a `label` is taken as the phrase); or text with JSON of
    such boxes, or as `to_json` writes it, its boxes as fractions or, above 1, in pixels.
    text: the prompt, needed for what does not bring its own; None as from a linked node is none. size: (H, W) of the
    image, needed for boxes in pixels.

    Raises:
        RealignError: none of these, a missing text or size, or more masks than the text has things.
    """
    text = text or ""
    if isinstance(value, RegionSet):
        return (value,)
    if isinstance(value, Tensor):
        return (_from_masks(value, _needed(text, "masks")),)
    if isinstance(value, str):
        return tuple(_from_json(one, text, size) for one in _images(_parsed(value)))
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and value and all(isinstance(one, RegionSet) for one in value):
        return tuple(value)
    if isinstance(value, Sequence) and all(isinstance(one, (Mapping, Sequence)) for one in value):
        images = value if value and not isinstance(value[0], Mapping) else [value]
        return tuple(_from_boxes(boxes, _needed(text, "bounding boxes"), size) for boxes in images)
    raise RealignError(
        f"Regions cannot be made of a {type(value).__name__}: connect regions, masks, bounding boxes or JSON text."
    )


def for_images(sets: Sequence[RegionSet], count: int) -> tuple[RegionSet, ...]:
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
            boxes.append({**box, "label": region.phrase or region.tag, "score": region.detection or 1.0})
        out.append(boxes)
    return out


def to_json(sets: Sequence[RegionSet]) -> str:
    """All sets as JSON text: a list with one object an image; masks are told by their box and area."""
    return json.dumps([one.to_dict() for one in sets], indent=2, ensure_ascii=False)


def _from_masks(value: Tensor, text: str) -> RegionSet:
    masks, things = as_masks(value), noun_phrases(unweighted(text))
    if len(masks) > len(things):
        raise RealignError(
            f"There are {len(masks)} masks but the text '{text}' names {len(things)} things: give one mask a thing, "
            "in the order of the text, or use Region from Mask to say which is which."
        )
    found = [_region(thing, text, mask=mask, box=mask_box(mask)) for thing, mask in zip(things, masks, strict=False)]
    rest = [_region(thing, text) for thing in things[len(masks) :]]
    return _noted(text, [*found, *rest])


def _from_boxes(boxes: Any, text: str, size: Size | None) -> RegionSet:
    things = noun_phrases(unweighted(text))
    found = [_pixels(box) for box in boxes]
    labels = [_words(box, "label") for box in boxes]
    if not any(labels) and len(boxes) > len(things):
        raise RealignError(
            f"There are {len(boxes)} bounding boxes but the text '{text}' names {len(things)} things: give one a thing."
        )
    regions = []
    for i, (corners, score) in enumerate(found):
        corners = _fractions(corners, size)
        phrase = labels[i] or (things[i] if i < len(things) else "")
        regions.append(_region(phrase, text, box=corners, mask=box_mask(corners, size), detection=score))
    return _noted(text, regions)


def _pixels(box: Any) -> tuple[Box, float | None]:
    """The corners of a bounding box in pixels, and its score."""
    try:
        x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))
        score = box.get("score")
        return (x, y, x + width, y + height), None if score is None else float(score)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise RealignError(
            f"A bounding box needs numbers x, y, width and height, and a number as its score if it has one, but is "
            f"{_short(box)}."
        ) from error


def _images(value: Any) -> list[Any]:
    """What was read from JSON, for each image: a list of sets or of lists is one of several images."""
    several = isinstance(value, list) and value and (_is_set(value[0]) or all(isinstance(one, list) for one in value))
    return value if several else [value]


def _from_json(value: Any, text: str, size: Size | None) -> RegionSet:
    """One image's regions: an object with `regions`, or a list of regions or boxes, or one of these alone."""
    own = value.get("prompt") if isinstance(value, Mapping) else None
    prompt = text or (own if isinstance(own, str) else "")
    if isinstance(value, Mapping):
        value = value["regions"] if "regions" in value else [value] if _is_placed(value) else None
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RealignError(
            'The JSON text lists no regions: write {"regions": [{"phrase": "a red circle", "box": [0, 0, 0.5, 1]}]}.'
        )
    if value and all("width" in one for one in value):
        return _from_boxes(value, _needed(prompt, "bounding boxes"), size)
    _needed(prompt, "JSON text without a prompt")
    return _noted(prompt, [_written(one, prompt, size) for one in value], [_place(one, prompt) for one in value])


def _written(one: Mapping[str, Any], prompt: str, size: Size | None) -> Region:
    """A region as JSON describes it."""
    box = one.get("box", one.get("bbox"))
    corners = None if box is None else _corners(box, size)
    mask = None if corners is None else box_mask(corners, size or (512, 512))
    phrase = _words(one, "phrase", "label")
    region = _region(phrase, prompt, mask=mask, box=corners)
    if _place(one, prompt) is not None:
        region = replace(region, phrase=phrase)
    tag = _words(one, "tag") or region.tag
    return replace(region, tag=tag, likelihood=_likelihood(one.get("likelihood", CERTAIN)))


def _place(one: Mapping[str, Any], prompt: str) -> int | None:
    """The `occurrence` that JSON gives for a region; None where there is none, or the prompt has it not."""
    given = one.get("occurrence")
    places = occurrences(_words(one, "phrase", "label"), unweighted(prompt))
    return given if type(given) is int and 0 <= given < len(places) else None


def _words(one: Mapping[str, Any], *keys: str) -> str:
    """The first of the keys that has a value, as text: a label may be the number of a class."""
    return next((str(one[key]) for key in keys if one.get(key) is not None), "")


def _region(phrase: str, text: str, **found: Any) -> Region:
    """A region for words of the text; words that are not in it are a thing that the prompt does not name."""
    span = nearest_span(phrase, unweighted(text)) if phrase else None
    words = content_words(span or phrase)
    return Region(tag=words[-1] if words else "thing", phrase=span or "", **found)


def _noted(prompt: str, regions: list[Region], given: Sequence[int | None] = ()) -> RegionSet:
    """The set: equal phrases get the occurrences that are not `given` in order, and what re-weights nothing is told."""
    placed = {i: replace(regions[i], occurrence=n) for i, n in enumerate(given) if n is not None}
    for i, region in enumerate(regions):
        if i not in placed:
            free = free_occurrence(region.phrase, unweighted(prompt), placed.values())
            placed[i] = replace(region, occurrence=free)
    foreign = [f"'{r.tag}' is not in the prompt, so it re-weights nothing." for r in regions if not r.phrase]
    return RegionSet(prompt, tuple(placed[i] for i in range(len(regions))), tuple(foreign + empty_masks(regions)))


def _likelihood(value: Any) -> float:
    try:
        return min(LIKELIHOODS, key=lambda allowed: abs(allowed - float(value)))
    except (TypeError, ValueError, OverflowError):
        return CERTAIN


def _corners(box: Any, size: Size | None) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise RealignError(f"A region's box must be four numbers [x0, y0, x1, y1], but is {_short(box)}.") from error
    return _fractions((x0, y0, x1, y1), size) if max(x0, y0, x1, y1) > 1 else _ordered((x0, y0, x1, y1))


def _fractions(corners: Box, size: Size | None) -> Box:
    if size is None:
        raise RealignError("Bounding boxes in pixels need the size of the image: connect the image they were drawn on.")
    height, width = size
    x0, y0, x1, y1 = corners
    return _ordered((x0 / width, y0 / height, x1 / width, y1 / height))


def _ordered(corners: Box) -> Box:
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    if not (x1 > x0 and y1 > y0):
        raise RealignError(
            f"The box {tuple(round(v, 3) for v in corners)} has no area inside the image; draw it again."
        )
    return x0, y0, x1, y1


def _parsed(text: str) -> Any:
    """The JSON of a text, also when a language model wrapped it into a fence or into prose."""
    found = list(json_values(text))
    if not found:
        raise RealignError(f"This text is no JSON: '{_short(text)}'; connect regions, or JSON text that lists them.")
    return next((value for value in found if _lists(value)), found[0])


def _lists(value: Any) -> bool:
    """Whether it may be regions or boxes, and is not, say, a [1] in prose."""
    return isinstance(value, Mapping) or all(isinstance(one, (Mapping, list)) for one in value)


def _is_placed(value: Mapping[str, Any]) -> bool:
    """Whether it is a single region or box."""
    return any(key in value for key in ("width", "box", "bbox"))


def _short(value: Any) -> str:
    """A value for a message: one line of at most 60 characters."""
    return " ".join(str(value).split())[:60]


def _is_set(value: Any) -> bool:
    return isinstance(value, Mapping) and "regions" in value


def _needed(text: str, what: str) -> str:
    if not text.strip():
        raise RealignError(f"Regions from {what} need the prompt: fill in the text that the image is made from.")
    return text
