"""How a part is cut into tiles where nobody said: small defects keep their pixels (before hop 1)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from contract.dataset import Sample
from contract.errors import ImageError
from contract.images import PixelFormat, to_channels
from contract.part_pictures import AS_CUT, Line, read_corrected
from contract.preprocess import prepare
from contract.recipe import Recipe, Tiling
from training.augment import layout_variety

PROBES = 48
PROBE_SIDE = 64  # pixels
LARGEST_WHOLE = 512  # pixels a side that one tile may stand for
OVERLAP_SHARE = 1 / 8  # of a tile's side: what lies on a seam is seen whole by one of two tiles
MOST_TILES = 4  # a side
OWN_LAYOUT = 0.5  # variety from which parts share too little of a layout for anything to be missed at its place


def choose_tiling(samples: Sequence[Sample], size: int, line: Line = AS_CUT) -> Tiling:
    """As few tiles of ``size`` pixels as stand for ``LARGEST_WHOLE`` pixels of a part each; raises ImageError.

    Parts that share a layout stay whole however large they are: a tile does not know where on the part it lies, so a
    hole that is missing would be missed by nobody.
    """
    probed = [samples[at] for at in np.linspace(0, len(samples) - 1, min(PROBES, len(samples))).round().astype(int)]
    whole = Recipe(tile_hw=(PROBE_SIDE, PROBE_SIDE))
    sides, thumbnails = [], []
    for sample in probed:
        try:
            # In colour, which every flat field takes.
            colour = read_corrected(sample.path, whole.model_copy(update={"channels": 3}), line)
            pixels = to_channels(colour, PixelFormat.RGB8, whole.channels)
        except ImageError as error:
            raise ImageError(f"{error}. Remove the file or replace it, then train again") from error
        sides.append(pixels.shape[:2])
        thumbnails.append(prepare(pixels, whole).tiles[0])
    rows, columns = (_count(statistics.median(side[axis] for side in sides)) for axis in (0, 1))
    if rows == columns == 1:
        return Tiling()
    names = {name: number for number, name in enumerate(dict.fromkeys(sample.group for sample in probed))}
    parts = torch.tensor([names[sample.group] for sample in probed])
    grey = torch.from_numpy(np.stack(thumbnails)).permute(0, 3, 1, 2).float() / 255.0
    if layout_variety(grey, parts) < OWN_LAYOUT:
        return Tiling()
    return Tiling(rows=rows, columns=columns, overlap_px=round(OVERLAP_SHARE * size))


def _count(side: float) -> int:
    return min(MOST_TILES, max(1, math.ceil(side / LARGEST_WHOLE)))
