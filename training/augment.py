"""How good parts may be changed and stay good parts, decided by looking at the good images alone (before hop 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Flips = Literal["auto", "none", "horizontal", "vertical", "both"]
LEAST_JITTER, MOST_JITTER = 0.05, 0.25
SHIFT_SHARE = 0.02  # of the side
PROBES, LEAST_PROBES = 128, 16  # images; the fewer, the more tiles each has
THUMBNAIL, BLOCK = 32, 8
MIN_PARTS = 5
ALIKE = 1.5  # a mirrored block may be this much farther from other parts' blocks than an unmirrored one: chance
UNRELATED = 0.5  # correlation of images of different parts from which down they share no layout
UNSEEN = 0.03  # differences below this share of the contrast are noise
AXES = {"horizontal": 3, "vertical": 2}


class Augmentation(NamedTuple):
    """Which mirror images count as good; brightness (share of the range) and contrast (share of itself), either way.

    ``variety``: how little good parts share of a layout, from 0 (everything has its place) to 1 (a texture).
    """

    horizontal: bool = False
    vertical: bool = False
    brightness: float = LEAST_JITTER
    contrast: float = LEAST_JITTER
    variety: float = 1.0

    def sentence(self) -> str:
        """What a person reads at the start."""
        mirrored = " and ".join(f"{name}ly" for name in AXES if getattr(self, name))
        return (
            f"augmentation: {f'mirrored {mirrored}' if mirrored else 'not mirrored'}; brightness changed by up to "
            f"{self.brightness:.0%} of the range, contrast by up to {self.contrast:.0%}; "
            f"variety of layout {self.variety:.0%}"
        )


def learn_augmentation(tiles: Tensor, groups: Sequence[str], flips: Flips, places: int = 1) -> Augmentation:
    """Limits for good uint8 tiles [M, H, W, C], the ``places`` tiles of an image in a row.

    ``groups`` names the part that each tile shows. Brightness and contrast move as far as they do from image to
    image. With ``auto`` each axis is mirrored where the mirrored tiles of a part look as much like *other* parts as
    the tiles themselves.
    """
    images = len(tiles) // places
    probed = torch.linspace(0, images - 1, max(1, min(max(LEAST_PROBES, PROBES // places), images))).round().long()
    probes = (probed[:, None] * places + torch.arange(places)).flatten()
    grey = tiles[probes].float().mean(dim=3, keepdim=True).permute(0, 3, 1, 2) / 255.0
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    parts = torch.tensor([names[groups[at]] for at in probes.tolist()])
    if flips == "auto":
        mirrored = {name for name, axis in AXES.items() if mirrored_look_alike(grey, parts, axis)}
    else:
        mirrored = {"none": set(), "both": set(AXES)}.get(flips, {flips})
    # The ends of the range rather than mean and deviation: more or less of a part in view is not the light's doing.
    dark, bright = torch.quantile(grey.flatten(1), torch.tensor([0.05, 0.95]), dim=1).reshape(2, -1, places)
    contrast = bright - dark
    return Augmentation(
        horizontal="horizontal" in mirrored,
        vertical="vertical" in mirrored,
        brightness=_jitter(_half_range((dark + bright) / 2)),
        contrast=_jitter(_half_range(contrast / contrast.median(dim=0).values.clamp(min=1e-2))),
        variety=layout_variety(grey, parts, places),
    )


def layout_variety(grey: Tensor, parts: Tensor, places: int = 1) -> float:
    """0 where thumbnails of different parts correlate fully, 1 from a correlation of ``UNRELATED`` down.

    ``grey``: [M, 1, H, W], the ``places`` tiles of an image in a row, each compared with the same place of the others.
    One part alone, however often it was photographed, is no texture either: its images are compared.
    """
    small = F.interpolate(grey, (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
    small = small - small.mean(dim=1, keepdim=True)
    small = small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)
    place = torch.arange(len(grey)) % places
    same_place = (place[:, None] == place[None, :]) & ~torch.eye(len(grey), dtype=torch.bool)
    others = same_place & (parts[:, None] != parts[None, :])
    compared = others if others.any() else same_place
    if not compared.any():
        return 0.0
    alike = float((small @ small.T)[compared].median())
    return round(min(1.0, max(0.0, (1.0 - alike) / (1.0 - UNRELATED))), 3)


def _half_range(values: Tensor) -> float:
    """Half the way from the 5th to the 95th percentile of [images, places], at the typical place."""
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95]), dim=0)
    return float((high - low).median()) / 2


def _jitter(seen: float) -> float:
    return round(min(MOST_JITTER, max(LEAST_JITTER, seen)), 3)


def mirrored_look_alike(grey: Tensor, parts: Tensor, axis: int) -> bool:
    """Whether grey images [M, 1, H, W] mirrored along ``axis`` look like images of other parts.

    Compared in blocks of a thumbnail, place by place: a notch or a mark on one side fills one block and hardly moves
    the distance of whole images.
    """
    if len(set(parts.tolist())) < MIN_PARTS:
        return False
    small = F.interpolate(grey, (THUMBNAIL, THUMBNAIL), mode="area")
    # Lighting that differs from part to part must not hide a shape.
    small = (small - small.mean(dim=(2, 3), keepdim=True)) / small.std(dim=(2, 3), keepdim=True).clamp(min=1e-3)
    others = parts[:, None] != parts[None, :]
    plain = _nearest(small, small, others)
    mirrored = _nearest(small.flip(axis), small, others)
    worst = ((mirrored.median(dim=1).values + UNSEEN) / (plain.median(dim=1).values + UNSEEN)).max()
    return bool(worst <= ALIKE)


def _nearest(these: Tensor, those: Tensor, allowed: Tensor) -> Tensor:
    """Root-mean-square distance of each block to the nearest of an ``allowed`` image, give or take a pixel of place.

    Returns [blocks, M]. A part that lies beside the middle is still the part when it is mirrored.
    """
    ours = _blocks(these)
    wider = F.pad(those, (1, 1, 1, 1), mode="replicate")
    moved = [wider[:, :, y : y + THUMBNAIL, x : x + THUMBNAIL] for y in range(3) for x in range(3)]
    distances = torch.stack([torch.cdist(ours, _blocks(image)) for image in moved]).amin(dim=0) / BLOCK
    return distances.masked_fill(~allowed, torch.inf).min(dim=2).values


def _blocks(small: Tensor) -> Tensor:
    """[M, 1, T, T] -> [blocks, M, BLOCK * BLOCK]."""
    return F.unfold(small, BLOCK, stride=BLOCK).permute(2, 0, 1).contiguous()
