"""Folders of image files, as people have them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepzero_apps.vision import image_folder, load


def fill(folder: Path, count: int, value: int, mode: str = "L") -> None:
    """Writes images of 5x4 pixels (width x height) whose pixels are value, value + 1, ..."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (5, 4), value + i).convert(mode).save(folder / f"{i:02d}.png")


def test_classes_are_the_sorted_folder_names(tmp_path: Path) -> None:
    fill(tmp_path / "dog", 10, 0)
    fill(tmp_path / "cat", 10, 100)

    splits = load("folder", root=tmp_path)

    assert splits.train.classes == ("cat", "dog")
    assert splits.name == tmp_path.name
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [14, 2, 4]
    seen = []
    for part in (splits.train, splits.validation, splits.test):
        assert part.shape == (1, 4, 5)
        seen += part.images[:, 0, 0, 0].tolist()
        assert (part.images[:, 0, 0, 0] < 100).long().tolist() == part.labels.tolist()
    assert sorted(seen) == [*range(10), *range(100, 110)]


@pytest.mark.parametrize("validation", [False, True])
def test_folders_for_splits_are_kept(tmp_path: Path, validation: bool) -> None:
    names = ["train", "test", *(["validation"] if validation else [])]
    for i, split in enumerate(names):
        for j, label in enumerate("ab"):
            fill(tmp_path / split / label, 10, 60 * i + 20 * j)

    splits = image_folder(tmp_path)

    first = splits.test.images[:, 0, 0, 0].tolist()
    assert first == [*range(60, 70), *range(80, 90)]
    assert splits.test.labels.tolist() == [0] * 10 + [1] * 10
    assert [len(splits.train), len(splits.validation)] == ([20, 20] if validation else [18, 2])


def test_one_colored_file_makes_all_rgb(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, 7)
    Image.new("RGBA", (5, 4), (1, 2, 3, 255)).save(tmp_path / "a" / "10.PNG")
    splits = image_folder(tmp_path)
    parts = (splits.train, splits.validation, splits.test)
    corners = torch.cat([part.images[:, :, 0, 0] for part in parts]).tolist()
    assert sorted(corners) == [[1, 2, 3], [7, 7, 7], [8, 8, 8], [9, 9, 9]]


def test_other_and_hidden_files_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, 7)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._00.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").write_text("x")
    splits = image_folder(tmp_path)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1, 1, 1]


def test_another_size_is_named_with_both(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, 7)
    Image.new("L", (5, 6)).save(tmp_path / "a" / "99.png")
    with pytest.raises(ValueError, match=r"got 5x6 in .*99\.png and 5x4 in .*00\.png"):
        image_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | str) -> None:
    fill(tmp_path / "a", 3, 7)
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a" / "99.png")
        content = (tmp_path / "a" / "99.png").read_bytes()[:60]
    assert isinstance(content, bytes)
    (tmp_path / "a" / "99.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"readable images, got .*99\.png"):
        image_folder(tmp_path)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, 7)
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "a" / "99.png")
    with pytest.raises(ValueError, match=r"8 bits a channel, got more in .*99\.png; convert"):
        image_folder(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder of images, found none at .*absent"):
        image_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="one folder for each class, found none in"):
        image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images in each class, found none in .*a \("):
        image_folder(tmp_path)
    fill(tmp_path / "train" / "a", 3, 7)
    with pytest.raises(FileNotFoundError, match="a folder test beside train, found none in"):
        image_folder(tmp_path)
    fill(tmp_path / "test" / "b", 3, 7)
    with pytest.raises(ValueError, match=r"have the classes of train everywhere, got .*b as well"):
        image_folder(tmp_path)
