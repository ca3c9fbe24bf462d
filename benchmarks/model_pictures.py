"""What models draw: for each bundle a picture of test parts, a good one and one of each class of defects.

A row is a part as it is, as the model draws it, and the map; one scale of the map for the whole picture. The first
image of each class is taken, none is chosen. Only parts that stay whole (tiles=1x1) are shown.

    python -m benchmarks.model_pictures --data DIR --out docs/pictures/models BUNDLE [BUNDLE ...]

The bundles that ``benchmarks.models`` trained are WORK/DATA/MODEL-*/seed*/bundle, the parts that it drew are
WORK/data/synthetic_seed_11.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from contract.bundle import ROLE_GRAPH, Bundle, open_bundle
from contract.dataset import Sample, load_dataset
from contract.errors import ConfigError, FlawlineError
from training.data import load_tiles
from training.export import open_session, run_graph
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


def picture(bundle: Bundle, samples: list[Sample]) -> NDArray[np.uint8]:
    """The parts' strips below each other, RGB; raises ConfigError where the bundle cuts parts into tiles."""
    recipe = bundle.manifest.recipe
    if recipe.tiles != 1:
        raise ConfigError(f"{bundle.root}: cuts a part into {recipe.tiles} tiles; only whole parts are shown")
    tiles = load_tiles(samples, recipe)
    seen = run_graph(open_session(bundle.path(ROLE_GRAPH)), tiles.numpy())
    top = float(seen.map.max())
    rows: list[NDArray[np.uint8]] = []
    for tile, drawing, deviation in zip(tiles, seen.reconstruction, seen.map, strict=True):
        marks = cv2.resize(deviation, (tile.shape[1], tile.shape[0]), interpolation=cv2.INTER_LINEAR)
        row = strip(tile, torch.from_numpy(drawing), torch.from_numpy(marks), top)
        rows += [row, np.full((GAP_PX, row.shape[1], 3), PAPER, np.uint8)]
    larger = max(1, SHOWN_PX // recipe.tile_hw[0])
    return np.concatenate(rows[:-1]).repeat(larger, axis=0).repeat(larger, axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder of parts that the bundles were trained on")
    made.add_argument("--out", type=Path, required=True, help="folder for MODEL.png")
    made.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    options = made.parse_args(arguments)
    try:
        samples = first_of_each_class(load_dataset(options.data).test)
        options.out.mkdir(parents=True, exist_ok=True)
        for folder in options.bundles:
            bundle = open_bundle(folder)
            target = options.out / f"{bundle.manifest.model.name}.png"
            target.write_bytes(png(picture(bundle, samples)))
            sys.stdout.write(f"{target}\n")
    except FlawlineError as error:
        sys.stderr.write(f"benchmarks.model_pictures: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
