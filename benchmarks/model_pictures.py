"""What models draw: for each a picture of test parts, a good one and one of each class of defects.

A row is a part as it is, as the model draws it, and the map; one scale of the map for the whole picture. The first
image of each class is taken, none is chosen. Only parts that were drawn (synthetic://) and stay whole (tiles=1x1) are
shown. A model is a finished cell of ``benchmarks.models``, WORK/DATA/MODEL-*/seed*; exported or not.

    python -m benchmarks.models --data synthetic:// --models ae,anogan --settings steps=1200 --json FILE
    python -m benchmarks.model_pictures --out docs/pictures/models runs/models/synthetic_seed_11/*/seed0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.finished import Finished, open_cell, work_of
from contract.dataset import Sample, load_dataset
from contract.errors import ConfigError, FlawlineError
from training.data import load_tiles
from training.pictures import png, strip

GAP_PX = 4
SHOWN_PX = 128  # smaller tiles are shown in larger pixels
PAPER = 255


def first_of_each_class(samples: list[Sample]) -> list[Sample]:
    """A good part, then one of each class of defects, by name."""
    first: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: (sample.label != "good", sample.label, sample.path.name)):
        first.setdefault(sample.label, sample)
    return list(first.values())


def drawn_parts(cell: Path) -> Path:
    """The parts that the cell was trained on; raises ConfigError where they are not drawn ones."""
    data = work_of(cell) / "data" / cell.resolve().parents[1].name
    if not data.with_suffix(".drawn").exists():
        raise ConfigError(f"{cell}: not trained on drawn parts; only those of --data synthetic:// are pictured")
    return data


def picture(cell: Finished, samples: list[Sample]) -> NDArray[np.uint8]:
    """The parts' strips below each other, RGB; raises ConfigError where the model cuts parts into tiles."""
    recipe = cell.recipe
    if recipe.tiles != 1:
        raise ConfigError(f"{cell.settings.out}: cuts a part into {recipe.tiles} tiles; only whole parts are shown")
    tiles = load_tiles(samples, recipe)
    seen = cell.inspector(cell.settings.score).inspect(tiles)
    top = float(seen.map.max())
    rows: list[NDArray[np.uint8]] = []
    for tile, drawing, deviation in zip(tiles, seen.reconstruction, seen.map, strict=True):
        marks = cv2.resize(deviation.numpy(), (tile.shape[1], tile.shape[0]), interpolation=cv2.INTER_LINEAR)
        row = strip(tile, drawing, torch.from_numpy(marks), top)
        rows += [row, np.full((GAP_PX, row.shape[1], 3), PAPER, np.uint8)]
    larger = max(1, SHOWN_PX // recipe.tile_hw[0])
    return np.concatenate(rows[:-1]).repeat(larger, axis=0).repeat(larger, axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder for MODEL.png")
    made.add_argument("cells", type=Path, nargs="+", metavar="CELL")
    options = made.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for folder in options.cells:
            data = drawn_parts(folder)
            cell = open_cell(folder, data)
            target = options.out / f"{cell.settings.model}.png"
            target.write_bytes(png(picture(cell, first_of_each_class(load_dataset(data).test))))
            sys.stdout.write(f"{target}\n")
    except FlawlineError as error:
        sys.stderr.write(f"benchmarks.model_pictures: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
