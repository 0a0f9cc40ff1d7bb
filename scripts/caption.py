"""Caption a folder of images with BLIP-2: `photo.jpg` gets `photo.txt` beside it.

    python scripts/caption.py photos --captioner models/blip2-opt-2.7b
    python scripts/caption.py photos --captioner models/blip2-flan-t5-xl --num-beams 5 --recursive

Images are .png, .jpg, .jpeg, .jfif, .webp, .gif (of which the first image counts), .bmp, .tif, and .avif where Pillow
reads it; hidden files such as ._photo.png are left out. Images that have a .txt already are passed over, so a run that
was stopped goes on where it was; with --overwrite it starts over. A text is there whole or not at all. An image that
cannot be read is named, and the others go on; the status is then 1. One of more than 16 megapixels is scaled down.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ..core.errors import RealignError
from ..core.files import write_whole
from ..core.pictures import KINDS, opened, pictures_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the images are")
    parser.add_argument("--captioner", type=Path, required=True, help="a Hugging Face folder of a captioning BLIP-2")
    parser.add_argument("--recursive", action="store_true", help="also the folders in it")
    parser.add_argument("--overwrite", action="store_true", help="caption images again that have a .txt")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once (8)")
    parser.add_argument("--max-tokens", type=int, default=32, help="where a caption ends at the latest (32)")
    parser.add_argument("--num-beams", type=int, default=1, help="1: greedy search; more: beam search")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0: tokens are drawn by chance")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn, with a temperature")
    parser.add_argument("--eight-bit", action="store_true", help="hold the model in 8 bits (needs bitsandbytes)")
    from ..cli.hardware import add_arguments

    add_arguments(parser)
    options = parser.parse_args()
    try:
        failed = run(options)
    except (RealignError, OSError) as error:
        sys.exit(f"caption: {error}")
    except KeyboardInterrupt:
        again = "captions every image again" if options.overwrite else "goes on where it was"
        sys.exit(f"caption: stopped; the same command {again}.")
    sys.exit(1 if failed else 0)


def run(options: argparse.Namespace) -> int:
    """Caption what has no caption yet; returns how many images could not be read."""
    from ..cli.hardware import chosen
    from ..perception.captioner import Captioner, check_generation

    writing = {name: getattr(options, name) for name in ("max_tokens", "num_beams", "temperature", "seed")}
    check_generation(**writing)
    found = images_in(options.folder, options.recursive)
    todo = [file for file in found if options.overwrite or not text_of(file).exists()]
    print(f"{len(found)} images, {len(found) - len(todo)} of them with a caption.")
    if not todo:
        return 0
    captioner = Captioner.load(options.captioner, *chosen(options), eight_bit=options.eight_bit)
    failed = 0
    with tqdm(total=len(todo), unit="image") as bar:
        for files in batches(todo, options.batch_size):
            pictures = {}
            for file in files:
                try:
                    pictures[file] = opened(file)
                except Exception as error:  # Pillow raises errors of many kinds
                    bar.write(f"caption: '{file}' was left out, it cannot be read ({error}).", file=sys.stderr)
            captions = captioner.caption(list(pictures.values()), **writing) if pictures else []
            for file, caption in zip(pictures, captions, strict=True):
                write_whole(text_of(file), caption + "\n")
            failed += len(files) - len(pictures)
            bar.update(len(files))
    print(f"{len(todo) - failed} captions written" + (f"; {failed} images could not be read." if failed else "."))
    return failed


def images_in(folder: Path, recursive: bool) -> list[Path]:
    """The folder's images, in the order of their names; prints what is left out.

    Raises:
        RealignError: there is no such folder, no image in it, or two images would get the same text.
    """
    if not folder.is_dir():
        raise RealignError(f"There is no folder '{folder}': give the folder that holds the images.")
    found, left_out = pictures_in(folder, recursive=recursive)
    if left_out:
        print(left_out)
    if not found:
        also = "" if recursive else ", or add --recursive for the folders in it"
        raise RealignError(f"There are no images in '{folder}' ({', '.join(KINDS)}): give another folder{also}.")
    seen: dict[Path, Path] = {}
    for file in found:
        if (other := seen.setdefault(text_of(file), file)) is not file:
            raise RealignError(
                f"'{other}' and '{file.name}' would both get '{text_of(file).name}': rename one of them."
            )
    return found


def text_of(image: Path) -> Path:
    """Where an image's caption belongs."""
    return image.with_suffix(".txt")


def batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    size = max(1, size)
    return (files[start : start + size] for start in range(0, len(files), size))


if __name__ == "__main__":
    main()
