"""Pictures of any kind open alike, and a folder says what it left out."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from realigndiff.core import pictures
from realigndiff.core.errors import RealignError
from realigndiff.core.pictures import SUFFIXES, UNREAD_SUFFIXES, find_pictures, is_whole_png, open_picture


@pytest.fixture
def scene():
    """No two quarters alike."""
    scene = Image.new("RGB", (64, 48), "white")
    scene.paste("red", (0, 0, 32, 24))
    scene.paste("blue", (32, 24, 64, 48))
    return scene


def distance(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def test_the_kinds_that_people_have_are_read():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= set(SUFFIXES)
    assert ".heic" in UNREAD_SUFFIXES and not UNREAD_SUFFIXES & set(SUFFIXES)
    assert (".avif" in SUFFIXES) != (".avif" in UNREAD_SUFFIXES)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_each_kind_opens(kind, scene, tmp_path):
    file = tmp_path / f"a{kind.upper()}"
    scene.save(file, format=Image.registered_extensions()[kind])
    assert distance(open_picture(file), scene) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_pillow_turns_it(orientation, scene, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    scene.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        upright = ImageOps.exif_transpose(picture)
    scene.save(tmp_path / "a.webp", exif=exif, lossless=True)
    for mode in ("RGB", "CMYK", "L"):
        scene.convert(mode).save(tmp_path / f"{mode}.tif", exif=exif)
        wanted = upright.convert(mode).convert("RGB")
        assert distance(open_picture(tmp_path / f"{mode}.tif"), wanted) < 1
    for name in ("a.png", "a.webp"):
        assert distance(open_picture(tmp_path / name), upright) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "I;16", "LA"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_picture_of_too_many_pixels_is_scaled_down(mode, turned, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 32 * 24)
    large = scene.convert("L") if mode == "I;16" else scene
    large = Image.fromarray(np.asarray(large).astype(np.uint16) * 257) if mode == "I;16" else large.convert(mode)
    kind = "tif" if mode == "CMYK" else "png"
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    large.save(tmp_path / f"a.{kind}", exif=exif)
    small = open_picture(tmp_path / f"a.{kind}")
    monkeypatch.setattr(pictures, "LARGEST", 2**24)
    whole = open_picture(tmp_path / f"a.{kind}")
    assert small.size == ((24, 32) if turned else (32, 24)) and whole.size == ((48, 64) if turned else (64, 48))
    assert distance(small, whole.resize(small.size, Image.Resampling.BOX)) < 2


def test_a_jpeg_of_too_many_pixels_is_not_decoded_whole(scene, tmp_path, monkeypatch):
    scene.resize((640, 480)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(pictures, "LARGEST", 160 * 120)
    sizes, scale = [], pictures.scale_down
    monkeypatch.setattr(pictures, "scale_down", lambda picture: sizes.append(picture.size) or scale(picture))
    assert open_picture(tmp_path / "a.jpg").size == (160, 120) and sizes == [(160, 120)]


def test_a_picture_that_pillow_refuses_for_its_size_is_one_sentence(scene, tmp_path, monkeypatch):
    scene.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RealignError, match="million pixels: scale it down"):
        open_picture(tmp_path / "a.png")


def test_of_a_folder_pictures_are_found_and_what_is_left_out_is_named(scene, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    for name in ("b.png", "a.JPG", "more/c.gif", "._b.png", "__MACOSX/b.png", "x.heic", "y.svg", "z.HEIC"):
        (tmp_path / name).touch()
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "data.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_pictures(tmp_path)
    assert [file.name for file in found.files] == ["a.JPG", "b.png", "c.gif"]
    assert "3 pictures of kinds that are not read (2 .heic, 1 .svg), and 2 hidden files" in found.left_out
    assert [file.name for file in find_pictures(tmp_path, recursive=False).files] == ["a.JPG", "b.png"]
    assert find_pictures(tmp_path / "more") == ([tmp_path / "more" / "c.gif"], "")


def test_a_folder_behind_a_hidden_one_is_read(tmp_path):
    hidden = tmp_path / ".photos"
    hidden.mkdir()
    (hidden / "a.png").touch()
    assert [file.name for file in find_pictures(hidden).files] == ["a.png"]


def test_a_png_is_whole_only_to_its_end(scene, tmp_path):
    file = tmp_path / "a.png"
    scene.save(file)
    content = file.read_bytes()
    assert is_whole_png(file)
    for length in range(0, len(content) - 4, 7):  # the last four bytes are a checksum of nothing
        file.write_bytes(content[:length])
        assert not is_whole_png(file)
    for place in (len(content) // 2, len(content) - 20):
        flipped = bytearray(content)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        assert not is_whole_png(file)
    assert not is_whole_png(tmp_path / "nowhere.png")
