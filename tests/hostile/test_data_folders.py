"""Data folders as they come: torn files, odd formats, folders named like images, links in circles, next to nothing."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.dataset import load_dataset
from flawline import main
from tests.bundles import draw_data, draw_part
from training.data_check import Examination, check, summary
from training.data_findings import Finding, Level


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_data(tmp_path / "data", 12, 4, 4)


def finding(found: Examination, code: str) -> Finding:
    return next(one for one in found.findings if one.code == code)


def test_torn_and_empty_files_are_errors_each_with_its_cause(data: Path) -> None:
    good = data / "train" / "good"
    whole = (good / "part_000.png").read_bytes()
    (good / "torn.png").write_bytes(whole[: len(whole) // 2])
    (good / "empty.png").write_bytes(b"")
    (good / "text.png").write_bytes(b"this is no image")
    cv2.imwrite(str(good / "photo.jpg"), draw_part(500, side=200))
    photo = (good / "photo.jpg").read_bytes()
    (good / "photo.jpg").write_bytes(photo[: len(photo) * 2 // 3])
    bomb = bytearray(whole)
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    (good / "bomb.png").write_bytes(bytes(bomb))
    found = check(data)
    broken = {name: one for one in found.findings if one.code == "unreadable" for name in one.files}
    assert {Path(name).name for name in broken} == {"torn.png", "empty.png", "text.png", "photo.jpg", "bomb.png"}
    assert all(one.level is Level.ERROR for one in broken.values())
    assert "truncated" in broken["train/good/torn.png"].what
    assert "60000 x 60000 pixels" in broken["train/good/bomb.png"].what
    assert main(["data", "check", str(data)]) == 1
    assert any("cannot be used" in sentence for sentence in summary(load_dataset(data)))


def test_odd_formats_are_said_and_read(data: Path) -> None:
    good = data / "train" / "good"
    deep = draw_part(600).astype(np.uint16) * 257
    cv2.imwrite(str(good / "deep.png"), deep)
    cv2.imwrite(str(good / "deep.tif"), deep + 1)
    cv2.imwrite(str(good / "alpha.png"), cv2.cvtColor(draw_part(601), cv2.COLOR_GRAY2BGRA))
    shutil.move(good / "part_003.png", good / "part_003.jpg")
    cv2.imwrite(str(good / "turned.jpg"), draw_part(602))
    jpeg = (good / "turned.jpg").read_bytes()
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (good / "turned.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    cv2.imwrite(str(good / "wide.png"), cv2.resize(draw_part(603), (200, 80)))
    found = check(data)
    assert finding(found, "depth").files == ["train/good/deep.png", "train/good/deep.tif"]
    assert finding(found, "alpha").files == ["train/good/alpha.png"]
    assert "PNG named .jpg" in finding(found, "suffix").what
    assert "EXIF orientation 6" in finding(found, "orientation").what
    assert finding(found, "aspect").files == ["train/good/wide.png"]
    assert "sizes" in {one.code for one in found.findings}
    assert not [one for one in found.findings if one.code == "unreadable"]


def test_grey_and_colour_mixed_are_said(data: Path) -> None:
    cv2.imwrite(str(data / "train/good/part_000.png"), draw_part(0, colour=True))
    mixed = finding(check(data), "channels")
    assert (mixed.level, mixed.files) == (Level.WARNING, ["train/good/part_000.png"])


def test_what_lies_about_is_listed(data: Path) -> None:
    good = data / "train" / "good"
    (good / "folder.png").mkdir()
    (good / "Thumbs.db").write_bytes(b"\x00")
    shutil.copytree(data / "test" / "spot", good / "more")
    (data / "train" / "bad").mkdir()
    shutil.copy(data / "test/spot/part_000.png", data / "train/bad/part_000.png")
    (good / "circle.png").symlink_to(good / "circle.png")
    (data / "test" / "round").symlink_to(data, target_is_directory=True)
    found = check(data)
    assert finding(found, "stray-folders").files == ["train/good/folder.png"]
    assert finding(found, "stray-files").files == ["train/good/Thumbs.db"]
    assert finding(found, "stray-broken").files == ["train/good/circle.png"]
    assert set(finding(found, "stray-images").files) == {
        "train/bad/part_000.png",
        *(f"train/good/more/part_{number:03d}.png" for number in range(4)),
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_next_to_nothing_is_an_error_with_a_number(count: int, tmp_path: Path) -> None:
    data = draw_data(tmp_path, count, 0, 0)
    found = check(data)
    assert "at least 5 parts are needed" in finding(found, "amount").way_out
    assert finding(found, "amount").level is Level.ERROR
    assert finding(found, "no-test").level is Level.NOTE
    assert summary(load_dataset(data))[0].startswith(f"data: {count} good image")


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"p{number}.png").write_bytes(b"")
    found = check(tmp_path)
    assert {one.code for one in found.findings if one.level is Level.ERROR} == {"unreadable", "amount"}
    assert summary(load_dataset(tmp_path))


def test_a_folder_that_only_holds_images_and_pictures_without_content(tmp_path: Path) -> None:
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"p{number}.png"), np.full((40 + number % 2, 40), 20 * number, np.uint8))
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1), np.uint8))
    (tmp_path / "groups.txt").write_text("a note")
    found = check(tmp_path)
    assert not found.twins
    assert not found.own_twins
    assert "stray-files" not in {one.code for one in found.findings}


def test_test_images_of_one_kind_alone(data: Path) -> None:
    shutil.rmtree(data / "test" / "good")
    found = check(data)
    assert "all defective" in finding(found, "one-sided").what
    assert found.baselines == []
