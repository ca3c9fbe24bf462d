"""A trained bundle and good images -> an INT8 graph in the bundle, where it agrees with FP32 (before hop 4).

Ranges, and which layers stay FP32, come from good images that decide nothing afterwards. The graph is then looked at
once on held-out images, with the line's engine, and goes into the bundle only if it sorts and judges them as FP32 does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from calibration.agreement import MOST_FLIPS, Agreement, Scored, Scores, agreement, images_to_show, rank_correlation
from calibration.calibrate import threads, without_limits
from calibration.conformal import require, threshold
from calibration.errors import CalibrationError
from calibration.holdout import hold_out, pattern_of, refuse_learnt, refuse_other_fixture
from calibration.looks import record
from calibration.progress import steps
from calibration.qdq import Ranges, layers_of, measure_ranges, quantize
from contract.bundle import ROLE_GRAPH_INT8, Bundle, GoldenInt8, open_bundle, put_files
from contract.dataset import Dataset, Sample, load_dataset
from contract.images import Pixels
from contract.part_pictures import line_of, read_part
from contract.places import locate
from contract.preprocess import prepare
from contract.recipe import Thresholds
from contract.release import State
from edge_runtime.engines import compile_graph, open_engine
from edge_runtime.engines.base import Engine, graph_spec, read_graph
from edge_runtime.engines.golden import check_golden, deviations, golden_outputs
from edge_runtime.inspector import Inspector

GOOD = "good"
CHOOSER = "onnxruntime"  # compiles in no time; the line's own engine, which may need minutes, is asked once
MOST_CHOOSING = 192  # images in memory
LEAST_CHOOSING = 16
PROBES = 8  # images on which each layer is tried alone
CHOSEN_RANK = 0.998  # nearer than what is admitted: flips cannot be counted on few images
GROWTH = 1.5
ROUNDS = 40
WORTH = 1.5  # times FP32: less is no reason to carry another graph


class Layer(NamedTuple):
    """A convolution by its weights' name; ``error``: mean relative error of the score where it alone is INT8."""

    name: str
    error: float


class Choice(NamedTuple):
    """The graph that is put to the test, all layers from the most sensitive on, and how many stay FP32."""

    graph: bytes
    layers: list[Layer]
    kept: int
    images: int

    @property
    def left_out(self) -> list[Layer]:
        return self.layers[: self.kept]


class Tried(NamedTuple):
    """What came of it, and how many times as fast as FP32 it is on this machine.

    ``faults`` are why the bundle goes without INT8, empty where it has it now. ``test_images``: how many decided.
    ``was``: the state of the bundle before, which is a draft where it has INT8 now.
    """

    choice: Choice
    agreement: Agreement
    engine: str
    golden: GoldenInt8
    times_fp32: float
    faults: list[str]
    test_images: int
    was: State

    def fields(self) -> dict[str, Any]:
        """The figures as JSON, admitted or not."""
        return {
            "admitted": not self.faults,
            "engine": self.engine,
            "times_fp32": round(self.times_fp32, 3),
            **self.agreement.fields(),
            "images_to_show_the_share_of_flips": images_to_show(),
            "test_images": self.test_images,
            "faults": self.faults,
            "layers": len(self.choice.layers),
            "left_out": [layer._asdict() for layer in self.choice.left_out],
            "chosen_on_images": self.choice.images,
        }

    def lines(self) -> list[str]:
        """What was done and found, for people."""
        choice, found = self.choice, self.agreement
        count = len(choice.layers)
        said = [f"{count - choice.kept} of {count} layers in INT8, chosen on {choice.images} images"]
        said += [
            f"  stays FP32: {layer.name} (alone in INT8: scores off by {layer.error:.2%})" for layer in choice.left_out
        ]
        said.append(f"{self.engine}, {found.good} good and {found.defective} defective held-out images: {found.text()}")
        gain = "" if self.times_fp32 >= WORTH else f"; below {WORTH:g} it is not worth another graph"
        said.append(f"{self.times_fp32:.2f} times as fast as FP32 on this machine, one part at a time{gain}")
        if found.images < images_to_show():
            said.append(
                f"{found.images} images cannot show that at most {MOST_FLIPS:.1%} of verdicts flip: that takes "
                f"{images_to_show()} without a flip"
            )
        return said


class Parts(NamedTuple):
    """``choosing``: good images for ranges and layers; ``good`` and ``defective`` are held out from that.

    The limit is set from ``good[:limiting]``, which are those of ``train/good``; the others are test images.
    """

    choosing: list[Sample]
    good: list[Sample]
    defective: list[Sample]
    limiting: int

    @property
    def test_images(self) -> int:
        return len(self.good) - self.limiting + len(self.defective)


def make_int8(
    folder: Path,
    data: Path,
    rate: float | None = None,
    engine: str = "auto",
    pattern: str | None = None,
    looks: Path | None = None,
) -> Tried:
    """Make and try an INT8 graph; it is in the bundle if ``faults`` of what is returned is empty.

    ``rate`` of false rejects sets the limits at which verdicts are compared; None: the bundle's own, else 0.05.
    ``looks``: the record of looks at test images, written before the bundle is.
    Raises CalibrationError where there are too few images, and whatever the engines raise.
    """
    bundle = open_bundle(folder)
    limits = bundle.manifest.thresholds
    rate = rate or (None if limits is None else limits.false_reject_rate) or 0.05
    refuse_other_fixture(bundle, data)
    dataset = load_dataset(data, pattern_of(bundle, pattern))
    refuse_learnt(bundle, dataset.test)
    parts = share_out(bundle, dataset, rate)
    choice = choose(bundle, read_parts(bundle, spread(parts.choosing, MOST_CHOOSING)))
    tried = admit(bundle, choice, parts, rate, engine)
    if looks is not None and tried.test_images:
        decided = f"INT8 {'refused' if tried.faults else 'admitted'} by these images"
        record(looks, bundle, dataset, decided, tried.test_images, tried.agreement.auroc)
    if not tried.faults:
        write(bundle, tried)
    return tried


def share_out(bundle: Bundle, dataset: Dataset, rate: float) -> Parts:
    """Which images choose and which admit. Images that training saw may choose; where they are not there, a third of
    the unseen parts does. Raises CalibrationError where too few are left."""
    held = hold_out(bundle, dataset)
    choosing, unseen = held.seen, held.unseen
    if len(choosing) < LEAST_CHOOSING:
        groups = sorted({sample.group for sample in unseen})
        for_choice = set(groups[::3])
        choosing = [*choosing, *(sample for sample in unseen if sample.group in for_choice)]
        unseen = [sample for sample in unseen if sample.group not in for_choice]
    if len(choosing) < LEAST_CHOOSING:
        raise CalibrationError(
            f"{dataset.root}: {len(choosing)} good image(s) to choose ranges and layers by, at least {LEAST_CHOOSING} "
            "are needed; give the images that the bundle was trained with as well, or more good ones"
        )
    require(len({sample.group for sample in unseen}), rate)
    tested = [sample for sample in dataset.test if sample.label == GOOD]
    defective = [sample for sample in dataset.test if sample.label != GOOD]
    return Parts(choosing, [*unseen, *tested], defective, len(unseen))


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most ``most`` of them, evenly from first to last."""
    if len(samples) <= most:
        return list(samples)
    return [samples[at] for at in np.linspace(0, len(samples) - 1, most).astype(int)]


def read_parts(bundle: Bundle, samples: Sequence[Sample]) -> list[Pixels]:
    """Tiles of each picture, uint8 [N, H, W, C], as the line cuts them."""
    recipe, places = bundle.manifest.recipe, locate(bundle)
    neutralise = None if places is None else places.neutralise
    line = line_of(bundle)
    return [prepare(read_part(sample.path, recipe, line), recipe, neutralise).tiles for sample in samples]


def choose(bundle: Bundle, parts: list[Pixels]) -> Choice:
    """Ranges from every second of ``parts`` (tiles, uint8 [N, H, W, C]), layers by the others.

    Layers are tried alone in INT8 and put in order; from none on, ever more of the worst are left out, until the scores
    are sorted as FP32 sorts them. If that takes all but one, what is left goes to the test as it is.
    """
    model = onnx.load_model_from_string(read_graph(bundle))
    ranges = measure_ranges(model, parts[::2])
    rest = parts[1::2]
    expected = _scores(bundle, model, rest)
    layers = by_need(bundle, model, ranges, rest[:: max(1, len(rest) // PROBES)])
    kept = 0
    while True:
        made = quantize(model, ranges, {layer.name for layer in layers[:kept]})
        if kept == len(layers) - 1 or rank_correlation(_scores(bundle, made, rest), expected) >= CHOSEN_RANK:
            return Choice(made.SerializeToString(), layers, kept, len(parts))
        kept = min(len(layers) - 1, max(kept + 1, int(kept * GROWTH)))


def by_need(bundle: Bundle, model: onnx.ModelProto, ranges: Ranges, parts: list[Pixels]) -> list[Layer]:
    """Every layer with the error that it makes alone, the largest first."""
    names = list(layers_of(model))
    expected = _scores(bundle, model, parts).tolist()
    found = []
    for name in steps(names, "trying each layer in INT8"):
        alone = quantize(model, ranges, [other for other in names if other != name])
        found.append(Layer(name, float(np.mean(deviations(_scores(bundle, alone, parts).tolist(), expected)))))
    return sorted(found, key=lambda layer: -layer.error)


def _scores(bundle: Bundle, model: onnx.ModelProto, parts: list[Pixels]) -> Scores:
    """Score of each part in ONNX Runtime: its worst tile's."""
    engine = compile_graph(CHOOSER, model.SerializeToString(), graph_spec(bundle, "int8"), threads())
    return np.array([engine.infer(tiles).scores.max() for tiles in parts], np.float64)


def admit(bundle: Bundle, choice: Choice, parts: Parts, rate: float, engine_name: str) -> Tried:
    """Score the held-out parts in FP32 and in INT8 with one engine, and compare."""
    reference = open_engine(engine_name, bundle, threads())
    check_golden(reference, without_limits(bundle))
    engine = compile_graph(engine_name, choice.graph, graph_spec(bundle, "int8"), threads())
    inspectors = Inspector(bundle, engine), Inspector(bundle, reference)
    scores: list[list[float]] = []
    for sample in steps([*parts.good, *parts.defective], "comparing INT8 with FP32"):
        part = read_part(sample.path, bundle.manifest.recipe, line_of(bundle))
        scores.append([inspector.score(part)[0].score for inspector in inspectors])
    groups = [sample.group for sample in parts.good[: parts.limiting]]
    found, expected = (_scored(column, parts, groups, rate) for column in np.array(scores, np.float64).T)
    compared = agreement(found, expected)
    scores_golden, means = golden_outputs(engine, bundle)
    golden = GoldenInt8(engine=engine.name, scores=scores_golden, map_means=means)
    flips = np.array(golden.scores) > found.limit
    flips ^= np.array(bundle.manifest.golden.scores) > expected.limit
    faults = compared.faults()
    if flips.any():
        faults.append(f"golden image(s) {np.flatnonzero(flips).tolist()} get another verdict")
    return Tried(
        choice, compared, engine.describe(), golden, speed(engine, reference), faults, parts.test_images, bundle.state
    )


def speed(engine: Engine, reference: Engine) -> float:
    """How many times as fast as ``reference``: medians of one part at a time, in turns."""
    tiles = np.full(engine.spec.input_shape, 128, np.uint8)
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for one, times in zip((engine, reference), took, strict=True):
            began = time.perf_counter()
            one.infer(tiles)
            times.append(time.perf_counter() - began)
    return statistics.median(took[1]) / statistics.median(took[0])


def _scored(scores: Scores, parts: Parts, groups: list[str], rate: float) -> Scored:
    good, defective = scores[: len(parts.good)], scores[len(parts.good) :]
    return Scored(good, defective, threshold(good[: parts.limiting].tolist(), groups, rate))


def write(bundle: Bundle, tried: Tried) -> None:
    """Put the graph and its figures into the bundle.

    Limits that were measured with an earlier INT8 graph go: they are not this one's.
    """
    manifest = bundle.manifest
    put_files(
        bundle,
        {ROLE_GRAPH_INT8: ("model.int8.onnx", tried.choice.graph)},
        golden=manifest.golden.model_copy(update={"int8": tried.golden}),
        thresholds=without_int8(manifest.thresholds),
        metrics={**manifest.metrics, "int8": tried.fields()},
    )


def without_int8(thresholds: Thresholds | None) -> Thresholds | None:
    """The limits, unless they were measured in INT8."""
    return None if thresholds is not None and "int8" in thresholds.engine.split() else thresholds
