"""What a model is known by: the contents of its files, not where they lie or how old they are."""

import os
import shutil

import pytest
from realigndiff.core.fingerprint import fingerprint_of_files


@pytest.fixture
def model(tmp_path):
    """A folder in the diffusers layout."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "unet" / "weights.safetensors").write_bytes(b"one")
    return folder


def test_a_copy_of_another_name_and_time_is_the_same_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    for file in copy.rglob("*.*"):
        os.utime(file, (1, 1))
    assert fingerprint_of_files(copy) == fingerprint_of_files(model)
    single = shutil.copy(model / "unet" / "weights.safetensors", tmp_path / "other.safetensors")
    assert fingerprint_of_files(single) == fingerprint_of_files(model / "unet" / "weights.safetensors")


@pytest.mark.parametrize("name", ["unet/weights.safetensors", "model_index.json", "tokenizer/vocab.txt"])
def test_other_contents_of_the_same_size_and_time_are_another_model(model, name):
    file = model / name
    file.parent.mkdir(exist_ok=True)
    seen = set()
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        seen |= {fingerprint_of_files(model), fingerprint_of_files(file)}
    assert len(seen) == 4


def test_a_file_of_another_name_is_another_model(model):
    before = fingerprint_of_files(model)
    (model / "unet" / "weights.safetensors").rename(model / "unet" / "weights.bin")
    assert fingerprint_of_files(model) != before


def test_notes_pictures_and_what_downloads_leave_do_not_count(model):
    before = fingerprint_of_files(model)
    (model / ".cache").mkdir()
    for name in ("README.md", "sample.png", ".cache/info.json", ".DS_Store", "unet/weights.safetensors.7.partial"):
        (model / name).write_bytes(b"x")
    assert fingerprint_of_files(model) == before


def test_links_are_followed_and_a_circle_of_them_ends(model, tmp_path):
    blobs = tmp_path / "blobs"
    shutil.move(model / "unet", blobs)
    (model / "unet").symlink_to(blobs, target_is_directory=True)
    before = fingerprint_of_files(model)
    (blobs / "weights.safetensors").write_bytes(b"two")
    assert fingerprint_of_files(model) != before
    (blobs / "again").symlink_to(model, target_is_directory=True)
    fingerprint_of_files(model)


def test_lists_beside_a_single_file_count_where_they_are_named(tmp_path):
    file = tmp_path / "ram.pth"
    file.write_bytes(b"x")
    before = fingerprint_of_files(file, ["tags.txt"])
    (tmp_path / "tags.txt").write_text("cat", encoding="utf-8")
    assert fingerprint_of_files(file, ["tags.txt"]) != before == fingerprint_of_files(file)


def test_what_is_not_there_is_as_an_empty_folder(tmp_path):
    assert fingerprint_of_files(tmp_path / "nowhere") == fingerprint_of_files(tmp_path)
