"""Whether good images and parts are enough, and how varied their light is, with the way out (before hop 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from contract.dataset import Dataset
from training.data_files import GOOD, Record, in_train
from training.data_findings import Finding, Level, named, plural

FEWEST_PARTS = 5  # under which `train` refuses
FEW_PARTS = 30
USEFUL_PARTS = 100
FEW_TESTED = 20
HOLDOUT = 0.3  # the share that `train` keeps for calibration
CLIPPED = 0.05
SHIFTED = 3.0
STEADY = 0.3  # levels


def about_amounts(dataset: Dataset, records: Sequence[Record]) -> Iterator[Finding]:
    """How many good parts there are, what false-reject rate they carry, and what a test can say."""
    images = sum(record.look is not None and in_train(dataset.root, record) for record in records)
    parts = len({record.sample.group for record in records if record.look and in_train(dataset.root, record)})
    kept = round(HOLDOUT * parts)
    text = f"{plural(images, 'good image')} of {plural(parts, 'part')} to learn from ({dataset.grouping})"
    carried = f"; the {plural(kept, 'part')} kept for calibration carry a false-reject rate of {1 / (kept + 1):.3f}"
    if parts < FEWEST_PARTS:
        level, way_out = Level.ERROR, f"at least {FEWEST_PARTS} parts are needed, {USEFUL_PARTS} to 300 are useful"
    elif parts < FEW_PARTS:
        level, way_out = Level.WARNING, f"{USEFUL_PARTS} to 300 parts are useful: take pictures of more good parts"
    else:
        level, way_out = Level.NOTE, "" if parts >= USEFUL_PARTS else f"{USEFUL_PARTS} to 300 parts are useful"
    yield Finding(level, "amount", text + (carried if kept else ""), way_out, [])
    tested = Counter(sample.label for sample in dataset.test)
    if not tested:
        yield Finding(
            Level.NOTE, "no-test", "no test images: nothing can be said of leaks, light and trivial baselines",
            "add test/good and test/<defect> to measure a model before it stands at the line", [],
        )  # fmt: skip
    elif not tested[GOOD] or len(tested) == 1:
        yield Finding(
            Level.WARNING, "one-sided", f"the test images are {'all good' if tested[GOOD] else 'all defective'}",
            "an AUROC needs both: add test/good and test/<defect>", [],
        )  # fmt: skip
    else:
        few = [f"{label} {count}" for label, count in sorted(tested.items()) if count < FEW_TESTED]
        if few:
            yield Finding(
                Level.NOTE, "few-tested", f"few test images of {', '.join(few)}",
                f"a figure from fewer than {FEW_TESTED} images moves by several points with each of them", [],
            )  # fmt: skip


def about_light(dataset: Dataset, records: Sequence[Record]) -> Iterator[Finding]:
    """How varied exposure is, what is clipped, and whether test/good is lit as train/good is."""
    seen = [record for record in records if record.look is not None]
    train = [record for record in seen if in_train(dataset.root, record)]
    light = np.array([record.look.brightness for record in train if record.look is not None])
    if len(light) < 2:
        return
    low, middle, high = (float(v) for v in np.quantile(light, [0.05, 0.5, 0.95]))
    yield Finding(
        Level.NOTE, "exposure",
        f"mean brightness of train/good: {middle:.0f} of 255, 9 of 10 images from {low:.0f} to {high:.0f}",
        "all lit alike: a lamp that ages will look like a defect; vary exposure" if high - low < STEADY else "", [],
    )  # fmt: skip
    for end, shares in (
        ("over-exposed", [record.look.white for record in train if record.look is not None]),
        ("under-exposed", [record.look.black for record in train if record.look is not None]),
    ):
        clipped = [record for record, share in zip(train, shares, strict=True) if share > CLIPPED]
        if len(clipped) > 0.05 * len(train):
            yield Finding(
                Level.NOTE, "clipped",
                f"{len(clipped)} of {len(train)} good images have more than {CLIPPED:.0%} of their pixels {end}",
                "nothing can be seen there; fine for a background, else change exposure",
                named(dataset.root, (record.sample.path for record in clipped)),
            )  # fmt: skip
    tested = [r for r in seen if r.sample.label == GOOD and not in_train(dataset.root, r)]
    good = np.array([record.look.brightness for record in tested if record.look is not None])
    spread = max(float(light.std()), 1.0)
    if len(good) >= 5 and abs(float(np.median(good)) - middle) > SHIFTED * spread:
        yield Finding(
            Level.WARNING, "shift",
            f"test/good is lit differently: median brightness {float(np.median(good)):.0f}, train/good {middle:.0f} "
            f"(spread {spread:.1f})",
            "good test images will be rejected for their light; take both under the line's light", [],
        )  # fmt: skip
