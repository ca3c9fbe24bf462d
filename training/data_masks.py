"""What the masks of a data folder give cause to say, each with the way out (before hop 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from contract.dataset import Dataset, images_in
from contract.errors import ImageError
from contract.images import read_image
from training.data_files import GOOD, READERS, Record
from training.data_findings import Finding, Level, named, plural


def about_masks(dataset: Dataset, records: Sequence[Record]) -> Iterator[Finding]:
    """Masks that are missing, empty, not binary, of another size, for good images, or for no image."""
    root = dataset.root
    bad = [record for record in records if record.sample.label != GOOD and record.look is not None]
    without = [record for record in bad if record.sample.mask is None]
    if without:
        some = len(without) < len(bad)
        classes = ", ".join(sorted({record.sample.label for record in without}))
        yield Finding(
            Level.WARNING if some else Level.NOTE, "mask-missing",
            f"{plural(len(without), 'defective image')} without a mask ({classes})",
            "they count for image-level figures only; draw ground_truth/<class>/<name>_mask.png for pixel figures",
            named(root, (record.sample.path for record in without)),
        )  # fmt: skip
    with ThreadPoolExecutor(READERS) as readers:
        faults = list(readers.map(mask_fault, [record for record in bad if record.sample.mask is not None]))
    for code, (level, what, way_out) in MASK_FAULTS.items():
        found = [(record, text) for fault in faults if fault is not None for c, record, text in [fault] if c == code]
        if found:
            masks = [record.sample.mask for record, _ in found if record.sample.mask is not None]
            sentence = f"{plural(len(found), 'mask')} {what} ({masks[0].name}: {found[0][1]})"
            yield Finding(level, code, sentence, way_out, named(root, masks))
    yield from _idle_masks(dataset)


MASK_FAULTS = {
    "mask-unreadable": (Level.ERROR, "cannot be read", "draw it again"),
    "mask-size": (
        Level.ERROR, "of another size than its image",
        "export at the image's size; a scaled mask marks the wrong pixels",
    ),
    "mask-empty": (Level.WARNING, "mark nothing", "draw the defect, or remove the mask where it cannot be seen"),
    "mask-grey": (
        Level.WARNING, "not binary; 128 and above counts as defective",
        "store 0 and 255 as PNG: a JPEG or a smooth brush leaves greys",
    ),
    "mask-full": (Level.WARNING, "mark nearly all of the image", "look whether it is inverted"),
}  # fmt: skip


def mask_fault(record: Record) -> tuple[str, Record, str] | None:
    """A code of ``MASK_FAULTS``, the record and a few words, or None."""
    if record.sample.mask is None or record.look is None:
        return None
    try:
        mask = read_image(record.sample.mask, 1)
    except ImageError as error:
        return "mask-unreadable", record, str(error).removeprefix(f"{record.sample.mask}: ")
    if mask.shape != record.look.size_hw:
        (height, width), (own, across) = mask.shape, record.look.size_hw
        return "mask-size", record, f"{width} x {height}, the image {across} x {own}"
    levels = np.unique(mask)
    marked = float((mask >= 128).mean())
    if len(levels) == 2 and levels[0] == 0 and levels[1] < 128:
        return "mask-empty", record, f"its mark is {levels[1]}, under 128; 255 is expected"
    if marked == 0:
        return "mask-empty", record, f"no pixel at 128 or above, the highest is {levels[-1]}"
    if len(levels) > 2:
        return "mask-grey", record, f"{len(levels)} levels"
    return ("mask-full", record, f"{marked:.0%} of the pixels") if marked > 0.95 else None


def _idle_masks(dataset: Dataset) -> Iterator[Finding]:
    truth = dataset.root / "ground_truth"
    if not truth.is_dir():
        return
    used = {sample.mask for sample in dataset.test}
    masks = [path for folder in sorted(truth.iterdir()) if folder.is_dir() for path in images_in(folder)]
    of_good = [path for path in masks if path.parent.name == GOOD]
    idle = [path for path in masks if path not in used and path.parent.name != GOOD]
    if of_good:
        yield Finding(
            Level.WARNING, "mask-good", f"{plural(len(of_good), 'mask')} for good images, never used",
            "remove them; where one marks a defect, move its image to the defect's class", named(dataset.root, of_good),
        )  # fmt: skip
    if idle:
        yield Finding(
            Level.WARNING, "mask-idle", f"{plural(len(idle), 'mask')} without an image",
            "expected ground_truth/<class>/<name>_mask.png beside test/<class>/<name>", named(dataset.root, idle),
        )  # fmt: skip
