"""Caption a folder of images with BLIP-2: `photo.jpg` gets `photo.txt` beside it.

    python scripts/caption.py photos --captioner models/blip2-opt-2.7b
    python scripts/caption.py photos --captioner models/blip2-flan-t5-xl --num-beams 5 --recursive

Reads .png, .jpg, .jpeg, .jfif, .webp, .gif (the first image), .bmp, .tif, and .avif if Pillow can; not hidden files
such as ._photo.png. Images that have a .txt already are skipped, so a stopped run continues where it was; --overwrite
starts over. A text is written whole or not at all. An image that cannot be read is named and left out; the exit status
is then 1. Images above 16 megapixels are scaled down.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..cli import hardware
from ..core.errors import RealignError, exit_on_error
from ..core.files import write_whole
from ..core.pictures import SUFFIXES, find_pictures, open_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with the images")
    parser.add_argument("--captioner", type=Path, required=True, help="a Hugging Face folder of a captioning BLIP-2")
    parser.add_argument("--recursive", action="store_true", help="also caption the folders in it")
    parser.add_argument("--overwrite", action="store_true", help="also caption images that have a .txt")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once (8)")
    parser.add_argument("--max-tokens", type=int, default=32, help="longest caption, in tokens (32)")
    parser.add_argument("--num-beams", type=int, default=1, help="1: greedy search; more: beam search (1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0: sample tokens at this temperature (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling with a temperature (0)")
    parser.add_argument("--eight-bit", action="store_true", help="hold the model in 8 bits (needs bitsandbytes)")
    hardware.add_arguments(parser)
    options = parser.parse_args()
    again = "captions every image again" if options.overwrite else "continues where it was"
    with exit_on_error("caption", f"stopped; the same command {again}."):
        failed = run(options)
    sys.exit(1 if failed else 0)


def run(options: argparse.Namespace) -> int:
    """Caption the images that have no caption yet. Returns how many images could not be read."""
    from ..perception.captioner import Captioner, check_generation

    writing = {name: getattr(options, name) for name in ("max_tokens", "num_beams", "temperature", "seed")}
    check_generation(**writing)
    found = images_in(options.folder, options.recursive)
    todo = [file for file in found if options.overwrite or not text_of(file).exists()]
    print(f"{len(found)} images, {len(found) - len(todo)} of them with a caption.")
    if not todo:
        return 0
    captioner = Captioner.load(options.captioner, *hardware.device_and_dtype(options), eight_bit=options.eight_bit)
    failed = 0
    with tqdm(total=len(todo), unit="image") as bar:
        size = max(1, options.batch_size)
        for files in (todo[start : start + size] for start in range(0, len(todo), size)):
            pictures = {}
            for file in files:
                try:
                    pictures[file] = open_picture(file)
                except Exception as error:  # Pillow raises errors of many kinds
                    bar.write(f"caption: '{file}' was left out because it cannot be read ({error}).", file=sys.stderr)
            captions = captioner.caption(list(pictures.values()), **writing) if pictures else []
            for file, caption in zip(pictures, captions, strict=True):
                write_whole(text_of(file), caption + "\n")
            failed += len(files) - len(pictures)
            bar.update(len(files))
    print(f"{len(todo) - failed} captions written" + (f"; {failed} images could not be read." if failed else "."))
    return failed


def images_in(folder: Path, recursive: bool) -> list[Path]:
    """The folder's images, sorted by name. Prints which files are left out."""
    if not folder.is_dir():
        raise RealignError(f"There is no folder '{folder}': give the folder that holds the images.")
    found, left_out = find_pictures(folder, recursive=recursive)
    if left_out:
        print(left_out)
    if not found:
        also = "" if recursive else ", or add --recursive for the folders in it"
        raise RealignError(f"There are no images in '{folder}' ({', '.join(SUFFIXES)}): give another folder{also}.")
    seen: dict[Path, Path] = {}
    for file in found:
        if (other := seen.setdefault(text_of(file), file)) is not file:
            raise RealignError(
                f"'{other}' and '{file.name}' would both get '{text_of(file).name}': rename one of them."
            )
    return found


def text_of(image: Path) -> Path:
    """The file of an image's caption."""
    return image.with_suffix(".txt")


if __name__ == "__main__":
    main()
