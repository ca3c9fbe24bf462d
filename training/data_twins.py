"""Finds pictures that show one part twice: near-duplicates and other exposures (before hop 1).

Parts of one product look alike without being the same part, so likeness alone proves nothing. Two steps tell them
apart. *Candidates*: thumbnails, high-passed and evened out in contrast, less the mean and the strongest principal
components of the set (what the product, its pose and its light have in common), compared by cosine; a matrix product
a block, so that tens of thousands of images fit. *Proof*: the two pictures are laid over each other (affine, by
enhanced correlation) and their fine texture is correlated where neither has an edge. Another part in the same pose
shares the edges; only the same part shares the texture between them.

How far different parts of this very product agree by that measure is measured on pairs that are far apart in
likeness, and the limit lies above it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.images import read_image

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SHARED_COMPONENTS = 16  # of product, pose and light; at most a tenth of the images
KEPT_COMPONENTS = 256
FIT_SAMPLES = 4000
NEIGHBOURS = 3
CANDIDATE = 0.45  # likeness from which a pair is looked at closely: different parts reach 0.3 to 0.5
TURNED_CANDIDATE = 0.70  # a copy that was turned is that alike; symmetric products are less, and often
BLOCK = 1024
TURNED_LIMIT = 100_000_000  # pairs up to which turned and mirrored copies are looked for as well

SIDE = 256  # of the pictures that are laid over each other
ALIGN_SIDE = 128
FINE_BAND = (1.0, 4.0)  # sigmas of the band that counts as texture, pixels at SIDE
EDGE_FACTOR = 3.0  # what has more energy than this many medians is an edge ...
EDGE_LEVELS = (6.0, 12.0)  # ... but never under the one, always above the other
EDGE_RIM = 15  # pixels across an edge that ring with it
MIN_SHARE = 0.06  # of the picture that has to be left to compare
FLAT = 0.5  # levels of texture below which there is none to compare
STRATA = 3  # by energy: grain on a quiet ground would drown in the ground's noise
PROVEN = 0.45  # texture at least; exposures of one tile have 0.5 to 0.99, different tiles under 0.2
DRAWING_PROVEN = 0.90  # where edges are all there is: another part of the same drawing comes near
MARGIN = 0.35  # of the way from what different parts reach to a perfect copy
SIMILAR_TEXTURE = 0.75  # different parts that agree this far cannot be told from one part
NULL_PAIRS = 40
SMALL_SIDE = 64  # of pictures compared as they lie: a coder's errors are evened out, places of a fine texture are not
NEARLY_EQUAL = 0.125  # of the squared difference between the likest parts; saved as JPEG 60, fine textures reach 0.08
MAX_PROOFS = 400
STATIC_SAMPLES = 48
READERS = 2


class Pair(NamedTuple):
    """Two images by their places in the lists; ``likeness`` of the thumbnails, ``texture`` of the pictures."""

    first: int
    second: int
    likeness: float
    texture: float
    turned: str


class Twins(NamedTuple):
    """``pairs`` proven, best first; ``candidates`` images were like another one, ``checked`` of them looked at closely.

    ``images``: how many images have a twin, extrapolated where not all candidates were checked. ``limit``: of
    texture; None where different parts of this product agree so far that nothing can be told. ``likeness``: of every
    first image to its nearest second one.
    """

    pairs: list[Pair]
    candidates: int
    checked: int
    images: int
    limit: float | None
    likeness: Floats


TURNS: dict[str, Callable[[Floats], Floats]] = {
    "": lambda picture: picture,
    "mirrored": lambda picture: picture[..., :, ::-1],
    "upside down": lambda picture: picture[..., ::-1, :],
    "turned by 180 degrees": lambda picture: picture[..., ::-1, ::-1],
    "turned by 90 degrees": lambda picture: np.rot90(picture, 1, (-2, -1)),
    "turned by 270 degrees": lambda picture: np.rot90(picture, 3, (-2, -1)),
    "transposed": lambda picture: np.swapaxes(picture, -2, -1),
    "transposed across": lambda picture: np.swapaxes(np.rot90(picture, 2, (-2, -1)), -2, -1),
}
HALF_TURNS = 4  # the first ones, which keep width and height


class Likeness:
    """What is common to the thumbnails [N, 32, 32] is learnt from them and taken out of every descriptor."""

    def __init__(self, thumbs: Floats) -> None:
        step = max(1, -(-len(thumbs) // FIT_SAMPLES))
        raw = _evened(thumbs[::step]).reshape(-1, thumbs.shape[1] * thumbs.shape[2])
        self._mean = raw.mean(axis=0)
        centred = _unit(raw - self._mean)
        shared = max(1, min(SHARED_COMPONENTS, len(raw) // 10))
        self._basis = _components(centred)[:, shared : shared + KEPT_COMPONENTS]

    def __call__(self, thumbs: Floats) -> Floats:
        """Descriptors of unit length, float32 [N, at most 256]."""
        rows = [
            _unit(_unit(_evened(block).reshape(len(block), -1) - self._mean) @ self._basis)
            for block in (thumbs[at : at + BLOCK] for at in range(0, len(thumbs), BLOCK))
        ]
        return np.concatenate(rows)


def _components(rows: Floats) -> Floats:
    """Principal directions of ``rows`` [N, D] as columns, strongest first; by the smaller of the two products."""
    few = len(rows) < rows.shape[1]
    exact = rows.astype(np.float64)
    values, vectors = np.linalg.eigh(exact @ exact.T if few else exact.T @ exact)
    # A direction that no row has is rounding alone, and would be blown up to full length.
    held = values > 1e-6 * max(float(values[-1]), 1e-12)
    values, vectors = values[held], vectors[:, held]
    vectors = exact.T @ vectors / np.sqrt(values) if few else vectors
    return np.asarray(vectors[:, ::-1], np.float32)


def _evened(thumbs: Floats) -> Floats:
    """High-passed, divided by the local contrast: a dark exposure looks like a bright one."""
    fine, coarse = 0.025 * thumbs.shape[1], 0.1 * thumbs.shape[1]
    out = np.empty(thumbs.shape, np.float32)
    for at, thumb in enumerate(thumbs):
        band = cv2.GaussianBlur(thumb, (0, 0), fine) - cv2.GaussianBlur(thumb, (0, 0), coarse)
        out[at] = band / (np.sqrt(cv2.GaussianBlur(band * band, (0, 0), 2 * coarse)) + 2.0)
    return out


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-6), np.float32)


def nearest(first: Floats, second: Floats, first_groups: Ints, second_groups: Ints, count: int) -> tuple[Ints, Floats]:
    """For each of ``first`` [N, D] its ``count`` likest of ``second`` [M, D] in another group: places, cosines [N, k].

    Pairs of one group get the cosine -1. Memory: one block of 1024 x M.
    """
    count = min(count, len(second))
    places = np.empty((len(first), count), np.int64)
    cosines = np.empty((len(first), count), np.float32)
    for at in range(0, len(first), BLOCK):
        block = first[at : at + BLOCK] @ second.T
        block[first_groups[at : at + BLOCK, None] == second_groups[None, :]] = -1.0
        found = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, found, axis=1)
        order = np.argsort(-values, axis=1)
        places[at : at + BLOCK] = np.take_along_axis(found, order, axis=1)
        cosines[at : at + BLOCK] = np.take_along_axis(values, order, axis=1)
    return places, cosines


class Side(NamedTuple):
    """One of the two lists compared: files, thumbnails float32 [N, 32, 32], groups int64 [N] (equal: never a pair)."""

    paths: Sequence[Path]
    thumbs: Floats
    groups: Ints


def find_twins(
    first: Side,
    second: Side,
    proof: Proof,
    square: bool = False,
    advance: Callable[[int], None] | None = None,
    proofs: int = MAX_PROOFS,
    likeness: Likeness | None = None,
) -> Twins:
    """Images of ``first`` that show a part of ``second``.

    ``square`` says that a quarter turn keeps the format. ``advance`` hears of each candidate checked,
    of which there are at most ``proofs``. ``likeness``: learnt from more images than these, where these are few.
    """
    if not len(first.paths) or not len(second.paths):
        return Twins([], 0, 0, 0, PROVEN, np.zeros(0, np.float32))
    every = second.thumbs if first.thumbs is second.thumbs else np.concatenate([first.thumbs, second.thumbs])
    places, cosines, turns = _candidates(first, second, likeness or Likeness(every), square)
    picked = np.flatnonzero(cosines[:, 0] >= CANDIDATE)
    if not len(picked) or proof.limit is None:
        return Twins([], len(picked), 0, 0, proof.limit, cosines[:, 0])
    some = picked[np.unique(np.linspace(0, len(picked) - 1, min(proofs, len(picked))).round().astype(int))]

    def prove(at: int) -> Pair | None:
        for place, cosine, turn in zip(places[at], cosines[at], turns[at], strict=True):
            if cosine < CANDIDATE:
                break
            texture = proof(first.paths[at], second.paths[int(place)], list(TURNS)[int(turn)])
            if proof.limit is not None and texture >= proof.limit:
                return Pair(int(at), int(place), float(cosine), texture, list(TURNS)[int(turn)])
        return None

    pairs = []
    with ThreadPoolExecutor(READERS) as readers:
        for pair in readers.map(prove, some):
            pairs += [pair] if pair is not None else []
            if advance is not None:
                advance(1)
    pairs.sort(key=lambda pair: -pair.texture)
    images = round(len(pairs) * len(picked) / len(some))
    return Twins(pairs, len(picked), len(some), images, proof.limit, cosines[:, 0])


def _candidates(first: Side, second: Side, likeness: Likeness, square: bool) -> tuple[Ints, Floats, Ints]:
    """Places, cosines and turns of the likest of ``second`` for each of ``first``, each [N, 3], best first."""
    base = likeness(second.thumbs)
    names = list(TURNS)[: len(TURNS) if square else HALF_TURNS]
    if len(first.paths) * len(second.paths) > TURNED_LIMIT:
        names = names[:1]
    found = []
    for turn, name in enumerate(names):
        rows = likeness(np.ascontiguousarray(TURNS[name](first.thumbs)))
        places, cosines = nearest(rows, base, first.groups, second.groups, NEIGHBOURS)
        found.append((places, cosines, np.full(places.shape, turn, np.int64)))
    places, cosines, turns = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
    cosines[(turns > 0) & (cosines < TURNED_CANDIDATE)] = -1.0
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    return tuple(np.take_along_axis(column, order, axis=1) for column in (places, cosines, turns))  # type: ignore[return-value]


class Proof:
    """Compares two pictures closely; ``limit`` is learnt from pairs that are certainly different parts."""

    def __init__(self, typical: Side) -> None:
        """``typical``: good images, of different parts where their groups differ."""
        step = max(1, len(typical.paths) // STATIC_SAMPLES)
        pictures = [_picture(path) for path in typical.paths[::step]]
        # Dirt on the lens, the grain of a table and the blocks of a coder are in every picture and prove nothing.
        self._static = np.mean([_texture(picture).even for picture in pictures], axis=0).astype(np.float32)
        if len(pictures) < 8:
            self._static[:] = 0.0
        self.limit = self._limit(typical)

    def _limit(self, typical: Side) -> float | None:
        """PROVEN, more where textures of different parts agree by themselves, None where they agree almost wholly."""
        count = len(typical.paths)
        if count < 4:
            return PROVEN
        some = np.unique(np.linspace(0, count - 1, min(NULL_PAIRS, count)).round().astype(int))
        # Far enough down the list that a part's other exposures, if any are not known as such, are passed over.
        rank = min(count - 1, max(20, count // 10))
        rows = Likeness(typical.thumbs)(typical.thumbs)
        places, cosines = nearest(rows[some], rows, typical.groups[some], typical.groups, rank)
        pairs = [
            (int(one), int(other))
            for one, other, cosine in zip(some, places[:, -1], cosines[:, -1], strict=True)
            if cosine > -1
        ]
        if not pairs:
            return PROVEN
        with ThreadPoolExecutor(READERS) as readers:
            textures = list(readers.map(lambda pair: self(*(typical.paths[at] for at in pair)), pairs))
        usual = float(np.quantile(textures, 0.9))
        return None if usual > SIMILAR_TEXTURE else max(PROVEN, usual + MARGIN * (1.0 - usual))

    def __call__(self, first: Path, second: Path, turned: str = "") -> float:
        """Correlation of the fine texture, -1 to 1; 0 where a file cannot be read or too little is left to compare."""
        try:
            one, other = _picture(first), _picture(second)
        except ImageError:
            return 0.0
        one = np.ascontiguousarray(TURNS[turned](one))
        static = np.ascontiguousarray(TURNS[turned](self._static))
        return _agreement(_texture(one), _texture(other), static, self._static, _overlay(one, other))


def find_copies(first: Sequence[Path], second: Sequence[Path], proof: Proof, square: bool = False) -> list[Pair]:
    """Images of ``first``, which are few, that are those of ``second``, lit, saved or turned anew, but not moved.

    Where there are few, all pairs are compared by their texture as it lies; the likest are then looked at closely.
    """
    if proof.limit is None or not first or not second:
        return []
    names = list(TURNS)[: len(TURNS) if square else HALF_TURNS]
    pictures = [_picture(path) for path in first]
    turned = [np.ascontiguousarray(TURNS[name](picture)) for picture in pictures for name in names]
    rows = _unit(np.stack([_texture(picture).even.ravel() for picture in turned]))
    with ThreadPoolExecutor(READERS) as readers:
        cosines = np.stack(list(readers.map(lambda path: rows @ _unit(_flat(path)[None])[0], second)), axis=1)
    pairs = []
    for at, own in enumerate(cosines.reshape(len(first), -1)):  # by turn, then by place in ``second``
        for likest in np.argsort(-own)[:NEIGHBOURS]:
            turn, place = divmod(int(likest), len(second))
            texture = proof(first[at], second[place], names[turn])
            if texture >= proof.limit:
                pairs.append(Pair(at, place, float(own[likest]), texture, names[turn]))
                break
    return pairs


def find_equal(first: Sequence[Path], second: Sequence[Path], typical: Sequence[Path], square: bool) -> list[Pair]:
    """Images of ``first`` that nearly equal ones of ``second`` as they lie: lit, saved or turned anew, but not moved.

    For products whose texture proves nothing. Nearly equal is what differs far less than half of the ``typical`` good
    images, of which there are a few, do from the likest other one.
    """
    names = list(TURNS)[: len(TURNS) if square else HALF_TURNS]
    good = np.concatenate([_small(path, [""]) for path in typical])
    alike = np.stack([(_small(path, names) @ good.T).max(axis=0) for path in typical])
    np.fill_diagonal(alike, -1.0)
    limit = 1.0 - NEARLY_EQUAL * float(np.median(1.0 - alike.max(axis=1)))
    rows = np.concatenate([_small(path, names) for path in first])
    with ThreadPoolExecutor(READERS) as readers:
        columns = list(readers.map(lambda path: rows @ _small(path, [""])[0], second))
    cosines = np.stack(columns, axis=1).reshape(len(first), len(names), len(second))
    pairs = []
    for at, own in enumerate(cosines):
        turn, place = np.unravel_index(int(own.argmax()), own.shape)
        cosine = float(own[turn, place])
        if cosine > limit:
            pairs.append(Pair(at, int(place), cosine, cosine, names[int(turn)]))
    return sorted(pairs, key=lambda pair: -pair.likeness)


def _small(path: Path, names: Sequence[str]) -> Floats:
    """A picture turned in each of these ways, less its mean and of unit length: one row each."""
    small = cv2.resize(_picture(path), (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA)
    level = np.asarray(small - small.mean(), np.float32)
    return _unit(np.stack([TURNS[name](level).ravel() for name in names]))


def _flat(path: Path) -> Floats:
    return _texture(_picture(path)).even.ravel()


class _Texture(NamedTuple):
    """``even``: the fine band by its local energy; ``energy``: that energy in levels; float32 [256, 256] both."""

    even: Floats
    energy: Floats


def _picture(path: Path) -> Floats:
    return np.asarray(cv2.resize(read_image(path, 1), (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _texture(picture: Floats) -> _Texture:
    low, high = FINE_BAND
    band = cv2.GaussianBlur(picture, (0, 0), low) - cv2.GaussianBlur(picture, (0, 0), high)
    energy = np.sqrt(cv2.GaussianBlur(band * band, (0, 0), high))
    return _Texture(np.asarray(band / (energy + 0.5), np.float32), np.asarray(energy, np.float32))


def _overlay(one: Floats, other: Floats) -> Floats:
    """Affine [2, 3] from places of ``one`` to places of ``other``; the identity where none is found."""
    size = (ALIGN_SIDE, ALIGN_SIDE)
    shrunk = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (one, other)]
    small = _evened(np.asarray(shrunk, np.float32))
    (x, y), _ = cv2.phaseCorrelate(small[0], small[1], cv2.createHanningWindow(size, cv2.CV_32F))
    near = max(abs(x), abs(y)) <= ALIGN_SIDE / 8
    found = np.array([[1, 0, x if near else 0], [0, 1, y if near else 0]], np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, refined = cv2.findTransformECC(small[0], small[1], found.copy(), cv2.MOTION_AFFINE, stop)
    except cv2.error:  # it did not converge: the shift alone has to do
        refined = found
    out = np.array(refined, np.float32)
    out[:, 2] *= SIDE / ALIGN_SIDE
    return out


def _agreement(one: _Texture, other: _Texture, one_static: Floats, static: Floats, overlay: Floats) -> float:
    """Correlation of two textures where both pictures are, neither has an edge, and less what every picture has."""
    moved = _Texture(*(_moved(values, overlay) for values in (other.even - static, other.energy)))
    inside = _moved(np.ones((SIDE, SIDE), np.float32), overlay, outside=True) > 0.99
    inside = cv2.erode(inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    first, second = one.even - one_static, moved.even
    edges = _edges(one.energy) | _edges(moved.energy)
    energy = np.minimum(one.energy, moved.energy)
    calm = inside & ~edges & (energy > FLAT)
    if calm.mean() < MIN_SHARE:
        agreed = _correlation(first, second, inside) if inside.mean() >= MIN_SHARE else 0.0
        return agreed if agreed >= DRAWING_PROVEN else 0.0
    limits = np.quantile(energy[calm], np.linspace(0, 1, STRATA + 1))
    strata = (calm & (energy >= low) & (energy <= high) for low, high in itertools.pairwise(limits))
    return max(_correlation(first, second, stratum) for stratum in strata)


def _edges(energy: Floats) -> NDArray[np.bool_]:
    """Where there is an edge, with a rim: bool [256, 256]."""
    some = energy[energy > FLAT]
    limit = float(np.clip(EDGE_FACTOR * np.median(some), *EDGE_LEVELS)) if some.size else EDGE_LEVELS[0]
    return cv2.dilate((energy > limit).astype(np.uint8), np.ones((EDGE_RIM, EDGE_RIM), np.uint8)) > 0


def _correlation(first: Floats, second: Floats, where: NDArray[np.bool_]) -> float:
    one, other = first[where] - first[where].mean(), second[where] - second[where].mean()
    spread = float(one.std() * other.std())
    return float((one * other).mean() / spread) if spread > 1e-6 else 0.0


def _moved(values: Floats, overlay: Floats, outside: bool = False) -> Floats:
    border = cv2.BORDER_CONSTANT if outside else cv2.BORDER_REFLECT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, overlay, (SIDE, SIDE), flags=flags, borderMode=border), np.float32)
