"""Which good images may calibrate a bundle: those of parts that training has never seen (before hop 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from calibration.errors import CalibrationError
from contract.bundle import ROLE_DATA, ROLE_PREPROCESS, Bundle
from contract.dataset import Dataset, Sample, sha256_of_image
from contract.errors import BundleError
from contract.fixture import fixture_of_data, placer_of, same_fixture
from contract.preprocess import Picture

SEEN_SPLITS = ("fit", "validation")


class HeldOut(NamedTuple):
    """``unseen`` images may calibrate; ``seen`` ones, of parts that training used, may only bound the picture."""

    unseen: list[Sample]
    seen: list[Sample]

    @property
    def groups(self) -> int:
        """How many parts the unseen images show."""
        return len({sample.group for sample in self.unseen})

    @property
    def shown(self) -> list[str]:
        """Whose part each image shows, the unseen ones first."""
        return [sample.group for sample in (*self.unseen, *self.seen)]


def pattern_of(bundle: Bundle, asked: str | None) -> str | None:
    """The group pattern ``asked`` for, else the one that training told parts apart by.

    Told apart otherwise, several pictures of one part would count as several parts, and no rate would hold.
    """
    return asked or bundle.manifest.training.get("settings", {}).get("group_pattern")


def refuse_other_fixture(bundle: Bundle, data: Path) -> None:
    """Raise CalibrationError where the pictures of ``data`` were cut otherwise than the line will cut them."""
    own, other = placer_of(bundle), fixture_of_data(data)
    if ROLE_PREPROCESS in bundle.manifest.files:
        if other is not None:
            raise CalibrationError(
                f"{data}: its pictures were cut out by a fixture, and the bundle's preprocess file corrects raw ones "
                "and cuts them itself: give pictures as the camera takes them"
            )
        return
    if same_fixture(own, other):
        return
    found = "no fixture" if other is None else "a fixture"
    if own is None:
        held, way_out = "the bundle has none", "train it on pictures that were cut by it"
    else:
        held = "the bundle has one" if other is None else "the bundle has another one"
        way_out = f"cut them by the bundle's own: flawline fixture cut {bundle.root} --data DIR --out DIR"
    raise CalibrationError(f"{data}: its pictures were cut by {found}, and {held}: {way_out}")


def training_hashes(bundle: Bundle) -> frozenset[str]:
    """sha256 of every image that the weights or their selection rest on. Raises BundleError."""
    try:
        splits = bundle.json(ROLE_DATA)
        return frozenset(row["sha256"] for name in SEEN_SPLITS for row in splits[name])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.path(ROLE_DATA)}: does not list the training images ({error!r}); train the bundle again"
        ) from error


LEARNT_IN_TEST = "take what was learnt out of test/"


def refuse_learnt(bundle: Bundle, samples: Sequence[Sample], way_out: str = LEARNT_IN_TEST) -> None:
    """Raise CalibrationError where one of ``samples`` is a labelled defect that the bundle has learnt from.

    Such a defect scores far higher than a new one: figures on it are too good, and a limit chosen by it passes others.
    """
    learnt = {row["sha256"] for row in bundle.json(ROLE_DATA).get("defects", [])}
    learnt |= set(bundle.manifest.training.get("defects", {}).get("sha256", []))
    same = [sample.path for sample in samples if learnt and sha256_of_image(sample.path) in learnt]
    if same:
        raise CalibrationError(
            f"{same[0]}: the bundle has learnt from this very image as a labelled defect ({len(same)} of "
            f"{len(samples)} images in all); {way_out}"
        )


def hold_out(bundle: Bundle, dataset: Dataset) -> HeldOut:
    """Split the good images of ``dataset.train`` by whether training saw the part that they show.

    One image of a part that training saw rules out every image of that part. Raises CalibrationError where none
    are left.
    """
    used = training_hashes(bundle)
    good = dataset.train
    seen_groups = {sample.group for sample in good if sha256_of_image(sample.path) in used}
    held = HeldOut(
        [sample for sample in good if sample.group not in seen_groups],
        [sample for sample in good if sample.group in seen_groups],
    )
    if not held.unseen:
        raise CalibrationError(
            f"{dataset.root}: all {len(good)} good image(s) show parts that training used ({dataset.grouping}); "
            "give a folder with other good parts, or train with --holdout 0.3"
        )
    return held


class Copies:
    """Held-out images that are, pixel for pixel, images that training saw: saved anew, a file's hash is another."""

    def __init__(self) -> None:
        self._unseen: dict[bytes, Sample] = {}

    def add_unseen(self, sample: Sample, part: Picture) -> None:
        self._unseen[_pixels(part)] = sample

    def refuse(self, seen: Sample, part: Picture) -> None:
        """Raise CalibrationError where ``seen``, of a part that training saw, is among the unseen ones as well."""
        twin = self._unseen.get(_pixels(part))
        if twin is not None:
            raise CalibrationError(
                f"{twin.path} is pixel for pixel {seen.path}, a part that training has seen: calibrated on it, limits "
                "come out too low. Remove the copy, or name both as one part in groups.csv"
            )


def _pixels(part: Picture) -> bytes:
    if isinstance(part, Mapping):
        return hashlib.sha256(b"".join(_pixels(part[view]) for view in sorted(part))).digest()
    return hashlib.sha256(f"{part.shape}".encode() + part.tobytes()).digest()
