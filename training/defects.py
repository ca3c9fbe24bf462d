"""Synthetic defects on good tiles, drawn as one batch on the tiles' own device (before hop 1).

    shape (where)  x  fill (what is there instead)  x  opacity  ->  changed tile and the pixels that visibly changed

Nothing is downloaded and no texture is licensed: what is put in comes from the tile itself, from another tile of the
batch, or from smooth noise. Shapes follow a few formulas of distance and noise, so that a GPU draws a batch in
milliseconds. Ideas: CutPaste (arXiv 2104.04015), NSA (arXiv 2109.15222), DRAEM (arXiv 2108.07610).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

VISIBLE = 0.04  # mean change in [-1, 1] from which a pixel counts as defective: five grey levels
COVERED = 0.35  # opacity from which a pixel belongs to the shape
BORDER_SHARE = 0.2  # of the defects sit at a border of the tile, where edges break
FEATURE_SHARE = 0.2  # of them on a feature of the part, which then is spoilt
ERASED_SHARE = 0.25  # of the defective tiles lack a feature
LEAST_FEATURE = 14.0  # times the usual detail
FEATURE_CELLS = 32  # a side
FADE = 0.08  # of a window's side
# What follows holds for crisp tiles (boards, print: all dark or bright) and fades with ``crispness``.
SHARP_SHARE = 0.4  # of the shapes have edges of a pixel
MORE_OPACITY = 0.6  # added to the highest, cut at 1: more than half of the defects cover what was there
SWAPPED_WEIGHT = 0.15  # of dark and bright exchanged, beside the other fills' 1.08
CLEAN_SHARE = 0.3  # of the tiles stay as they are
OCTAVES = 10  # half octaves of noise: from 1 to about 23 grains a side
MEMBERS = 6
WINDOWS = (1, 2, 2, 2)  # rounds of drawing: on the whole tile, then on windows of half its side
ROUND_SHARE = (0.6, 0.5, 0.4, 0.3)  # of the tiles that are to be defective, in each round


class Drawn(NamedTuple):
    """``image`` float32 [N, C, H, W] in [-1, 1]; ``defect`` and ``unsure`` float32 [N, 1, H, W], 0 or 1.

    ``unsure`` marks pixels that were drawn over and hardly changed: nobody could say what they are.
    """

    image: Tensor
    defect: Tensor
    unsure: Tensor


class Frame(NamedTuple):
    """Pixel coordinates of n shapes, each turned and moved to its own centre: ``u``, ``v`` [n, 1, H, W], 1 = a side.

    ``crisp``: [n, 1, 1, 1], of the tiles that they are drawn on.
    """

    u: Tensor
    v: Tensor
    crisp: Tensor

    @property
    def like(self) -> tuple[int, int, torch.device]:
        """How many shapes, the side in pixels, and where they are computed."""
        return len(self.u), self.u.shape[-1], self.u.device


def draw(tiles: Tensor, clean_share: float = CLEAN_SHARE) -> Drawn:
    """Draw defects on ``tiles``, float32 [N, C, H, W] in [-1, 1]; randomness comes from torch's global generators."""
    changed = tiles.clone()
    shape = torch.zeros_like(tiles[:, :1])
    hit = torch.rand(len(tiles)) >= clean_share
    crisp = crispness(tiles)
    for divisor, share in zip(WINDOWS, ROUND_SHARE, strict=True):
        where = torch.nonzero(hit & (torch.rand(len(tiles)) < share)).flatten().to(tiles.device)
        if len(where):
            _draw_round(changed, shape, where, tiles.shape[-1] // divisor, crisp[where])
    where = torch.nonzero(hit & (torch.rand(len(tiles)) < ERASED_SHARE)).flatten().to(tiles.device)
    if len(where):
        _erase(changed, shape, where)
    return Drawn(changed, *label(tiles, changed, shape))


def _draw_round(changed: Tensor, shape: Tensor, where: Tensor, side: int, crisp: Tensor) -> None:
    """One defect on each of the tiles ``where``, in place, within a window of ``side`` pixels."""
    count, device = len(where), changed.device
    size = changed.shape[-1]
    places = [
        (i, *yx) for i, yx in zip(where.tolist(), torch.randint(size - side + 1, (count, 2)).tolist(), strict=True)
    ]
    ground = torch.stack([changed[i, :, y : y + side, x : x + side] for i, y, x in places])
    others = torch.randint(len(changed), (count,)).tolist()
    pool = torch.stack([changed[i, :, y : y + side, x : x + side] for i, (_, y, x) in zip(others, places, strict=True)])
    most = (0.35 + (0.85 + MORE_OPACITY * crisp) * uniform(count, 0.0, 1.0, device)).clamp(max=1.0)
    opacity = draw_shapes(ground, crisp, whole=side == size) * most
    blended = torch.lerp(ground, fill_in(ground, pool, crisp), opacity).clamp(-1.0, 1.0)
    for number, (i, y, x) in enumerate(places):
        changed[i, :, y : y + side, x : x + side] = blended[number]
        window = shape[i, :, y : y + side, x : x + side]
        torch.maximum(window, opacity[number], out=window)


def _erase(changed: Tensor, shape: Tensor, where: Tensor) -> None:
    """A feature of each of the tiles ``where`` is gone, in place: a hole, a print, a component, the surface goes on.

    Nothing happens where what would go is a mark like the texture's others, which nobody could miss.
    """
    ground = changed[where]
    count, size, device = len(ground), ground.shape[-1], ground.device
    at = frame(features(ground), size)
    radius = log_uniform(count, 0.04, 0.15, device)
    away = ((at.u / log_uniform(count, 1.0, 2.0, device)).square() + at.v.square()).sqrt()
    opacity = soft(radius - away, log_uniform(count, 1.0 / size, 0.03, device))
    angle = uniform(count, 0.0, 2 * math.pi, device)
    # From two and a half radii away: what lies there is no part of the feature any more.
    surface = _pushed(ground, 5.0 * radius * torch.cat([angle.cos(), angle.sin()], dim=1))
    without = torch.lerp(ground, surface, opacity).clamp(-1.0, 1.0)
    change = _blur((without - ground).abs().mean(dim=1, keepdim=True)).amax(dim=(1, 2, 3))
    detail = (ground - local_mean(ground, 16)).abs()[:, :, ::2, ::2].flatten(1).median(dim=1).values
    missed = (change > LEAST_FEATURE * (detail + 0.5 * VISIBLE)).view(-1, 1, 1, 1)
    changed[where] = torch.where(missed, without, ground)
    shape[where] = torch.maximum(shape[where], opacity * missed)


def crispness(tiles: Tensor) -> Tensor:
    """Share of each tile that is about as dark or as bright as anything on it, [N, 1, 1, 1].

    1 for boards and print, 0.15 for a machined plate with holes, 0.05 for a texture: a defect is as crisp as the part.
    """
    small = F.adaptive_avg_pool2d(tiles.mean(dim=1, keepdim=True), FEATURE_CELLS)
    low, high = small.amin(dim=(2, 3), keepdim=True), small.amax(dim=(2, 3), keepdim=True)
    level = (tiles.mean(dim=1, keepdim=True) - low) / (high - low).clamp(min=VISIBLE)
    return ((level < 0.1) | (level > 0.9)).float().mean(dim=(1, 2, 3), keepdim=True)


def label(before: Tensor, after: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Defective and unsure pixels: covered and visibly changed, covered or changed and not clearly so."""
    change = (after - before).abs().mean(dim=1, keepdim=True)
    near = _blur(change)  # texture crosses zero here and there inside any defect
    defect = (shape > COVERED) & (near > VISIBLE) | (change > 3 * VISIBLE)
    unsure = ~defect & ((shape > 0.1 * COVERED) | (near > 0.5 * VISIBLE))
    return defect.to(before.dtype), unsure.to(before.dtype)


def _blur(values: Tensor) -> Tensor:
    """Mean of 5 x 5 pixels, edges repeated; sums of slices, since pooling one channel is slow on a CPU."""
    for dim in (2, 3):
        length = values.shape[dim]
        wide = F.pad(values, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        values = sum((wide.narrow(dim, at, length) for at in range(1, 5)), wide.narrow(dim, 0, length)) / 5.0
    return values


# ---- random numbers and fields


def uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    """[count, 1, 1, 1], uniform between ``low`` and ``high``."""
    return (low + (high - low) * torch.rand(count, 1, 1, 1)).to(device)


def log_uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    """[count, 1, 1, 1], uniform on a logarithmic scale: as many small as large ones."""
    return uniform(count, math.log(low), math.log(high), device).exp()


def frame(centres: Tensor, size: int, crisp: Tensor | None = None) -> Frame:
    """Coordinates turned by any angle around ``centres``, [n, 2] y and x, 1 = a side, on tiles as ``crisp``."""
    count, device = len(centres), centres.device
    axis = (torch.arange(size, device=device) + 0.5) / size
    angle = uniform(count, 0.0, 2 * math.pi, device)
    dy = axis.view(1, 1, -1, 1) - centres[:, 0].view(-1, 1, 1, 1)
    dx = axis.view(1, 1, 1, -1) - centres[:, 1].view(-1, 1, 1, 1)
    u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    return Frame(u, v, torch.zeros(count, 1, 1, 1, device=device) if crisp is None else crisp)


def centres(tiles: Tensor, border_share: float) -> Tensor:
    """Where defects are on ``tiles``, [n, 2] y and x: anywhere and a little beyond, at a border, or on a feature."""
    count, device = len(tiles), tiles.device
    at = 1.1 * torch.rand(count, 2) - 0.05
    side = torch.randint(4, (count,))  # top, bottom, left, right
    off = 0.08 * torch.rand(count) - 0.03
    at_border = torch.rand(count, 2)
    at_border[torch.arange(count), side // 2] = torch.where(side % 2 == 0, off, 1.0 - off)
    kind = torch.rand(count, 1)
    at = torch.where(kind < border_share, at_border, at).to(device)
    on_feature = (kind >= border_share) & (kind < border_share + FEATURE_SHARE)
    return torch.where(on_feature.to(device), features(tiles), at)


def features(tiles: Tensor) -> Tensor:
    """A place on each of ``tiles`` where there is something to be seen that could be missing: [n, 2] y and x."""
    apart = (tiles - local_mean(tiles, 6)).abs().mean(dim=1, keepdim=True)
    cells = F.avg_pool2d(F.adaptive_avg_pool2d(apart, FEATURE_CELLS), 3, 1, 1)
    usual = cells.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    # Peaks alike, be they large or small: one hole of many is missed no less than the great one in the middle.
    peaks = (cells == F.max_pool2d(cells, 5, 1, 2)) & (cells > 2.0 * usual)
    # On the CPU, so that a GPU draws the same places.
    picked = torch.multinomial(peaks.flatten(1).float().cpu() + 1e-6, 1)[:, 0]
    corner = torch.stack([picked // FEATURE_CELLS, picked % FEATURE_CELLS], dim=1)
    return ((corner + torch.rand(len(tiles), 2)) / FEATURE_CELLS).to(tiles.device)


def noise(count: int, size: int, cells: Tensor, device: torch.device, stretched: bool = False) -> Tensor:
    """Smooth noise of about N(0, 1), [count, 1, size, size], with about ``cells`` [count, 1, 1, 1] grains a side.

    Taken from a small store of periodic fields, each time rolled and turned over: drawing fresh ones would cost more
    than the rest of a defect.
    """
    fields = _fields(size, device, stretched)
    octave = (torch.log2(cells.reshape(-1).clamp(1.0)) * 2).round().long().clamp(max=OCTAVES - 1).cpu()
    picked = (octave * MEMBERS + torch.randint(MEMBERS, (count,))).tolist()
    rolls = torch.randint(size, (count, 2)).tolist()
    taken = torch.stack([fields[k, y : y + size, x : x + size] for k, (y, x) in zip(picked, rolls, strict=True)])
    turn = int(torch.randint(8, ()))
    taken = torch.rot90(taken, turn % 4, dims=(1, 2))
    return (taken.flip(2) if turn >= 4 else taken).unsqueeze(1)


@functools.cache
def _fields(size: int, device: torch.device, stretched: bool) -> Tensor:
    """Periodic noise, two periods a side so that any window is a roll: float32 [OCTAVES * MEMBERS, 2 size, 2 size].

    The same in every run.
    """
    generator = torch.Generator().manual_seed(size)
    made = []
    for octave in range(OCTAVES):
        across = max(2, round(2 ** (octave / 2)))
        along = max(2, round(across / 3)) if stretched else across
        lattice = torch.randn(MEMBERS, 1, across, along, generator=generator)
        # Three copies a side, so that the middle one meets itself smoothly.
        wide = F.interpolate(lattice.repeat(1, 1, 3, 3), size=(3 * size, 3 * size), mode="bicubic", align_corners=False)
        made.append(wide[:, 0, size : 2 * size, size : 2 * size])
    fields = torch.cat(made)
    return (fields / fields.std(dim=(1, 2), keepdim=True)).repeat(1, 2, 2).to(device)


def soft(signed: Tensor, edge: Tensor) -> Tensor:
    """1 inside (``signed`` > 0), 0 outside, over an edge of width ``edge`` in the same unit."""
    return (signed / edge + 0.5).clamp(0.0, 1.0)


def edge_width(at: Frame) -> Tensor:
    """From sharp (a pixel) to washed out (a quarter of the side), [n, 1, 1, 1]; oftener sharp where the tiles are."""
    count, size, device = at.like
    sharp = uniform(count, 0.0, 1.0, device) < SHARP_SHARE * at.crisp
    return torch.where(sharp, 1.0 / size, log_uniform(count, 1.0 / size, 0.25, device))


# ---- shapes: opacity float32 [count, 1, size, size] in [0, 1]


def spot(at: Frame) -> Tensor:
    """An ellipse with an uneven outline: spots, pits, chips, dents."""
    count, size, device = at.like
    radius = log_uniform(count, 0.008, 0.3, device)
    aspect = log_uniform(count, 1.0, 4.0, device)
    rough = uniform(count, 0.0, 0.5, device) * noise(count, size, log_uniform(count, 4.0, 20.0, device), device)
    distance = ((at.u / aspect).square() + (at.v * 1.0).square()).sqrt()
    return soft(radius * (1.0 + rough) - distance, edge_width(at).clamp(max=2 * radius))


def scratch(at: Frame) -> Tensor:
    """A line, bent a little, of any length and a width from below a pixel to thick; broken now and then."""
    count, size, device = at.like
    length, width = log_uniform(count, 0.04, 0.6, device), log_uniform(count, 0.35 / size, 6.0 / size, device)
    bend = uniform(count, 0.0, 0.05, device) * noise(count, size, uniform(count, 1.0, 6.0, device), device)
    body = soft(width - (at.v + bend).abs(), torch.full_like(width, 1.0 / size))
    gaps = soft(
        noise(count, size, uniform(count, 6.0, 20.0, device), device) + uniform(count, 0.3, 4.0, device),
        torch.full_like(width, 0.5),
    )
    return body * soft(length - at.u.abs(), torch.full_like(length, 0.02)) * gaps


def crack(at: Frame) -> Tensor:
    """Thin winding lines: where smooth noise crosses zero, within a patch."""
    count, size, device = at.like
    cells = log_uniform(count, 2.0, 12.0, device)
    field = noise(count, size, cells, device) + 0.25 * noise(count, size, (3 * cells).clamp(max=22.0), device)
    down, right = torch.gradient(field, spacing=1.0 / size, dim=(2, 3))
    slope = (down.square() + right.square()).sqrt()
    width = log_uniform(count, 0.4 / size, 3.0 / size, device)
    body = soft(width - field.abs() / (slope + 1.0), torch.full_like(width, 1.0 / size))
    length, breadth = log_uniform(count, 0.05, 0.4, device), log_uniform(count, 0.02, 0.2, device)
    patch = ((at.u / length).square() + (at.v / breadth).square()).sqrt()
    return body * soft(1.0 - patch, torch.full_like(width, 0.2))


def cloud(at: Frame) -> Tensor:
    """Threshold of noise in a patch: stains, corrosion, porosity, from one blot to many grains."""
    count, size, device = at.like
    cells = log_uniform(count, 2.0, 22.0, device)
    field = noise(count, size, cells, device) - uniform(count, 0.0, 1.2, device)
    radius = log_uniform(count, 0.04, 0.5, device)
    patch = (at.u.square() + (at.v * uniform(count, 1.0, 3.0, device)).square()).sqrt()
    edge = edge_width(at) * 4 * cells.clamp(min=4.0)
    return soft(field, edge) * soft(1.0 - patch / radius, uniform(count, 0.05, 0.6, device))


def block(at: Frame) -> Tensor:
    """A rectangle at any angle: CutPaste's patch and, when thin, its scar."""
    count, _, device = at.like
    length, breadth = log_uniform(count, 0.02, 0.25, device), log_uniform(count, 0.006, 0.2, device)
    inside = torch.minimum(length - at.u.abs(), breadth - at.v.abs())
    return soft(inside, edge_width(at).clamp(max=0.02))


def bite(at: Frame) -> Tensor:
    """Everything beyond an uneven line: a broken edge or corner, missing or extra material."""
    count, size, device = at.like
    reach = (at.u.abs().amax(dim=(2, 3), keepdim=True) - log_uniform(count, 0.02, 0.3, device)).clamp(min=0.05)
    rough = uniform(count, 0.0, 0.06, device) * noise(count, size, log_uniform(count, 3.0, 20.0, device), device)
    return soft(at.u.abs() + rough - reach, edge_width(at).clamp(max=0.02))


SHAPES: dict[str, Callable[[Frame], Tensor]] = {
    "spot": spot,
    "scratch": scratch,
    "crack": crack,
    "cloud": cloud,
    "block": block,
    "bite": bite,
}
SHAPE_WEIGHTS = torch.tensor([0.27, 0.16, 0.16, 0.2, 0.09, 0.12])


def draw_shapes(tiles: Tensor, crisp: Tensor | None = None, whole: bool = True) -> Tensor:
    """One shape for each of ``tiles`` [n, C, S, S], kinds at random: opacity float32 [n, 1, S, S].

    Where they are no ``whole`` tiles but windows, shapes fade out towards the border: nothing breaks off there, and a
    straight cut would give away what was drawn.
    """
    kinds = torch.multinomial(SHAPE_WEIGHTS, len(tiles), replacement=True)
    at = frame(centres(tiles, BORDER_SHARE if whole else 0.0), tiles.shape[-1], crisp)
    opacity = torch.zeros_like(tiles[:, :1])
    for kind, shape in enumerate(SHAPES.values()):
        where = torch.nonzero(kinds == kind).flatten().to(tiles.device)
        if len(where):
            opacity.index_copy_(0, where, shape(Frame(at.u[where], at.v[where], at.crisp[where])))
    if whole:
        return opacity
    ramp = ((torch.arange(tiles.shape[-1], device=tiles.device) + 0.5) / (FADE * tiles.shape[-1])).clamp(max=1.0)
    fade = torch.minimum(ramp, ramp.flip(0))
    return opacity * fade.view(1, 1, 1, -1) * fade.view(1, 1, -1, 1)


# ---- fills: what is there instead, float32 [n, C, H, W]


def local_mean(tiles: Tensor, cells: int) -> Tensor:
    """Tiles without detail finer than ``cells`` across a side."""
    small = F.adaptive_avg_pool2d(tiles, cells)
    return F.interpolate(small, size=tiles.shape[-2:], mode="bilinear", align_corners=False)


def signed(count: int, low: float, high: float, device: torch.device) -> Tensor:
    """From faint to strong, either way: [count, 1, 1, 1]."""
    return log_uniform(count, low, high, device) * torch.where(torch.rand(count, 1, 1, 1) < 0.5, -1.0, 1.0).to(device)


def tint(count: int, channels: int, device: torch.device) -> Tensor:
    """Weights of the colour channels, [count, C, 1, 1]: one for grey, uneven for colour."""
    if channels == 1:
        return torch.ones(count, 1, 1, 1, device=device)
    return (0.3 + 0.7 * torch.rand(count, channels, 1, 1)).to(device)


def toned(tiles: Tensor, pool: Tensor) -> Tensor:
    """The same surface, darker or brighter."""
    n, device = len(tiles), tiles.device
    return tiles + signed(n, 0.08, 1.0, device) * tint(n, tiles.shape[1], device)


def flat(tiles: Tensor, pool: Tensor) -> Tensor:
    """A surface without texture whose level is that of the place, moved."""
    n, device = len(tiles), tiles.device
    return local_mean(tiles, 8) + signed(n, 0.03, 1.2, device) * tint(n, tiles.shape[1], device)


def extreme(tiles: Tensor, pool: Tensor) -> Tensor:
    """The tile's own darkest or brightest level: a hole, a reflection, the ground beneath a missing piece."""
    small = F.adaptive_avg_pool2d(tiles, 32).flatten(2)
    low, high = small.amin(dim=2), small.amax(dim=2)
    pick = torch.where(torch.rand(len(tiles), 1).to(tiles.device) < 0.6, low, high)[..., None, None]
    return pick + signed(len(tiles), 0.02, 0.2, tiles.device) + 0.03 * torch.randn_like(tiles)


def swapped(tiles: Tensor, pool: Tensor) -> Tensor:
    """Dark where the tile is bright and the reverse: material where none belongs, none where some does."""
    small = F.adaptive_avg_pool2d(tiles, 32).flatten(2)
    return (small.amin(dim=2) + small.amax(dim=2))[..., None, None] - tiles


def moved(tiles: Tensor, pool: Tensor) -> Tensor:
    """The tile's own content from another place, turned over now and then."""
    size = tiles.shape[-1]
    by = [int(torch.randint(size // 10, size - size // 10, ())) for _ in range(2)]
    content = torch.roll(tiles, by, dims=(2, 3))
    return _turned(content) + uniform(len(tiles), -0.15, 0.15, tiles.device)


def beside(tiles: Tensor, pool: Tensor) -> Tensor:
    """What is to be seen just beside: a feature is missing, and the surface goes on."""
    size = tiles.shape[-1]
    reach = size // 5
    down, right = (int(torch.randint(size // 16, reach, ())) * (1 if coin else -1) for coin in torch.rand(2) < 0.5)
    if float(torch.rand(())) < 0.5:
        down, right = (down, 0) if float(torch.rand(())) < 0.5 else (0, right)
    # Mirrored beyond the border: rolled round, the opposite border would come in.
    wide = F.pad(tiles, (reach, reach, reach, reach), mode="reflect")
    content = wide[:, :, reach + down : reach + down + size, reach + right : reach + right + size]
    return content + uniform(len(tiles), -0.05, 0.05, tiles.device)


def foreign(tiles: Tensor, pool: Tensor) -> Tensor:
    """Content of another tile of the batch from another place."""
    size = tiles.shape[-1]
    other = pool[torch.randint(len(pool), (len(tiles),)).to(tiles.device)]
    by = [int(torch.randint(0, size, ())) for _ in range(2)]
    gain = uniform(len(tiles), 0.6, 1.4, tiles.device)
    return _turned(torch.roll(other, by, dims=(2, 3))) * gain + uniform(len(tiles), -0.3, 0.3, tiles.device)


def smeared(tiles: Tensor, pool: Tensor) -> Tensor:
    """The same place without its fine texture, or drawn out in one direction."""
    if float(torch.rand(())) < 0.5:
        return local_mean(tiles, int(torch.randint(12, 48, ())))
    reach = 2 * int(torch.randint(2, 12, ())) + 1
    kernel, padding = ((1, reach), (0, reach // 2)) if float(torch.rand(())) < 0.5 else ((reach, 1), (reach // 2, 0))
    return F.avg_pool2d(tiles, kernel, 1, padding, count_include_pad=False)


def grained(tiles: Tensor, pool: Tensor) -> Tensor:
    """A texture of noise around the level of the place."""
    n, size, device = len(tiles), tiles.shape[-1], tiles.device
    grain = noise(n, size, log_uniform(n, 4.0, 22.0, device), device, stretched=True)
    grain = grain + 0.5 * F.interpolate(torch.randn(n, 1, size // 2, size // 2).to(device), size=(size, size))
    level = local_mean(tiles, 8) + signed(n, 0.02, 0.5, device)
    return level + log_uniform(n, 0.05, 0.5, device) * grain * tint(n, tiles.shape[1], device)


def contrasted(tiles: Tensor, pool: Tensor) -> Tensor:
    """The texture of the place, weaker or stronger."""
    mean = local_mean(tiles, 16)
    gain = torch.where(torch.rand(len(tiles), 1, 1, 1) < 0.4, 0.3, 2.2).to(tiles.device)
    return mean + gain * uniform(len(tiles), 0.7, 1.3, tiles.device) * (tiles - mean)


def warped(tiles: Tensor, pool: Tensor) -> Tensor:
    """The place pushed about by smooth noise: bent, squeezed, displaced material."""
    n, size, device = len(tiles), tiles.shape[-1], tiles.device
    cells, reach = log_uniform(n, 2.0, 8.0, device), log_uniform(n, 0.02, 0.12, device)
    return _pushed(tiles, torch.cat([reach * noise(n, size, cells, device) for _ in range(2)], dim=1))


def _pushed(tiles: Tensor, by: Tensor) -> Tensor:
    """Content from ``by`` [n, 2, H or 1, W or 1] away, x and y, 2 = a side; mirrored beyond the border."""
    axis = (torch.arange(tiles.shape[-1], device=tiles.device) + 0.5) * (2.0 / tiles.shape[-1]) - 1.0
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1) + by.permute(0, 2, 3, 1)
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _turned(content: Tensor) -> Tensor:
    turn = int(torch.randint(8, ()))
    content = torch.rot90(content, turn % 4, dims=(2, 3))
    return content.flip(3) if turn >= 4 else content


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "toned": toned,
    "flat": flat,
    "extreme": extreme,
    "moved": moved,
    "beside": beside,
    "foreign": foreign,
    "smeared": smeared,
    "grained": grained,
    "contrasted": contrasted,
    "warped": warped,
    "swapped": swapped,
}
FILL_WEIGHTS = torch.tensor([0.3, 0.14, 0.12, 0.08, 0.08, 0.08, 0.06, 0.08, 0.06, 0.08, SWAPPED_WEIGHT])


def fill_in(tiles: Tensor, pool: Tensor, crisp: Tensor | None = None) -> Tensor:
    """Another content for each tile, kinds at random: float32 [n, C, H, W]; ``pool`` holds tiles to borrow from."""
    weights = FILL_WEIGHTS.repeat(len(tiles), 1)
    weights[:, -1] *= 0.0 if crisp is None else crisp.flatten().cpu()
    kinds = torch.multinomial(weights, 1)[:, 0]
    content = torch.empty_like(tiles)
    for kind, fill in enumerate(FILLS.values()):
        where = torch.nonzero(kinds == kind).flatten().to(tiles.device)
        if len(where):
            content.index_copy_(0, where, fill(tiles[where], pool))
    return content
