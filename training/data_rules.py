"""What files, sizes and colours of a data folder give cause to say, each with the way out (before hop 1)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from contract.dataset import Dataset
from training.data_files import GOOD, Record, in_train, strays
from training.data_findings import Finding, Level, named, plural

ASPECT_OUTLIER = 1.25


def about_files(dataset: Dataset, records: Sequence[Record]) -> Iterator[Finding]:
    """Unreadable and odd files, copies, and what lies about."""
    root = dataset.root
    faults: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.fault is not None:
            faults[record.fault.partition(":")[0].partition("(")[0].strip()].append(record)
    for broken in faults.values():
        yield Finding(
            Level.ERROR, "unreadable",
            f"{plural(len(broken), 'image')} cannot be used: {broken[0].sample.path.name}: {broken[0].fault}",
            "copy from the source again, or remove", named(root, (r.sample.path for r in broken)),
        )  # fmt: skip
    yield from _oddities(root, records)
    yield from _copies(root, records)
    yield from _strays(dataset)


ODDITIES = {
    "suffix": (Level.NOTE, "carry another format's name", "rename them: other programs go by the suffix"),
    "depth": (
        Level.WARNING, "have more than 8 bits a channel and are cut to the upper 8",
        "export with 8 bits, scaled as the line's camera will deliver them",
    ),
    "alpha": (Level.WARNING, "have an alpha channel, which is ignored", "export without transparency"),
    "orientation": (
        Level.WARNING, "are turned by their EXIF tag when read; masks and other programs may not turn with them",
        "turn the pixels and remove the tag, as in `mogrify -auto-orient`",
    ),
}  # fmt: skip


def _oddities(root: Path, records: Sequence[Record]) -> Iterator[Finding]:
    for code, (level, what, way_out) in ODDITIES.items():
        odd = [record for record in records if code in record.oddities]
        if odd:
            sentence = f"{plural(len(odd), 'image')} {what} ({odd[0].sample.path.name}: {odd[0].oddities[code]})"
            yield Finding(level, code, sentence, way_out, named(root, (record.sample.path for record in odd)))


def _copies(root: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Files that are equal byte for byte, by what the copies make wrong."""
    same: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.sha256 and record.file_bytes:
            same[record.sha256].append(record)
    kinds: dict[str, list[list[Record]]] = {"conflict": [], "leak": [], "duplicate": []}
    for copies in same.values():
        sides = {in_train(root, record) for record in copies}
        labels = {record.sample.label for record in copies}
        if len(copies) > 1:
            kinds["conflict" if len(labels) > 1 else "leak" if len(sides) > 1 else "duplicate"].append(copies)
    said = {
        "conflict": (Level.ERROR, "lie in two classes", "decide which it is and remove the other"),
        "leak": (Level.ERROR, "lie in train and in test", "remove them from test: the model has seen them"),
        "duplicate": (Level.WARNING, "lie there more than once", "keep one of each"),
    }
    for kind, (level, what, way_out) in said.items():
        files = [record.sample.path for copies in kinds[kind] for record in copies]
        if files:
            sentence = f"{plural(len(kinds[kind]), 'picture')} {what}, byte for byte"
            yield Finding(level, f"copies-{kind}", sentence, way_out, named(root, files))


def _strays(dataset: Dataset) -> Iterator[Finding]:
    said = {
        "images": (Level.WARNING, "image", "outside the layout and not read", "move to train/good or test/<class>"),
        "files": (Level.NOTE, "file", "among the images and of another type", "move or remove what does not belong"),
        "folders": (Level.WARNING, "folder", "named like an image", "rename; its content is not read"),
        "broken": (Level.WARNING, "link", "that leads nowhere", "restore what it points to, or remove it"),
    }
    for kind, paths in strays(dataset).items():
        level, noun, what, way_out = said[kind]
        if paths:
            sentence = f"{plural(len(paths), noun)} {what}"
            yield Finding(level, f"stray-{kind}", sentence, way_out, named(dataset.root, paths))


def about_formats(dataset: Dataset, records: Sequence[Record]) -> Iterator[Finding]:
    """Mixed sizes, shapes, colour and file types; a type that goes with the class is worse than mixed."""
    seen = [record for record in records if record.look is not None]
    if not seen:
        return
    root = dataset.root
    sizes = Counter(record.look.size_hw for record in seen if record.look is not None)
    if len(sizes) > 1:
        heights, widths = zip(*sizes, strict=True)
        (height, width), most = sizes.most_common(1)[0]
        yield Finding(
            Level.NOTE, "sizes",
            f"{len(sizes)} sizes: {min(widths)} to {max(widths)} px wide, {min(heights)} to {max(heights)} px high; "
            f"most often {width} x {height} ({most} of {len(seen)})",
            "every image is scaled to the model's size: fine where the part fills each of them alike", [],
        )  # fmt: skip
    aspects = np.array([record.look.size_hw[1] / record.look.size_hw[0] for record in seen if record.look is not None])
    usual = float(np.median(aspects))
    odd = [r for r, a in zip(seen, aspects, strict=True) if max(a / usual, usual / a) > ASPECT_OUTLIER]
    if odd and len(odd) <= 0.1 * len(seen):
        yield Finding(
            Level.WARNING, "aspect",
            f"{plural(len(odd), 'image')} of another shape than the rest (width to height {usual:.2f})",
            "look whether they are cut as the others are: scaling distorts them",
            named(root, (record.sample.path for record in odd)),
        )  # fmt: skip
    colour = [record for record in seen if record.look is not None and record.look.colour]
    if 0 < len(colour) < len(seen):
        wanted = 2 * len(colour) <= len(seen)
        fewer = [record for record in seen if record.look is not None and record.look.colour is wanted]
        yield Finding(
            Level.WARNING, "channels",
            f"{len(colour)} images in colour, {len(seen) - len(colour)} in grey",
            "take all with one camera setting, or train with --channels grey",
            named(root, (record.sample.path for record in fewer)),
        )  # fmt: skip
    yield from _by_class(seen)


def _by_class(seen: Sequence[Record]) -> Iterator[Finding]:
    """File type and colour that tell good from defective without a look at the picture."""
    good = [record for record in seen if record.sample.label == GOOD]
    bad = [record for record in seen if record.sample.label != GOOD]
    if not good or not bad:
        return
    for what, of in (
        ("file type", lambda record: record.kind),
        ("colour", lambda record: "colour" if record.look.colour else "grey"),
        ("bit depth", lambda record: record.oddities.get("depth", "8 bits")),
    ):
        sides = [{of(record) for record in side} for side in (good, bad)]
        if not sides[0] & sides[1]:
            yield Finding(
                Level.ERROR, "format-confound",
                f"the {what} tells good from defective: {'/'.join(sorted(sides[0]))} against "
                f"{'/'.join(sorted(sides[1]))}",
                "take and store both the same way; compression and colour leave traces that a model finds", [],
            )  # fmt: skip
