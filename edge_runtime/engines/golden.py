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
    """Largest relative deviation of the engine from training over the golden images.

    Raises ParityError naming image, found and expected where it exceeds the bundle's tolerance for the engine's
    precision. Below FP32 no image may change its verdict either, but for one that lies on a limit: within half of what
    its score may deviate, which is twice what training itself has measured.
    """
    tiles = golden_tiles(bundle)
    golden = bundle.manifest.golden
    tolerance = _tolerance(engine, golden)
    order, scores, means = _run(engine, tiles)
    worst = 0.0
    for what, found, all_expected in (("score", scores, golden.scores), ("map mean", means, golden.map_means)):
        expected = [all_expected[index] for index in order]
        floor = _floor(engine, bundle, all_expected) if what == "score" else None
        for at, deviation in enumerate(deviations(found, expected, floor)):
            if not deviation <= tolerance:  # a NaN is not within any tolerance
                raise ParityError(
                    f"{engine.describe()} disagrees with training on golden image {order[at]}, place "
                    f"{at % engine.spec.batch} of the batch: {what} {found[at]:.7g}, expected {expected[at]:.7g} "
                    f"within {tolerance:g} relative; try {_way_out(engine)}, or train the bundle again"
                )
            worst = max(worst, deviation)
    if engine.spec.precision != "fp32":
        _refuse_other_verdicts(engine, bundle, order, scores, TOO_NEAR * tolerance)
    return worst


def _floor(engine: Engine, bundle: Bundle, expected: Sequence[float]) -> float | None:
    """Under FP32 a score must be right where the limit lies, however small that is beside a defect's."""
    thresholds = bundle.manifest.thresholds
    if engine.spec.precision == "fp32" or thresholds is None:
        return None
    limit = thresholds.reject if thresholds.review is None else thresholds.review
    return min(FLOOR * max(abs(value) for value in expected), abs(limit)) or None


def _tolerance(engine: Engine, golden: Golden) -> float:
    if engine.spec.precision == "fp32":
        return golden.tolerance
    if golden.tolerance_fp16 is None:
        raise BundleError("the bundle says nothing of how well its FP16 graph agrees; use precision = 'fp32'")
    return golden.tolerance_fp16


def _way_out(engine: Engine) -> str:
    return "engine = 'onnxruntime'" if engine.spec.precision == "fp32" else "precision = 'fp32'"


def _refuse_other_verdicts(
    engine: Engine, bundle: Bundle, order: Sequence[int], scores: Sequence[float], margin: float
) -> None:
    """Raise ParityError where a golden image's own verdict is not that of training's score.

    ``margin``: how near to a limit, relative as the scores' deviation is, the verdict is not asked for.
    """
    golden, thresholds = bundle.manifest.golden, bundle.manifest.thresholds
    on_a_limit = _on_a_limit(bundle, _floor(engine, bundle, golden.scores), margin)
    if on_a_limit:
        log.warning(
            "golden image(s) %s lie within %.2g of a limit, where rounding decides: their verdicts are not compared",
            sorted(on_a_limit), margin,
        )  # fmt: skip
    for index, found in zip(order, scores, strict=True):
        expected = golden.scores[index]
        ours, theirs = decide(found, thresholds)[0], decide(expected, thresholds)[0]
        if ours is not theirs and index not in on_a_limit:
            raise ParityError(
                f"{engine.describe()} decides otherwise than training on golden image {index}: {ours.value} with score "
                f"{found:.7g}, {theirs.value} with {expected:.7g}; use precision = 'fp32'"
            )


def _on_a_limit(bundle: Bundle, floor: float | None, margin: float) -> set[int]:
    """Golden images whose expected score is no farther than ``margin`` from the review or the reject limit."""
    scores, thresholds = bundle.manifest.golden.scores, bundle.manifest.thresholds
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


def _run(engine: Engine, tiles: Pixels) -> tuple[list[int], list[float], list[float]]:
    """Which tile, its score and its map's mean, twice round: every place of the batch sees two different tiles."""
    batch, count = engine.spec.batch, len(tiles)
    order: list[int] = []
    scores: list[float] = []
    means: list[float] = []
    for turn in (0, count // 2):
        for start in range(0, count, batch):
            places = [(turn + start + place) % count for place in range(batch)]
            output = engine.infer(tiles[places])
            order += places
            scores += output.scores.astype(float).tolist()
            means += output.maps.mean(axis=(1, 2), dtype=np.float64).tolist()
    return order, scores, means
