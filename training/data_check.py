"""The data's own doctor: a folder of images -> findings, twins and what needs no model (before hop 1)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contract.dataset import Dataset, Sample, load_dataset, per_picture
from contract.errors import DatasetError
from training.data_amounts import about_amounts, about_light
from training.data_baselines import CONFOUND, SHAPE, Baseline, Confound, baselines, confounds
from training.data_files import GOOD, Record, examine, read_records
from training.data_findings import Finding, Level, named
from training.data_masks import about_masks
from training.data_rules import about_files, about_formats
from training.data_twins import Pair, Proof, Side, Twins, find_twins

LEAK = 0.10  # share of the test images, or of the good ones, from which on twins are an error
EASY = 0.95
SUMMARY_IMAGES = 300
SUMMARY_SECONDS = 3.0
SUMMARY_PROOFS = 60
FORMAT = 1
NONE_FOUND = Twins([], 0, 0, 0, None, np.zeros(0, np.float32))

Progress = Callable[[str, int, int], None]


class Twin(NamedTuple):
    """Two image files that show one part; ``turned`` says how the first has to be turned to match."""

    first: Path
    second: Path
    likeness: float
    texture: float
    turned: str


class Examination(NamedTuple):
    """All that was found out about a folder.

    ``twins`` and ``own_twins``: proven pairs test/train and within train, best first. ``likeness``: of every test
    image to its nearest training image, 0 to 1. ``light``: mean brightness by class.
    """

    root: Path
    counts: dict[str, int]
    grouping: str
    findings: list[Finding]
    baselines: list[Baseline]
    twins: list[Twin]
    own_twins: list[Twin]
    likeness: list[float]
    light: dict[str, list[float]]

    def worst(self) -> Level | None:
        """The worst level among the findings, None where there are none."""
        levels = [finding.level for finding in self.findings]
        return next((level for level in Level if level in levels), None)

    def document(self) -> dict[str, Any]:
        """The examination as JSON: see docs/data.md."""
        return {
            "format": FORMAT,
            "folder": str(self.root),
            "images": self.counts,
            "grouping": self.grouping,
            "levels": {level.value: sum(finding.level is level for finding in self.findings) for level in Level},
            "findings": [finding._asdict() for finding in self.findings],
            "baselines": [row._asdict() for row in self.baselines],
            "twins": [self._pair(twin) for twin in self.twins],
            "twins_within_train": [self._pair(twin) for twin in self.own_twins],
        }

    def _pair(self, twin: Twin) -> dict[str, Any]:
        first, second = named(self.root, (twin.first, twin.second))
        return {**twin._asdict(), "first": first, "second": second}


def check(root: Path, group_pattern: str | None = None, progress: Progress | None = None) -> Examination:
    """Examine ``root``; ``progress`` hears of each stage, what is done and of how many.

    Raises DatasetError where there is no folder, no image or no way to tell the parts apart.
    """
    tell = progress or (lambda stage, done, of: None)
    try:
        dataset = per_picture(load_dataset(root, group_pattern))
    except OSError as error:
        raise DatasetError(f"{root}: cannot be listed ({error.strerror or error})") from error
    samples = [*dataset.train, *dataset.test]
    records = read_records(samples, _counter(tell, "Reading images", len(samples)))
    train = [record for record in records[: len(dataset.train)] if record.look is not None]
    test = [record for record in records[len(dataset.train) :] if record.look is not None]
    findings = [
        *about_files(dataset, records),
        *about_formats(dataset, records),
        *about_masks(dataset, records),
        *_about_groups(dataset),
    ]
    tell("Comparing images", 0, 0)
    twins, own = _twins(train, test, tell)
    findings += [*_about_leak(dataset, test, train, twins), *_about_own_twins(dataset, train, own)]
    tell("Trivial baselines", 0, 0)
    rows = baselines(train, test)
    findings += [*_about_confounds(confounds(test)), *_about_baselines(rows, twins)]
    findings += [*about_amounts(dataset, records), *about_light(dataset, records)]
    order = list(Level)
    return Examination(
        root=root,
        counts={"train": len(dataset.train), **Counter(sample.label for sample in dataset.test)},
        grouping=dataset.grouping,
        findings=sorted(findings, key=lambda finding: order.index(finding.level)),
        baselines=rows,
        twins=_by_file(twins, test, train),
        own_twins=_once(_by_file(own, train, train)),
        likeness=[float(value) for value in twins.likeness],
        light=_light(train, test),
    )


def _counter(tell: Progress, stage: str, of: int) -> Callable[[int], None]:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        tell(stage, done, of)

    return advance


def _side(records: Sequence[Record], groups: dict[str, int]) -> Side:
    thumbs = [record.look.grey_thumb for record in records if record.look is not None]
    return Side(
        [record.sample.path for record in records],
        np.stack(thumbs) if thumbs else np.zeros((0, 32, 32), np.float32),
        np.array([groups[record.sample.group] for record in records], np.int64),
    )


def _twins(train: Sequence[Record], test: Sequence[Record], tell: Progress) -> tuple[Twins, Twins]:
    """Test images that show a part of train, and train images that show another group's part."""
    groups = {record.sample.group: at for at, record in enumerate(train)}
    known = _side(train, groups)
    # Names may say that two images on different sides are of one part: all the more they are compared.
    asked = _side(test, {record.sample.group: -1 - at for at, record in enumerate(test)})
    looks = [record.look for record in (*train, *test) if record.look is not None]
    square = bool(looks) and all(max(look.size_hw) <= 1.02 * min(look.size_hw) for look in looks)
    proof = Proof(known) if train else None
    if proof is None:
        return NONE_FOUND, NONE_FOUND
    twins = find_twins(asked, known, proof, square, _counter(tell, "Comparing test with train", 0))
    return twins, find_twins(known, known, proof, square, _counter(tell, "Comparing train with itself", 0))


def _by_file(twins: Twins, first: Sequence[Record], second: Sequence[Record]) -> list[Twin]:
    return [
        Twin(first[pair.first].sample.path, second[pair.second].sample.path, *_figures(pair)) for pair in twins.pairs
    ]


def _figures(pair: Pair) -> tuple[float, float, str]:
    return round(pair.likeness, 4), round(pair.texture, 4), pair.turned


def _once(twins: list[Twin]) -> list[Twin]:
    """Each pair once, whichever way round it was found."""
    return list({frozenset((twin.first, twin.second)): twin for twin in reversed(twins)}.values())[::-1]


def _light(train: Sequence[Record], test: Sequence[Record]) -> dict[str, list[float]]:
    light = {"train/good": [record.look.brightness for record in train if record.look is not None]}
    for label in sorted({record.sample.label for record in test}, key=lambda name: (name != GOOD, name)):
        light[f"test/{label}"] = [r.look.brightness for r in test if r.look is not None and r.sample.label == label]
    return light


def _about_groups(dataset: Dataset) -> Iterator[Finding]:
    shared = {sample.group for sample in dataset.train} & {sample.group for sample in dataset.test}
    if shared:
        files = [sample.path for sample in dataset.test if sample.group in shared]
        yield Finding(
            Level.ERROR, "parts-on-both-sides",
            f"{len(shared)} part(s) have images in train and in test, {len(files)} of {len(dataset.test)} test images "
            f"({dataset.grouping})",
            "split by part: move every image of a part to one side", named(dataset.root, files),
        )  # fmt: skip


def _about_leak(dataset: Dataset, test: Sequence[Record], train: Sequence[Record], twins: Twins) -> Iterator[Finding]:
    if not test or not train:
        return
    if twins.limit is None:
        yield _cannot_tell("between train and test")
        return
    if not twins.pairs:
        text = f"no test image shows a part of train, of {len(test)} looked at"
        yield Finding(Level.NOTE, "no-leak", text, "", [])
        return
    found = [test[pair.first] for pair in twins.pairs]
    factor = twins.images / len(twins.pairs)
    good = sum(record.sample.label == GOOD for record in test)
    of_good = factor * sum(record.sample.label == GOOD for record in found) / max(1, good)
    share = twins.images / len(test)
    worst = twins.pairs[0]
    text = (
        f"{twins.images} of {len(test)} test images show a part that train holds too, in another exposure or copy "
        f"({of_good:.1%} of test/good); the surest: {test[worst.first].sample.path.name} and "
        f"{train[worst.second].sample.path.name}"
    )
    if twins.checked < twins.candidates:
        text += f"; extrapolated from {twins.checked} of {twins.candidates} candidates"
    leak = max(share, of_good) >= LEAK
    gained = f"what is missing to an AUROC of 1 can shrink by up to {min(1.0, of_good):.0%} without any skill"
    yield Finding(
        Level.ERROR if leak else Level.WARNING, "leak" if leak else "twins", text,
        f"{gained}; split by part: every image of a part on one side (groups.csv or --group-pattern name the parts)",
        named(dataset.root, (record.sample.path for record in found)),
    )  # fmt: skip


def _cannot_tell(where: str) -> Finding:
    return Finding(
        Level.NOTE, "alike",
        f"different parts agree down to their texture: whether one part was photographed twice {where} cannot be told",
        "make sure that images of one part are on one side", [],
    )  # fmt: skip


def _about_own_twins(dataset: Dataset, train: Sequence[Record], twins: Twins) -> Iterator[Finding]:
    if not twins.pairs:
        return
    share = twins.images / len(train)
    worst = twins.pairs[0]
    yield Finding(
        Level.ERROR if share >= LEAK else Level.WARNING, "one-part-twice",
        f"{twins.images} of {len(train)} images in train/good show a part that counts as another one "
        f"({dataset.grouping}); the surest: {train[worst.first].sample.path.name} and "
        f"{train[worst.second].sample.path.name}",
        "name the parts in groups.csv (columns file,group) or with --group-pattern, or keep one image of each: else "
        "validation and calibration see parts that were learnt, and the false-reject rate is not kept",
        named(dataset.root, (train[pair.first].sample.path for pair in twins.pairs)),
    )  # fmt: skip


def _about_confounds(found: Sequence[Confound]) -> Iterator[Finding]:
    light = [confound for confound in found if confound.name not in SHAPE]
    shape = [confound for confound in found if confound.name in SHAPE]
    for worst, kind in ((light[:1], "light"), (shape[:1], "size")):
        for confound in worst:
            names = ", ".join(f"{c.name} {c.auroc:.2f}" for c in (light if kind == "light" else shape))
            where = (
                "" if kind == "size" else " though no defect lies there" if confound.masked else " (no mask says where)"
            )
            yield Finding(
                Level.ERROR if confound.masked else Level.WARNING, f"{kind}-confound",
                f"good and defective test images differ in {'light or background' if kind == 'light' else 'size'}"
                f"{where}: AUROC of {names} from {confound.counted} defective images",
                "image-level figures on this set mean nothing; photograph good and defective parts in one session, "
                "under the same light, and cut them the same way", [],
            )  # fmt: skip


def _about_baselines(rows: Sequence[Baseline], twins: Twins) -> Iterator[Finding]:
    rows = [row for row in rows if row.name != "file size"]  # how a picture compresses is its content, defect included
    if not rows:
        return
    best = max(rows, key=lambda row: row.overall)
    text = f"the best trivial baseline, {best.name}, reaches image AUROC {best.overall:.3f}: a model must beat it"
    leaky = " (flattered by the twins in train)" if twins.pairs and best.name == "nearest neighbour" else ""
    yield Finding(
        Level.WARNING if best.free and best.overall > EASY else Level.NOTE, "baseline", text + leaky,
        "look why it is so easy before a model is praised" if best.overall > CONFOUND else "", [],
    )  # fmt: skip


def summary(dataset: Dataset) -> list[str]:
    """Sentences about ``train`` alone, for the start of a training; a few seconds, no test image is opened.

    At most 300 images spread over the set are looked at, and no more after three seconds.
    """
    began = time.perf_counter()
    dataset = per_picture(dataset)
    step = max(1, -(-len(dataset.train) // SUMMARY_IMAGES))
    records: list[Record] = []
    for sample in _spread(dataset.train[::step]):
        if time.perf_counter() - began > SUMMARY_SECONDS:
            break
        records.append(examine(sample))
    records.sort(key=lambda record: record.sample.path)
    readable = [record for record in records if record.look is not None]
    trained = dataset._replace(test=[])
    findings = [
        *(finding for finding in about_files(trained, records) if not finding.code.startswith("stray")),
        *about_formats(trained, records),
    ]
    findings = [finding for finding in findings if finding.level is not Level.NOTE]
    if len(readable) > 1:
        findings += _quick_twins(trained, readable)
    parts = len({sample.group for sample in dataset.train})
    looked = "" if len(records) == len(dataset.train) else f" ({len(records)} of them looked at)"
    first = f"data: {len(dataset.train)} good images{looked} of {parts} parts, {dataset.grouping}"
    return [first, *(f"data, {finding.level}: {finding.what}; {finding.way_out}" for finding in findings)]


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples so ordered that any first part of them is spread over all."""
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[at] for at in order]


def _quick_twins(dataset: Dataset, records: Sequence[Record]) -> list[Finding]:
    groups = {record.sample.group: at for at, record in enumerate(records)}
    side = _side(records, groups)
    twins = find_twins(side, side, Proof(side), proofs=SUMMARY_PROOFS)
    return list(_about_own_twins(dataset, records, twins))
