"""A few labelled defective images to learn from: found, checked, and never those of the test (before hop 1).

DIR/<class>/<name>.png  and  DIR/ground_truth/<class>/<name>_mask.png
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.dataset import Dataset, Sample, images_in, mask_of, per_picture, sha256_of_image
from contract.errors import DatasetError, ImageError
from contract.images import Pixels, read_image
from training.data_files import GOOD, READERS, Floats, examine, glance
from training.data_masks import mask_fault
from training.data_twins import Likeness, Proof, Side, find_copies, find_equal, find_twins

TRUTH = "ground_truth"
LAYOUT = "expected {root}/<class>/<name>.png with its mask {root}/ground_truth/<class>/<name>_mask.png"
REFUSED = {"mask-unreadable", "mask-size", "mask-empty", "mask-full"}
TYPICAL = 200  # good images from which is learnt how alike different parts are
NAMED = 3


class Seen(NamedTuple):
    """What is compared of a picture: hashes of its file and of its pixels, and a grey thumbnail."""

    path: Path
    file: str
    pixels: str
    thumb: Floats
    square: bool


def find_defects(root: Path) -> list[Sample]:
    """The labelled images below ``root``, by class and name; ``group`` is the path within ``root``.

    Raises DatasetError where the folder is not laid out so, or an image cannot be learnt from as it is.
    """
    layout = LAYOUT.format(root=root)
    if not root.is_dir():
        raise DatasetError(f"--defects {root}: no such folder; {layout}")
    if images_in(root):
        raise DatasetError(f"--defects {root}: images without a class; {layout}")
    classes = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    classes = [path for path in classes if path.name != TRUTH]
    if GOOD in {path.name for path in classes}:
        raise DatasetError(f"--defects {root}: holds the class {GOOD!r}; good images belong into --data, train/good")
    samples = []
    for folder in classes:
        found = images_in(folder)
        if not found:
            raise DatasetError(f"--defects {folder}: no images of that class in it; {layout}")
        files = (path.relative_to(root).as_posix() for path in found)
        samples += [
            Sample(path, folder.name, mask_of(root, path, folder.name), file)
            for path, file in zip(found, files, strict=True)
        ]
    if not samples:
        raise DatasetError(f"--defects {root}: holds no class of defects; {layout}")
    _refuse_faults(root, samples)
    return samples


def defects_of_types(root: Path, types: Sequence[str]) -> dict[str, Path]:
    """The folders of labelled images by the product type that each is named after; not every type needs one.

    Raises DatasetError where a folder is of no type, or there is none.
    """
    layout = f"with --conditional, expected {root}/TYPE/<class>/<name>.png for the types {', '.join(types)}"
    if not root.is_dir():
        raise DatasetError(f"--defects {root}: no such folder; {layout}")
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    strange = sorted(set(folders) - set(types))
    if strange or not folders:
        found = f"{strange[0]} is none of the product types" if strange else "holds no folder"
        raise DatasetError(f"--defects {root}: {found}; {layout}")
    return folders


def _refuse_faults(root: Path, samples: Sequence[Sample]) -> None:
    bare = [sample.path for sample in samples if sample.mask is None]
    if bare:
        raise DatasetError(
            f"--defects {root}: no mask of {_names(root, bare)}: where a defect is, is what is learnt. Draw "
            f"{root}/{TRUTH}/<class>/<name>_mask.png, white where the defect is, or take the image out"
        )
    for sample in samples:
        record = examine(sample)
        if record.fault is not None:
            raise DatasetError(f"{sample.path}: {record.fault}. Remove the file or replace it, then train again")
        fault = mask_fault(record)
        if fault is not None and fault[0] in REFUSED:
            raise DatasetError(
                f"{sample.mask}: {fault[2]}; expected a mask of the image's size, 255 where the defect is and 0 "
                "elsewhere. Draw it again, or take the image out"
            )


def described(samples: Sequence[Sample]) -> str:
    """``5 images (chip 3, dent 2)``."""
    counts = Counter(sample.label for sample in samples)
    return f"{len(samples)} image(s) ({', '.join(f'{label} {count}' for label, count in sorted(counts.items()))})"


def rows_of(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """The images as the bundle keeps them: hash of image and mask, class, and path within the folder."""
    return [
        {
            "sha256": sha256_of_image(sample.path),
            "mask_sha256": sha256_of_image(sample.mask),
            "class": sample.label,
            "file": sample.group,
        }
        for sample in samples
        if sample.mask is not None
    ]


def refuse_known(root: Path, samples: Sequence[Sample], dataset: Dataset) -> str:
    """Raise DatasetError where an image of ``samples`` is one of ``dataset``: of its test, or a good one.

    Files and pixels are compared, and the fine texture, which copies that were saved, cut, turned or lit anew have in
    common, and other exposures of one part; where parts are too alike for that, small pictures as they lie. Returns
    how that went, as the bundle keeps it.
    """
    apart = per_picture(dataset)
    labelled = _read([sample.path for sample in samples])
    test, good = (_read([sample.path for sample in side]) for side in (apart.test, apart.train))
    _refuse_equal(root, labelled, test, "in test/", "the evaluation would judge what was learnt. " + WAY_OUT)
    _refuse_equal(root, labelled, good, "among the good images", "decide which it is, and remove the other")
    if not test:
        return "there was no test image to compare with"
    typical = good[:: max(1, len(good) // TYPICAL)]
    thumbs = [np.stack([seen.thumb for seen in side]) for side in (labelled, test, typical)]
    first, second = (
        Side([seen.path for seen in side], own, np.full(len(side), number, np.int64))
        for number, (side, own) in enumerate(zip((labelled, test), thumbs, strict=False))
    )
    proof = Proof(Side([seen.path for seen in typical], thumbs[2], np.arange(len(typical), dtype=np.int64)))
    likeness = Likeness(np.concatenate(thumbs))
    square = all(seen.square for seen in (*labelled, *test))
    twins = find_twins(first, second, proof, square, likeness=likeness)
    if twins.limit is None:
        pairs = find_equal(first.paths, second.paths, [seen.path for seen in typical], square)
    else:
        pairs = find_copies(first.paths, second.paths, proof, square) or twins.pairs
    if pairs:
        pair = pairs[0]
        turned = f", {pair.turned}" if pair.turned else ""
        what = "pixels agree" if twins.limit is None else "texture agrees"
        raise DatasetError(
            f"--defects {root}: {len(pairs)} of its images show what an image in test/ shows, such as "
            f"{first.paths[pair.first].relative_to(root)} and {second.paths[pair.second].relative_to(dataset.root)} "
            f"(their {what} to {pair.texture:.0%}{turned}): the evaluation would judge what was learnt. "
            f"{WAY_OUT}"
        )
    if twins.limit is None:
        return (
            f"{len(test)} test images: none is nearly equal as it lies; whether one was cut out otherwise or shows the "
            "same part cannot be told, parts are too alike"
        )
    return f"{len(test)} test images: none is a copy or shows the same part"


WAY_OUT = "Take them out of the one or of the other; what is learnt from must never be tested on"


def _refuse_equal(root: Path, labelled: Sequence[Seen], others: Sequence[Seen], where: str, why: str) -> None:
    files, pictures = ({getattr(other, name) for other in others} for name in ("file", "pixels"))
    same = [seen.path for seen in labelled if seen.file in files or seen.pixels in pictures]
    if same:
        raise DatasetError(f"--defects {root}: {_names(root, same)} is {where} as well: {why}")


def _names(root: Path, paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(path.relative_to(root).as_posix() for path in paths[:NAMED]) + more


def _read(paths: Sequence[Path]) -> list[Seen]:
    """What is compared of each that can be read; what cannot is never evaluated either."""
    with ThreadPoolExecutor(READERS) as readers:
        return [seen for seen in readers.map(_seen, paths) if seen is not None]


def _seen(path: Path) -> Seen | None:
    try:
        pixels: Pixels = read_image(path, 3)
    except ImageError:
        return None
    own = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    return Seen(path, sha256_of_image(path), own, glance(pixels).grey_thumb, pixels.shape[0] == pixels.shape[1])
