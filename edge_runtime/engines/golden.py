"""Golden images through the engine that will serve: it must agree with training before it may (start of hop 4)."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import numpy as np

from contract.bundle import Bundle, Golden
from contract.decision import decide
from contract.errors import BundleError
from contract.images import Pixels
from contract.recipe import Thresholds
from edge_runtime.engines.base import Engine
from edge_runtime.errors import ParityError

TOO_NEAR = 0.5  # of the tolerance: so near to a limit rounding alone decides, and a verdict says nothing of the engine
FLOOR = 0.1  # a value under this share of the largest is compared absolutely: on a good tile it is all but zero

log = logging.getLogger(__name__)


def golden_tiles(bundle: Bundle) -> Pixels:
    """The bundle's golden tiles, uint8 [N, H, W, C], with as many scores and map means. Raises BundleError."""
    golden = bundle.manifest.golden
    path = bundle.path(golden.role)
    try:
        tiles = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path}: the golden images cannot be read ({error})") from error
    recipe = bundle.manifest.recipe
    expected = (*recipe.tile_hw, recipe.channels)
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != expected or not len(tiles):
        raise BundleError(f"{path}: golden images {tiles.shape}, {tiles.dtype}; expected uint8 [N, {expected}]")
    if not len(tiles) == len(golden.scores) == len(golden.map_means):
        raise BundleError(
            f"{path}: {len(tiles)} golden image(s), {len(golden.scores)} score(s), {len(golden.map_means)} map mean(s)"
        )
    return np.asarray(tiles, dtype=np.uint8)


def check_golden(engine: Engine, bundle: Bundle) -> float:
    """Largest relative deviation of the engine from training (INT8: from its admission) over the golden images.

    Where parts are joined, those of a joined inference as well. Raises ParityError naming image, found and expected
    where it exceeds the bundle's tolerance for the engine's precision. Below FP32 no image may change its verdict
    either, but for one that lies on a limit: within half of what its score may deviate, which is twice what training
    itself has measured.
    """
    return max(_check(engine, bundle, parts) for parts in sorted({1, engine.joined}))


def _check(engine: Engine, bundle: Bundle, parts: int) -> float:
    """The same for inferences of so many parts."""
    tiles = golden_tiles(bundle)
    golden_scores, golden_means, tolerance = _expected(engine, bundle.manifest.golden)
    order, scores, means = _run(engine, tiles, parts)
    worst = 0.0
    for what, found, all_expected in (("score", scores, golden_scores), ("map mean", means, golden_means)):
        expected = [all_expected[index] for index in order]
        floor = _floor(engine, bundle, all_expected) if what == "score" else None
        for at, deviation in enumerate(deviations(found, expected, floor)):
            if not deviation <= tolerance:  # a NaN is not within any tolerance
                place = at % (parts * engine.spec.batch)
                raise ParityError(
                    f"{engine.describe()} disagrees with {_witness(engine)} on golden image {order[at]}, place "
                    f"{place} of the batch: {what} {found[at]:.7g}, expected {expected[at]:.7g} "
                    f"within {tolerance:g} relative; try {_way_out(engine)}"
                )
            worst = max(worst, deviation)
    if engine.spec.precision != "fp32":
        _refuse_other_verdicts(engine, bundle, order, scores, golden_scores, TOO_NEAR * tolerance)
    return worst


def golden_outputs(engine: Engine, bundle: Bundle) -> tuple[list[float], list[float]]:
    """Score and map's mean of each golden image, in the bundle's order, whatever is expected of them."""
    order, scores, means = _run(engine, golden_tiles(bundle), 1)
    first = [order.index(index) for index in range(len(bundle.manifest.golden.scores))]
    return [scores[at] for at in first], [means[at] for at in first]


def _floor(engine: Engine, bundle: Bundle, expected: Sequence[float]) -> float | None:
    """Under FP32 a score must be right where the limit lies, however small that is beside a defect's."""
    thresholds = bundle.manifest.thresholds
    if engine.spec.precision == "fp32" or thresholds is None:
        return None
    limit = thresholds.reject if thresholds.review is None else thresholds.review
    return min(FLOOR * max(abs(value) for value in expected), abs(limit)) or None


def _expected(engine: Engine, golden: Golden) -> tuple[list[float], list[float], float]:
    """Scores and map means that the engine has to give, and within what. INT8 is held against INT8 as admitted.

    Raises BundleError where the bundle says nothing of the engine's precision, ParityError for an engine that INT8 was
    not admitted with: engines round it differently.
    """
    precision = engine.spec.precision
    tolerance = golden.tolerance_of(precision)
    if tolerance is None:
        raise BundleError(
            f"the bundle says nothing of how well its {precision.upper()} graph agrees; use precision = 'fp32'"
        )
    if precision != "int8" or golden.int8 is None:
        return golden.scores, golden.map_means, tolerance
    if engine.name != golden.int8.engine:
        raise ParityError(
            f"the INT8 graph was admitted with {golden.int8.engine}, and {engine.name} rounds otherwise: run flawline "
            f"calibrate int8 BUNDLE --data DIR --engine {engine.name}, or use precision = 'fp32'"
        )
    return golden.int8.scores, golden.int8.map_means, tolerance


def _way_out(engine: Engine) -> str:
    ways = {
        "fp32": "engine = 'onnxruntime', or train the bundle again",
        "fp16": "precision = 'fp32', or train the bundle again",
        "int8": "precision = 'fp32', or run flawline calibrate int8 on a processor like this one",
    }
    return ways[engine.spec.precision]


def _witness(engine: Engine) -> str:
    return "its own admission" if engine.spec.precision == "int8" else "training"


def _refuse_other_verdicts(
    engine: Engine,
    bundle: Bundle,
    order: Sequence[int],
    scores: Sequence[float],
    golden_scores: Sequence[float],
    margin: float,
) -> None:
    """Raise ParityError where a golden image's own verdict is not that of the score that is expected of it.

    ``margin``: how near to a limit, relative as the scores' deviation is, the verdict is not asked for.
    """
    thresholds = bundle.manifest.thresholds
    on_a_limit = _on_a_limit(thresholds, golden_scores, _floor(engine, bundle, golden_scores), margin)
    if on_a_limit:
        log.warning(
            "golden image(s) %s lie within %.2g of a limit, where rounding decides: their verdicts are not compared",
            sorted(on_a_limit), margin,
        )  # fmt: skip
    for index, found in zip(order, scores, strict=True):
        expected = golden_scores[index]
        ours, theirs = decide(found, thresholds)[0], decide(expected, thresholds)[0]
        if ours is not theirs and index not in on_a_limit:
            raise ParityError(
                f"{engine.describe()} decides otherwise than {_witness(engine)} on golden image {index}: {ours.value} "
                f"with score {found:.7g}, {theirs.value} with {expected:.7g}; use precision = 'fp32'"
            )


def _on_a_limit(thresholds: Thresholds | None, scores: Sequence[float], floor: float | None, margin: float) -> set[int]:
    """Golden images whose expected score is no farther than ``margin`` from the review or the reject limit."""
    limits = () if thresholds is None else (thresholds.reject, thresholds.review)
    return {
        index
        for limit in limits
        if limit is not None
        for index, far in enumerate(deviations([limit] * len(scores), scores, floor))
        if far <= margin
    }


def deviations(found: Sequence[float], expected: Sequence[float], floor: float | None = None) -> list[float]:
    """Of each value, relative to what is expected or to ``floor``, whichever is more; NaN stays NaN.

    ``floor`` is FLOOR of the largest where none is given.
    """
    floor = floor or FLOOR * max(abs(value) for value in expected) or 1.0
    return [abs(ours - theirs) / max(abs(theirs), floor) for ours, theirs in zip(found, expected, strict=True)]


def _run(engine: Engine, tiles: Pixels, parts: int) -> tuple[list[int], list[float], list[float]]:
    """Which tile, its score and its map's mean, twice round: every place of the batch sees two different tiles."""
    one, count = engine.spec.batch, len(tiles)
    batch = parts * one
    order: list[int] = []
    scores: list[float] = []
    means: list[float] = []
    for turn in (0, count // 2):
        for start in range(0, count, batch):
            places = [(turn + start + place) % count for place in range(batch)]
            order += places
            for output in engine.infer_together([tiles[places[at : at + one]] for at in range(0, batch, one)]):
                scores += output.scores.astype(float).tolist()
                means += output.maps.mean(axis=(1, 2), dtype=np.float64).tolist()
    return order, scores, means
