"""Good images -> groups split three ways -> uint8 tiles in memory -> augmented batches (before hop 1).

The pixels go through ``contract.preprocess``, the code that the line runs. Nothing below ``test`` is ever opened.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contract.correction import open_correction
from contract.dataset import Dataset, Sample, pictures_of, sha256_of_image
from contract.errors import ConfigError, DatasetError, ImageError
from contract.fixture import fixture_of_data
from contract.images import Pixels, read_image
from contract.part_pictures import AS_CUT, Line, read_part
from contract.preprocess import prepare
from contract.recipe import Recipe, Tiling, View
from training.augment import SHIFT_SHARE, Augmentation
from training.settings import TrainSettings
from training.tiling import choose_tiling

MAX_NAME = 100  # what the bundle's manifest takes
MIN_GROUPS = 5
MIN_FIT_IMAGES = 8
MAX_CACHE_BYTES = 32 << 30
GREY_TOLERANCE = 2  # JPEG's colour conversion moves a grey pixel by up to two levels
PROBES = 8
SIDES = ("fit", "validation", "holdout")


class Split(NamedTuple):
    """Good samples by use: learnt from, used to select the weights, kept unseen for calibration."""

    fit: list[Sample]
    validation: list[Sample]
    holdout: list[Sample]
    grouping: str

    def document(self, root: Path) -> dict[str, list[dict[str, str]]]:
        """The split as the bundle keeps it: sha256, group and path relative to the data folder of each image."""
        return {name: [_row(sample, root) for sample in getattr(self, name)] for name in SIDES}


def _row(sample: Sample, root: Path) -> dict[str, str]:
    file = sample.path.relative_to(root).as_posix()
    return {"sha256": sha256_of_image(sample.path), "group": sample.group, "file": file}


def groups_in(samples: Sequence[Sample]) -> int:
    """How many parts the samples show."""
    return len({sample.group for sample in samples})


def split_by_group(dataset: Dataset, holdout: float, validation: float, seed: int) -> Split:
    """Deal whole parts to the three sides; raises DatasetError where there are too few.

    The order is a hash of seed and group, so it depends neither on the platform nor on the other groups' names.
    """
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.train:
        members[sample.group].append(sample)
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    kept = max(1, round(holdout * len(order))) if holdout > 0 else 0
    selecting = max(1, round(validation * len(order)))
    sides = [order[kept + selecting :], order[kept : kept + selecting], order[:kept]]
    fit, select, keep = ([sample for group in side for sample in members[group]] for side in sides)
    if len(order) < MIN_GROUPS or len(fit) < MIN_FIT_IMAGES:
        raise DatasetError(
            f"{dataset.root}: found {len(dataset.train)} good image(s) of {len(order)} part(s) ({dataset.grouping}), "
            f"which leaves {len(fit)} to learn from; expected at least {MIN_GROUPS} parts and {MIN_FIT_IMAGES} images "
            "to learn from, and 100 to 300 images for a useful model. Add images to train/good; where parts are told "
            "apart wrongly, give --group-pattern or groups.csv"
        )
    return Split(fit, select, keep, dataset.grouping)


def channels_of(samples: Sequence[Sample]) -> Literal[1, 3]:
    """1 where every probed image is grey (three equal channels), else 3."""
    step = max(1, len(samples) // PROBES)
    probed = [sample.path for sample in samples[::step]]
    for path in [file for part in probed for file in (pictures_of(part).values() if part.is_dir() else [part])]:
        pixels = read_image(path, 3).astype(np.int16)
        if int(np.abs(pixels - pixels.mean(axis=2, keepdims=True)).max()) > GREY_TOLERANCE:
            return 3
    return 1


def line_asked(settings: TrainSettings) -> Line:
    """What ``--preprocess`` does to pictures. Raises ConfigError where the data set was cut out by a fixture before."""
    if settings.preprocess is None:
        return AS_CUT
    if fixture_of_data(settings.data) is not None:
        raise ConfigError(
            f"--preprocess {settings.preprocess}: corrects raw pictures, and those of {settings.data} were cut out by "
            "a fixture; give raw ones, and the fixture with flawline calibrate camera --template"
        )
    correction = open_correction(settings.preprocess)
    return Line(correction, correction.placer)


def make_recipe(settings: TrainSettings, samples: Sequence[Sample], line: Line = AS_CUT) -> Recipe:
    """The recipe that the bundle will carry: one view, or one of each camera, cut into tiles.

    Raises ImageError naming the file.
    """
    fixed: dict[str, Literal[1, 3]] = {"grey": 1, "rgb": 3}
    cameras = list(pictures_of(samples[0].path)) if samples[0].path.is_dir() else []
    if settings.tiles == "auto":
        tiling = Tiling() if cameras else choose_tiling(samples, settings.size, line)
    else:
        tiling = Tiling(rows=settings.tiles[0], columns=settings.tiles[1], overlap_px=settings.overlap)
    mm_per_px = None if line.correction is None else line.correction.content.mm_per_px
    return Recipe(
        name=(settings.name or settings.data.resolve().name or "part")[:MAX_NAME],
        channels=fixed.get(settings.channels) or channels_of(samples),
        tile_hw=(settings.size, settings.size),
        views=[View(name=name, camera=name, tiling=tiling) for name in cameras]
        or [View(tiling=tiling, mm_per_px=mm_per_px)],
    )


def load_tiles(samples: Sequence[Sample], recipe: Recipe, line: Line = AS_CUT) -> Tensor:
    """Tiles of all samples as uint8 [M, H, W, C], M = samples x tiles, in order. Raises ImageError naming the file."""
    wanted = len(samples) * recipe.tiles * recipe.tile_hw[0] * recipe.tile_hw[1] * recipe.channels
    if wanted > MAX_CACHE_BYTES:
        raise DatasetError(
            f"{len(samples)} images make {wanted >> 30} GiB of tiles, at most {MAX_CACHE_BYTES >> 30} are kept in "
            "memory; use fewer images, fewer --tiles or a smaller --size"
        )

    def tiles_of(sample: Sample) -> Pixels:
        try:
            return prepare(read_part(sample.path, recipe, line), recipe).tiles
        except ImageError as error:
            raise _named(error, sample.path) from error

    with ThreadPoolExecutor(max_workers=4) as readers:
        return torch.from_numpy(np.concatenate(list(readers.map(tiles_of, samples))))


def _named(error: ImageError, path: Path) -> ImageError:
    text = str(error) if str(path) in str(error) else f"{path}: {error}"
    return ImageError(f"{text}. Remove the file or replace it, then train again")


def scale(tiles: Tensor) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1], the range of the generator's tanh."""
    # Cast first: TensorRT refuses to transpose uint8.
    return tiles.float().permute(0, 3, 1, 2) / 127.5 - 1.0


class Change(NamedTuple):
    """What augmentation does to each of n tiles: where its rows and columns come from, int64 [n, H] and [n, W], and
    how it is lit, ``gain`` and ``offset`` [n, 1, 1, 1] in -1 to 1."""

    rows: Tensor
    columns: Tensor
    gain: Tensor
    offset: Tensor

    def to(self, device: torch.device) -> Change:
        return Change(*(values.to(device) for values in self))


def draw_change(
    count: int, height: int, width: int, limits: Augmentation, generator: torch.Generator | None = None
) -> Change:
    """Changes of ``count`` tiles, from ``generator`` or torch's global one."""
    rows = _places(count, height, limits.vertical, generator)
    columns = _places(count, width, limits.horizontal, generator)
    gain, offset = torch.rand((2, count, 1, 1, 1), generator=generator).mul_(2).sub_(1)
    return Change(rows, columns, gain, offset)


def _places(count: int, length: int, mirror: bool, generator: torch.Generator | None) -> Tensor:
    """Source index of each row or column, int64 [count, length]: shifted, edges repeated, half of them mirrored."""
    most = max(1, round(SHIFT_SHARE * length))
    shift = torch.randint(-most, most + 1, (count, 1), generator=generator)
    places = (torch.arange(length) + shift).clamp_(0, length - 1)
    if mirror:
        mirrored = torch.rand((count, 1), generator=generator) < 0.5
        places = torch.where(mirrored, places.flip(1), places)
    return places


def changed(
    tiles: Tensor, indices: Tensor, change: Change, limits: Augmentation
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Tiles ``indices`` of uint8 [M, H, W, C], changed: float32 [n, C, H, W] in [-1, 1], and where each pixel is from.

    The second indexes [M, H, W, ...].
    """
    places = (indices[:, None, None], change.rows[:, :, None], change.columns[:, None, :])
    lit = scale(tiles[places]).mul_(1 + limits.contrast * change.gain).add_(2 * limits.brightness * change.offset)
    return lit.clamp_(-1.0, 1.0), places


class Batches:
    """Augmented batches of any step by its number alone: nothing to save, so a resumed run sees the same batches.

    ``tiles``: uint8 [M, H, W, C], left on its device. Each epoch is a permutation of all tiles; a batch may span two.
    """

    def __init__(
        self, tiles: Tensor, batch: int, seed: int, augmentation: Augmentation, rank: int = 0, ranks: int = 1
    ) -> None:
        self.tiles = tiles
        self._batch = batch
        self._seed = seed
        self._augmentation = augmentation
        self._mine = slice(rank, None, ranks)
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """The batch of ``step``, or this process's share of it: float32 [batch / ranks, C, H, W] in [-1, 1]."""
        return self._augment(self._indices(step), self._generator(2 * step + 1))

    def _generator(self, stream: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{stream}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

    def _indices(self, step: int) -> Tensor:
        count = len(self.tiles)
        first, last = step * self._batch, (step + 1) * self._batch
        epochs = range(first // count, (last - 1) // count + 1)
        self._epochs = {epoch: self._epochs[epoch] if epoch in self._epochs else self._order(epoch) for epoch in epochs}
        start = epochs[0] * count
        stream: Tensor = torch.cat(list(self._epochs.values()))
        return stream[first - start : last - start]

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.tiles), generator=self._generator(2 * epoch))

    def _augment(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Drawn for the whole batch, so that the processes together see what one alone would see."""
        device, limits = self.tiles.device, self._augmentation
        drawn = draw_change(self._batch, self.tiles.shape[1], self.tiles.shape[2], limits, generator)
        mine = Change(*(values[self._mine] for values in drawn)).to(device)
        return changed(self.tiles, indices[self._mine].to(device), mine, limits)[0]


def fingerprint(document: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Image and group counts of a split document, keyed as the bundle's data fingerprint."""
    counts: dict[str, Any] = {}
    for side in SIDES:
        rows = document[side]
        counts[f"{side}_images"] = len(rows)
        counts[f"{side}_groups"] = len({row["group"] for row in rows})
    return counts
