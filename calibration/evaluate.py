"""Bundle and test images -> image, pixel and line figures, in all and per defect class (at the engineer's desk).

Images count for AUROC, AP and F1 with their raw score, whether or not the quality gate would have let them pass;
for rejects and escapes with the verdict that the line would have got, as shares of the inspected ones. Map and mask
meet at the picture's own size, its longer side at most 256 px: the map goes there bilinearly, a mask's pixel counts
if any of it is marked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.by_part import kept, rate_of_images
from calibration.calibrate import threads
from calibration.errors import CalibrationError
from calibration.holdout import pattern_of, refuse_learnt, refuse_other_fixture
from calibration.looks import LOOKS, append_look
from calibration.metrics import DEFECTIVE_FROM, escapes_at, localization, ranking, resize_mask, scale_down
from calibration.progress import steps
from contract.bundle import Bundle, Precision, open_bundle
from contract.dataset import Dataset, Sample, load_dataset
from contract.decision import PartScore
from contract.errors import FlawlineError, ImageError
from contract.event import Verdict
from contract.images import Pixels, extent_px, read_image
from contract.part_pictures import cut_like, line_of, read_part
from contract.preprocess import Picture
from contract.recipe import Thresholds
from contract.stats import Rate, rate_fields
from edge_runtime.engines import open_engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector
from edge_runtime.picture import join_maps

GOOD = "good"
FORMAT = "flawline.evaluation/1"
FIXED_FALSE_REJECTS = 0.05


class Seen(NamedTuple):
    """One test image: verdict, raw score (None: not readable or failed), and map and mask of equal size if wanted.

    ``extent_px``: the longest extent of its defect in pixels of the image, 0 without a mask.
    """

    sample: Sample
    verdict: Verdict
    score: float | None = None
    map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    extent_px: float = 0.0
    took_ms: float = 0.0

    @property
    def label(self) -> str:
        return self.sample.label


class Evaluation(NamedTuple):
    """The figures, and the scores per class that a page draws."""

    figures: dict[str, Any]
    scores: dict[str, list[float]]


def evaluate(
    folder: Path, data: Path, engine_name: str = "auto", pattern: str | None = None, precision: Precision = "fp32"
) -> Evaluation:
    """Inspect every test image of ``data`` as the line would. Raises CalibrationError where there are none."""
    bundle = open_bundle(folder)
    refuse_other_fixture(bundle, data)
    dataset = load_dataset(data, pattern_of(bundle, pattern))
    if not dataset.test:
        raise CalibrationError(f"{data}: no test images; expected {data}/test/good and {data}/test/<defect>")
    refuse_learnt(bundle, dataset.test)
    inspector = open_inspector(bundle, engine_name, precision)
    seen = [look(inspector, sample) for sample in steps(dataset.test, "inspecting test images")]
    return evaluated(inspector, dataset, seen)


def open_inspector(bundle: Bundle, engine_name: str, precision: Precision) -> Inspector:
    """The line's own inspection at the engineer's desk, proven on the golden images."""
    engine = open_engine(engine_name, bundle, threads(), precision)
    check_golden(engine, bundle)
    return Inspector(bundle, engine)


def evaluated(inspector: Inspector, dataset: Dataset, seen: list[Seen]) -> Evaluation:
    """The figures of what was seen of every test image."""
    scores = {label: [s.score for s in seen if s.label == label and s.score is not None] for label in labels_of(seen)}
    return Evaluation(_document(inspector.bundle, dataset, inspector.engine.describe(), seen), scores)


def look(inspector: Inspector, sample: Sample) -> Seen:
    """Inspect one test image; what cannot be read is NOT_INSPECTED without a score."""
    try:
        part = read_part(sample.path, inspector.bundle.manifest.recipe, line_of(inspector.bundle))
    except ImageError:
        return Seen(sample, Verdict.NOT_INSPECTED)
    start = time.perf_counter()
    outcome = inspector.inspect(part)
    took_ms = 1e3 * (time.perf_counter() - start)
    try:
        scored = outcome.part or inspector.score(part)[0]
    except FlawlineError:
        return Seen(sample, outcome.verdict, took_ms=took_ms)
    return with_truth(Seen(sample, outcome.verdict, scored.score, took_ms=took_ms), part, scored, inspector.bundle)


def with_truth(seen: Seen, part: Picture, scored: PartScore, bundle: Bundle | None = None) -> Seen:
    """The same with map and mask at a common size, where the picture has a mask or is good.

    ``bundle``: whose preprocess file, if it has one, cut the picture out, and cuts the mask.
    """
    if isinstance(part, Mapping):  # a mask would be of one camera's picture
        return seen
    part_hw = (part.shape[0], part.shape[1])
    truth = _truth(seen.sample, part_hw, bundle)
    if truth is None:
        return seen
    size = scale_down(part_hw)
    return seen._replace(
        map=join_maps(scored.maps, part_hw, size),
        mask=resize_mask(truth, size),
        extent_px=extent_px(truth >= DEFECTIVE_FROM),
    )


def _truth(sample: Sample, part_hw: tuple[int, int], bundle: Bundle | None) -> Pixels | None:
    """The mask at the picture's own size, empty for a good image; None for a defective one without, or with none."""
    if sample.label == GOOD:
        return np.zeros(part_hw, np.uint8)
    if sample.mask is None:
        return None
    whole = read_image(sample.mask, 1)
    if not whole.any():
        return None
    if whole.max() < DEFECTIVE_FROM:
        raise CalibrationError(
            f"{sample.mask}: its highest value is {whole.max()}, so every pixel would count as good; expected 0 "
            f"and 255 (defective from {DEFECTIVE_FROM}). Save the masks so; flawline data check lists them all"
        )
    if bundle is not None:
        whole = cut_like(whole, sample.path, bundle.manifest.recipe, line_of(bundle))
        if not whole.any():  # what is defective lies outside of what the line looks at
            return None
    if whole.shape != part_hw:
        whole = np.asarray(cv2.resize(whole, part_hw[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
    return whole


def labels_of(seen: list[Seen]) -> list[str]:
    """Classes, good first."""
    return sorted({image.label for image in seen}, key=lambda label: (label != GOOD, label))


def _document(bundle: Bundle, dataset: Dataset, engine: str, seen: list[Seen]) -> dict[str, Any]:
    manifest = bundle.manifest
    good = [image for image in seen if image.label == GOOD]
    bad = [image for image in seen if image.label != GOOD]
    classes = {label: [image for image in bad if image.label == label] for label in labels_of(bad)}
    return {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": manifest.id,
        "model": manifest.model.name,
        "seed": manifest.training.get("settings", {}).get("seed"),
        "model_sha256": bundle.model_sha256,
        "learnt_defects": manifest.training.get("defects"),
        "calibration": manifest.calibration_id(),
        "engine": engine,
        "data": str(dataset.root),
        "dataset": dataset.root.resolve().name,
        "grouping": dataset.grouping,
        "thresholds": None if manifest.thresholds is None else manifest.thresholds.model_dump(mode="json"),
        "counts": {
            "images": len(seen),
            "good": len(good),
            "defective": len(bad),
            "with_mask": sum(image.mask is not None for image in bad),
            "parts": len({sample.group for sample in dataset.test}),
            "without_score": sum(image.score is None for image in seen),
        },
        "median_ms": float(np.median([image.took_ms for image in seen])),
        **figures_of(good, bad),
        "kept": _kept(manifest.thresholds, good),
        "verdicts": {"good": _verdicts(good), "defective": _verdicts(bad)},
        "classes": {
            label: figures_of(good, images) | {"verdicts": _verdicts(images)} for label, images in classes.items()
        },
    }


def _kept(thresholds: Thresholds | None, good: list[Seen]) -> dict[str, Any] | None:
    inspected = _inspected(good)
    return kept(thresholds, [image.verdict is Verdict.REJECT for image in inspected], _groups(inspected))


def figures_of(good: list[Seen], bad: list[Seen]) -> dict[str, Any]:
    """How scores and maps rank, and what the verdicts came to, of defective against good images."""
    ranked = ranking(_scores(good), _scores(bad))
    escapes = escapes_at(_scores(good), _scores(bad), FIXED_FALSE_REJECTS)
    pairs = [(s.map, s.mask) for s in [*good, *bad] if s.map is not None and s.mask is not None]
    placed = localization([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return {
        "image_auroc": ranked.auroc,
        "image_ap": ranked.ap,
        "f1_max": ranked.f1_max,
        "f1_threshold": ranked.f1_threshold,
        "pixel_auroc": placed.pixel_auroc,
        "pixel_ap": placed.pixel_ap,
        "aupro": placed.aupro,
        "aupro_005": placed.aupro_005,
        "escape_rate_at_frr05": escapes,
        "images": len(bad),
        **rate_fields("false_reject", share(good, Verdict.REJECT)),
        **rate_fields("escape", share(bad, Verdict.PASS)),
        **rate_fields("review_good", share(good, Verdict.REVIEW)),
        **rate_fields("review_defective", share(bad, Verdict.REVIEW)),
        "not_inspected_good": _not_inspected(good),
        "not_inspected_defective": _not_inspected(bad),
    }


def _scores(images: list[Seen]) -> NDArray[np.float64]:
    return np.array([image.score for image in images if image.score is not None], np.float64)


def share(images: list[Seen], verdict: Verdict) -> Rate:
    """How many of the inspected images got ``verdict``, with the interval that their parts allow."""
    inspected = _inspected(images)
    return rate_of_images([image.verdict is verdict for image in inspected], _groups(inspected))


def _inspected(images: list[Seen]) -> list[Seen]:
    return [image for image in images if image.verdict is not Verdict.NOT_INSPECTED]


def _groups(images: list[Seen]) -> list[str]:
    return [image.sample.group for image in images]


def _not_inspected(images: list[Seen]) -> int:
    return sum(image.verdict is Verdict.NOT_INSPECTED for image in images)


def _verdicts(images: list[Seen]) -> dict[str, int]:
    counts = Counter(image.verdict.value for image in images)
    return {verdict.value: counts[verdict.value] for verdict in Verdict}


def log_look(path: Path, figures: dict[str, Any]) -> None:
    """Append the figures to the record of looks at test images.

    The record names the data set, never a folder of this machine, so that it can be published. Raises
    CalibrationError where ``path`` has other columns.
    """
    row = {
        **{name: figures[name] for name in LOOKS[:5]},
        "calibration": figures["calibration"] or "",
        "images": figures["counts"]["images"],
        "image_auroc": figures["image_auroc"],
        "aupro": figures["aupro"],
        "false_rejects": figures["false_reject_hits"],
        "escapes": figures["escape_hits"],
    }
    append_look(path, row)
