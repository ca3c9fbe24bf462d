"""The renderer: any process draws the same frames, and the truth is what the pixels show."""

from __future__ import annotations

import csv
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.images import PixelFormat, extent_px
from edge_runtime.synthetic import COLUMNS, DEFECTS, EXTENT_OFF_PX, SIZED, SyntheticLine, line_from, write_truth


def test_a_frame_follows_from_seed_and_index_alone() -> None:
    first, second = SyntheticLine(seed=4, parts=8), SyntheticLine(seed=4, parts=8)
    ahead = {number: first.render(number) for number in range(first.frames)}
    for number in reversed(range(second.frames)):
        if number % 7 == 0:
            assert np.array_equal(ahead[number], second.render(number))
    assert not np.array_equal(ahead[30], SyntheticLine(seed=5, parts=8).render(30))


def test_the_belt_moves_and_no_two_frames_are_alike() -> None:
    line = SyntheticLine(parts=1)
    assert not np.array_equal(line.render(0), line.render(1))


def test_grey_and_colour() -> None:
    grey, colour = SyntheticLine(parts=2), SyntheticLine(parts=2, colour=True)
    assert grey.pixel_format is PixelFormat.MONO8 and grey.render(20).shape == (480, 640)
    frame = colour.render(20)
    assert colour.pixel_format is PixelFormat.RGB8 and frame.shape == (480, 640, 3)
    assert not np.array_equal(frame[..., 0], frame[..., 2])


def test_the_truth_is_where_the_part_is() -> None:
    line = SyntheticLine(seed=2, parts=6, defects=0)
    for number in range(0, line.frames, 5):
        frame = line.render(number)
        for seen in line.seen(number):
            x, y, w, h = seen.box
            middle = frame[y + h // 4 : y + 3 * h // 4, x : x + w]
            above = frame[max(0, y - 30) : y - 8, x : x + w]
            assert float(middle.mean()) > float(above.mean()) + 20


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_every_defect_shows_where_its_mask_says(defect: str) -> None:
    """The defective part differs from the same part without its defect inside the mask, and hardly outside."""
    line, clean = SyntheticLine(seed=9, parts=12, defects=0), SyntheticLine(seed=9, parts=12, defects=0)
    line.parts[:] = [part._replace(defect=defect) for part in line.parts]
    for index in range(12):
        bad, good = line.sprite(index), clean.sprite(index)
        shown = np.abs(bad.grey * bad.cover - good.grey * good.cover)
        inside = bad.mask > 0
        assert inside.sum() >= 40
        assert float(shown[inside].mean()) > 12
        assert float(shown[~inside].mean()) < 1.0


@pytest.mark.parametrize("defect", SIZED)
def test_a_defect_is_drawn_to_size(defect: str) -> None:
    line, clean = SyntheticLine(seed=9, parts=4, defects=0), SyntheticLine(seed=9, parts=4, defects=0)
    for index, size_px in enumerate((2.5, 6.0, 13.0, 40.0)):
        line.put(index, defect, size_px)
        bad, good = line.sprite(index), clean.sprite(index)
        assert extent_px(bad.mask > 0) == pytest.approx(size_px, abs=EXTENT_OFF_PX)
        shown = np.abs(bad.grey * bad.cover - good.grey * good.cover)
        assert float(shown[bad.mask > 0].mean()) > 5 * float(shown[bad.mask == 0].mean())
    again = SyntheticLine(seed=9, parts=4, defects=1.0)
    again.put(1, defect, 6.0)
    assert all(np.array_equal(a, b) for a, b in zip(again.sprite(1), line.sprite(1), strict=True))
    line.put(1, "good")
    assert np.array_equal(line.sprite(1).grey, clean.sprite(1).grey), "nothing is left of it"


def test_what_cannot_be_drawn_to_size_is_explained() -> None:
    line = SyntheticLine(parts=1)
    with pytest.raises(ConfigError, match=r"no defect 'missing_hole' can be drawn to size; there are: scratch, dent"):
        line.put(0, "missing_hole", 5.0)
    with pytest.raises(ConfigError, match="no defect 'rust' can be drawn; there are: good, scratch"):
        line.put(0, "rust")
    line.put(0, "dent", 400.0)
    with pytest.raises(ConfigError, match="a defect of 400 px finds no place on part 0"):
        line.sprite(0)


def test_touching_parts_and_two_in_view_occur() -> None:
    line = SyntheticLine(seed=1, parts=60)
    gaps = [
        after.front - before.front - before.box_w for before, after in zip(line.parts, line.parts[1:], strict=False)
    ]
    assert min(gaps) >= 0 and sum(gap <= 2 for gap in gaps) >= 3
    assert max(len(line.seen(number)) for number in range(line.frames)) >= 2


def test_the_share_of_defects_holds() -> None:
    line = SyntheticLine(seed=1, parts=400, defects=0.25)
    share = sum(part.defective for part in line.parts) / 400
    assert 0.18 < share < 0.32
    assert {part.defect for part in line.parts} == {"good", *DEFECTS}


def test_the_table_of_the_truth(tmp_path: Path) -> None:
    line = SyntheticLine(seed=3, parts=5)
    rows = write_truth(line, tmp_path / "truth.csv")
    with (tmp_path / "truth.csv").open() as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        table = list(reader)
    assert len(table) == rows
    assert {int(row["frame"]) for row in table} == set(range(line.frames))
    assert {row["part_index"] for row in table if row["part_visible"] == "1"} == {str(i) for i in range(5)}
    empty = next(row for row in table if row["part_visible"] == "0")
    assert empty["defect_type"] == "empty_belt" and empty["part_x"] == ""


def test_a_frame_is_drawn_fast() -> None:
    line = SyntheticLine(seed=1, parts=10)
    started = time.process_time()
    for number in range(100):
        line.render(number)
    assert (time.process_time() - started) / 100 < 0.02  # 1 to 3 ms; the rest is a busy machine


def test_a_part_that_passes_again_is_the_same_part_in_another_place() -> None:
    line, once = SyntheticLine(seed=3, parts=4, defects=0.5, repeat=5), SyntheticLine(seed=3, parts=4, defects=0.5)
    assert len(line.parts) == 20 and [part.number for part in line.parts] == list(range(20))
    assert [part.defect for part in line.parts[::5]] == [part.defect for part in once.parts]
    assert np.array_equal(line.sprite(5).grey, once.sprite(1).grey), "the first pass is the part as it was"
    for plate in range(4):
        passes = line.parts[5 * plate : 5 * plate + 5]
        assert len({part.defect for part in passes}) == 1
        assert len({(part.y, part.box_w, part.box_h) for part in passes}) > 1
        first, second = (line.sprite(part.number).grey.astype(np.float64) for part in passes[:2])
        other = line.sprite((5 * plate + 5) % 20).grey.astype(np.float64)
        rows, columns = (min(each.shape[at] for each in (first, second, other)) - 20 for at in (0, 1))
        inner = np.s_[20:rows, 20:columns]
        assert np.abs(first[inner] - second[inner]).mean() < 0.7 * np.abs(first[inner] - other[inner]).mean()
    gaps = [after.front - before.front - before.box_w for before, after in pairwise(line.parts)]
    assert min(gaps) >= 40


def test_options_that_are_wrong_are_explained() -> None:
    assert line_from({"seed": "7", "parts": "3", "colour": "1"}).colour
    for options, word in (({"sped": "3"}, "speed"), ({"parts": "many"}, "parts"), ({"parts": "0"}, "1 part")):
        with pytest.raises(ConfigError, match=word):
            line_from(options)
