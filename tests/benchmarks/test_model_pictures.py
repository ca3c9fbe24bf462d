"""Pictures of what a model draws: which parts are shown, and that tile, drawing and map stand side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.model_pictures import GAP_PX, first_of_each_class, main
from contract.dataset import load_dataset
from contract.recipe import Recipe, Tiling, View
from tests.bundles import draw_data, draw_part
from tests.graphs import write_bundle

SIDE = 64


def test_a_good_part_then_a_defective_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "parts", side=SIDE)
    shown = first_of_each_class(load_dataset(data).test)
    assert [sample.label for sample in shown] == ["good", "spot"]
    recipe = Recipe(name="whole", channels=1, tile_hw=(SIDE, SIDE))
    bundle = write_bundle(tmp_path / "bundle", [draw_part(number, side=SIDE) for number in range(20)], recipe)
    assert main(["--data", str(data), "--out", str(tmp_path / "out"), str(bundle.root)]) == 0
    (written,) = capsys.readouterr().out.split()
    assert written == str(tmp_path / "out" / f"{bundle.manifest.model.name}.png")
    large = cv2.imread(written)
    found = large[::2, ::2]  # small tiles in larger pixels
    np.testing.assert_array_equal(found.repeat(2, axis=0).repeat(2, axis=1), large)
    assert found.shape[0] == 2 * SIDE + GAP_PX
    rows = [found[row * (SIDE + GAP_PX) :][:SIDE].astype(np.float32) for row in range(2)]
    for row, sample in zip(rows, shown, strict=True):
        np.testing.assert_array_equal(row[:, :SIDE], cv2.imread(str(sample.path)))
    np.testing.assert_array_equal(rows[0][:, SIDE + 2 : 2 * SIDE], rows[1][:, SIDE + 2 : 2 * SIDE])  # the mean part
    assert rows[1][:, -SIDE:].max() > rows[0][:, -SIDE:].max()  # one scale: the spot shines, the good part does not


def test_parts_that_are_cut_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "parts", side=SIDE)
    recipe = Recipe(
        name="cut", channels=1, tile_hw=(SIDE // 2, SIDE // 2), views=[View(tiling=Tiling(rows=2, columns=2))]
    )
    bundle = write_bundle(tmp_path / "bundle", [draw_part(number, side=SIDE // 2) for number in range(20)], recipe)
    assert main(["--data", str(data), "--out", str(tmp_path / "out"), str(bundle.root)]) != 0
    assert "cuts a part into 4 tiles" in capsys.readouterr().err
