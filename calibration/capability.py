"""What a calibrated bundle can find: detection rate by defect size, agreement of repeats, errors with intervals.

At the engineer's desk, beside hop 5. A defect is detected where its part is rejected or sent to review. Sizes are
longest extents, in millimetres where the bundle knows them, else in pixels of the picture.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calibration.errors import CalibrationError
from calibration.evaluate import GOOD, Evaluation, Seen, evaluated, look, open_inspector
from calibration.holdout import hold_out, pattern_of, refuse_learnt, refuse_other_fixture
from calibration.implant import KINDS, Region, implant
from calibration.pod import LEAST_DEFECTS, Bin, Pod, fit
from calibration.progress import steps
from calibration.repeats import Repeats, judge
from calibration.stages import staged
from contract.bundle import Bundle, Precision, open_bundle
from contract.dataset import Dataset, Sample, load_dataset
from contract.event import Verdict
from contract.part_pictures import line_of, read_corrected
from contract.recipe import Recipe
from contract.stats import Rate, rate, rate_fields
from edge_runtime.inspector import Inspector

FORMAT = "flawline.capability/1"
DETECTED = (Verdict.REJECT, Verdict.REVIEW)
ALL = "all defects with a mask"


class Implants(NamedTuple):
    """What is drawn into good pictures: ``defects`` of each kind, within ``sizes_px`` where they say most of a90."""

    kinds: tuple[str, ...]
    defects: int = 200
    contrast: float = 40.0
    sizes_px: tuple[float, float] = (2.0, 32.0)
    region: Region = (0.15, 0.15, 0.7, 0.7)
    seed: int = 1


class Trial(NamedTuple):
    """One defect: its size in the unit of the page, and the verdict on its part."""

    size: float
    verdict: Verdict


class Detection(NamedTuple):
    """Defects of one kind. ``why`` says why ``pod`` is None, or why it states no bound."""

    name: str
    detected: Rate
    not_inspected: int
    pod: Pod | None
    why: str | None


class Agreement(NamedTuple):
    """Parts with several pictures, and on how many of them every picture got the same verdict."""

    parts: Rate
    pairs: Rate
    pictures: int
    least: int


class Capability(NamedTuple):
    """Everything on the page."""

    bundle: Bundle
    evaluation: Evaluation | None
    unit: str
    real: list[Detection]
    implanted: list[Detection]
    implants: Implants | None
    bases: int
    agreement: Agreement | None
    repeats: Repeats | None = None

    def document(self) -> dict[str, Any]:
        """For machines: the figures of the evaluation, and the capability beside them."""
        return {
            "format": FORMAT,
            "bundle": self.bundle.manifest.id,
            "evaluation": None if self.evaluation is None else self.evaluation.figures,
            "unit": self.unit,
            "defects": {each.name: _fields(each) for each in self.real},
            "implanted": {each.name: _fields(each) for each in self.implanted},
            "implants": None if self.implants is None else {**self.implants._asdict(), "good_pictures": self.bases},
            "agreement": None if self.agreement is None else _agreement_fields(self.agreement),
            "repeats": None if self.repeats is None else self.repeats.fields(),
        }


def measure(
    folder: Path,
    data: Path,
    engine: str = "auto",
    pattern: str | None = None,
    precision: Precision = "fp32",
    implants: Implants | None = None,
    repeats: Path | None = None,
) -> Capability:
    """Inspect every test image, and implants and a folder of repeats if wanted.

    Raises CalibrationError where nothing can be said.
    """
    if implants is not None:
        _check(implants)
    bundle = open_bundle(folder)
    if bundle.manifest.thresholds is None:
        raise CalibrationError(f"{folder}: has no thresholds; run `flawline calibrate thresholds {folder}` first")
    refuse_other_fixture(bundle, data)
    if implants is not None and len({view.camera for view in bundle.manifest.recipe.views}) > 1:
        raise CalibrationError(
            f"{folder}: is of several cameras, and defects are implanted in one picture: give test images instead"
        )
    dataset = load_dataset(data, pattern_of(bundle, pattern))
    if not dataset.test and implants is None and repeats is None:
        raise CalibrationError(
            f"{data}: no test images; expected {data}/test/good and {data}/test/<defect>. Without any, defects can be "
            "implanted in good pictures: --implant spot"
        )
    refuse_learnt(bundle, dataset.test)
    inspector = open_inspector(bundle, engine, precision)
    seen = [look(inspector, sample) for sample in steps(dataset.test, "inspecting test images")]
    scale, unit = unit_of(bundle.manifest.recipe)
    bases = _bases(inspector, dataset, seen) if implants is not None else []
    implanted = (
        [] if implants is None else [_of_kind(inspector, bases, implants, each, scale) for each in implants.kinds]
    )
    return Capability(
        bundle,
        evaluated(inspector, dataset, seen) if seen else None,
        unit,
        _real(seen, scale),
        implanted,
        implants,
        len(bases),
        agreement(seen),
        None if repeats is None else judge(bundle, repeats, engine, precision),
    )


def unit_of(recipe: Recipe) -> tuple[float, str]:
    """Size of a pixel and its unit: millimetres where the recipe's one view knows them."""
    known = recipe.views[0].mm_per_px if len(recipe.views) == 1 else None
    return (1.0, "px") if known is None else (known, "mm")


def detection(name: str, trials: Sequence[Trial]) -> Detection:
    """The curve of these defects, or why there is none. What was not inspected counts on neither side."""
    inspected = [trial for trial in trials if trial.verdict is not Verdict.NOT_INSPECTED]
    hits = [trial.verdict in DETECTED for trial in inspected]
    counts = (name, rate(sum(hits), len(hits)), len(trials) - len(inspected))
    try:
        return Detection(*counts, fit([trial.size for trial in inspected], hits), None)
    except CalibrationError as error:
        return Detection(*counts, None, str(error))


def agreement(seen: Sequence[Seen]) -> Agreement | None:
    """Verdicts on the pictures of one part compared; None where no part has two pictures."""
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for image in seen:
        verdicts[image.sample.group].append(image.verdict)
    several = [found for found in verdicts.values() if len(found) > 1]
    if not several:
        return None
    pairs = [first is second for found in several for first, second in itertools.combinations(found, 2)]
    return Agreement(
        rate(sum(len(set(found)) == 1 for found in several), len(several)),
        rate(sum(pairs), len(pairs)),
        sum(map(len, several)),
        min(map(len, several)),
    )


def _real(seen: Sequence[Seen], scale: float) -> list[Detection]:
    """All defects that have a mask, then each class."""
    classes: dict[str, list[Trial]] = defaultdict(list)
    for image in seen:
        if image.label != GOOD and image.extent_px > 0:
            classes[image.label].append(Trial(image.extent_px * scale, image.verdict))
    if not classes:
        return []
    everything = detection(ALL, list(itertools.chain.from_iterable(classes.values())))
    return [everything, *(detection(label, trials) for label, trials in sorted(classes.items()))]


def _bases(inspector: Inspector, dataset: Dataset, seen: Sequence[Seen]) -> list[Sample]:
    """Good pictures that pass as they are: in any other one a defect would be detected without being seen.

    Test images where there are some, since the limits were drawn from the held-out ones.
    """
    passed = [image.sample for image in seen if image.label == GOOD and image.verdict is Verdict.PASS]
    if passed:
        return passed
    unseen = hold_out(inspector.bundle, dataset).unseen
    found = [
        sample for sample in steps(unseen, "inspecting good parts") if look(inspector, sample).verdict is Verdict.PASS
    ]
    if not found:
        raise CalibrationError(f"{dataset.root}: no good picture passes, so there is none to implant a defect in")
    return found


def _check(implants: Implants) -> None:
    if implants.defects < LEAST_DEFECTS:
        raise CalibrationError(f"--implants {implants.defects}: at least {LEAST_DEFECTS} of each kind are needed")
    for kind in implants.kinds:
        if kind not in KINDS:
            raise CalibrationError(f"no defect {kind!r} can be implanted; there are: {', '.join(KINDS)}")
    low, high = implants.sizes_px
    if not 0 < low < high:
        raise CalibrationError(f"sizes of implants from {low:g} to {high:g} px; expected the lower one first, above 0")
    x, y, width, height = implants.region
    if min(x, y) < 0 or min(width, height) <= 0 or max(x + width, y + height) > 1:
        raise CalibrationError(f"the region {implants.region} leaves the picture; expected fractions from 0 to 1")


def _of_kind(inspector: Inspector, bases: Sequence[Sample], implants: Implants, kind: str, scale: float) -> Detection:
    random = np.random.default_rng([implants.seed, *kind.encode()])
    trials: list[Trial] = []

    def detect(size_px: float) -> bool | None:
        bundle = inspector.bundle
        good = read_corrected(bases[len(trials) % len(bases)].path, bundle.manifest.recipe, line_of(bundle))
        made = implant(good, kind, size_px, implants.contrast, random, implants.region)
        verdict = inspector.inspect(made.picture).verdict
        trials.append(Trial(size_px * scale, verdict))
        return is_detected(verdict)

    staged(implants.defects, implants.sizes_px, random, detect, lambda numbers: steps(numbers, f"implanting: {kind}"))
    return bounded_by(detection(kind, trials), len(bases))


def is_detected(verdict: Verdict) -> bool | None:
    """Whether a defect was found; None where its part was not inspected."""
    return None if verdict is Verdict.NOT_INSPECTED else verdict in DETECTED


def bounded_by(found: Detection, pictures: int) -> Detection:
    """Without its bound where too few pictures bear the defects: those of one picture are no independent witnesses."""
    if found.pod is None or pictures >= LEAST_DEFECTS:
        return found
    why = f"drawn into {pictures} good picture(s); a bound needs {LEAST_DEFECTS} and more"
    return found._replace(pod=found.pod._replace(a90_95=None), why=why)


def _fields(each: Detection) -> dict[str, Any]:
    pod = each.pod
    return {
        **rate_fields("detected", each.detected),
        "not_inspected": each.not_inspected,
        "why_not": each.why,
        "a50": None if pod is None else pod.a50,
        "a90": None if pod is None else pod.a90,
        "a90_95": None if pod is None else pod.a90_95,
        "curve": [] if pod is None else [[each.size, each.rate] for each in pod.curve()],
        "bins": [] if pod is None else [_bin_fields(each) for each in pod.bins],
    }


def _bin_fields(each: Bin) -> dict[str, Any]:
    return {"low": each.low, "high": each.high, **rate_fields("detected", each.detected)}


def _agreement_fields(found: Agreement) -> dict[str, Any]:
    return {
        **rate_fields("parts_that_agree", found.parts),
        **rate_fields("pairs_that_agree", found.pairs),
        "pictures": found.pictures,
        "least_pictures_of_a_part": found.least,
    }
