"""Labelled defective images -> tiles and where they are defective -> augmented with the good ones (before hop 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contract.dataset import Sample
from contract.errors import DatasetError
from contract.images import read_image
from contract.part_pictures import AS_CUT, Line, cut_like
from contract.preprocess import prepare
from contract.recipe import Recipe
from training.augment import Augmentation
from training.data import changed, draw_change, load_tiles
from training.defects import Drawn

MARKED = 128  # of a mask
LEAST_SHARE = 0.25  # of a tile's pixel that is marked: less, and the pixel is unsure
RIM = 1  # pixels around a mark that are unsure: nobody draws to the pixel


class Labelled(NamedTuple):
    """``tiles`` uint8 [M, H, W, C], each with a defect; ``shares`` uint8 [M, H, W], of each pixel that is marked.

    ``limits``: how far they may be changed, as far as the good ones.
    """

    tiles: Tensor
    shares: Tensor
    limits: Augmentation

    def to(self, device: torch.device) -> Labelled:
        return self._replace(tiles=self.tiles.to(device), shares=self.shares.to(device))

    def draw(self, count: int) -> Drawn:
        """``count`` of them, each moved, mirrored and lit anew; randomness comes from torch's global generators."""
        picked = torch.randint(len(self.tiles), (count,))
        change = draw_change(count, self.tiles.shape[1], self.tiles.shape[2], self.limits).to(self.tiles.device)
        image, places = changed(self.tiles, picked.to(self.tiles.device), change, self.limits)
        share = self.shares[places].unsqueeze(1).float() / 255.0
        defect = (share >= LEAST_SHARE).float()
        near = F.max_pool2d((share > 0).float(), 2 * RIM + 1, 1, RIM)
        return Drawn(image, defect, near * (1.0 - defect))


def load_labelled(samples: Sequence[Sample], recipe: Recipe, limits: Augmentation, line: Line = AS_CUT) -> Labelled:
    """The tiles that show a defect. Raises DatasetError where a defect vanishes at the tiles' size."""
    tiles = load_tiles(samples, recipe, line)
    grey = recipe.model_copy(update={"channels": 1})
    masks = []
    for sample in samples:
        if sample.mask is None:
            raise DatasetError(f"{sample.path}: no mask")
        mask = np.where(read_image(sample.mask, 1) >= MARKED, 255, 0).astype(np.uint8)
        own = prepare(cut_like(mask, sample.path, recipe, line), grey).tiles[..., 0]
        if own.max() < LEAST_SHARE * 255:
            raise DatasetError(
                f"{sample.path}: its defect is too small to be seen in tiles of {recipe.tile_hw[0]} px; train with "
                "--tiles, such as 2x2, or a larger --size, or take the image out"
            )
        masks.append(own)
    shares = torch.from_numpy(np.concatenate(masks))
    shown = shares.flatten(1).amax(dim=1) >= LEAST_SHARE * 255
    return Labelled(tiles[shown], shares[shown], limits)
