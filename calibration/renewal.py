"""Golden images and thresholds that belong to the preprocess file that the bundle holds now (before hop 4)."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from calibration.errors import CalibrationError
from calibration.holdout import HeldOut
from calibration.implant import implant
from contract.bundle import ROLE_PREPROCESS, Bundle, Golden, preprocess_fault
from contract.images import Pixels
from contract.part_pictures import line_of, read_corrected
from contract.preprocess import prepare
from contract.recipe import Thresholds
from edge_runtime.engines import open_engine

REFERENCE = "onnxruntime"
GOOD, WITH_DEFECT, SIDE_SHARE, CONTRAST = 4, 4, 0.15, 60.0


class Renewed(NamedTuple):
    """Golden images as the manifest describes them, and the file that holds them where they were made anew."""

    manifest: Golden
    files: dict[str, tuple[str, bytes]]


def preprocess_sha256(bundle: Bundle) -> str | None:
    entry = bundle.manifest.files.get(ROLE_PREPROCESS)
    return None if entry is None else entry.sha256


def stamped(bundle: Bundle, thresholds: Thresholds) -> Thresholds:
    """Thresholds just measured with what the bundle holds."""
    return thresholds.model_copy(update={"preprocess": preprocess_sha256(bundle)})


def refuse_stale(bundle: Bundle) -> None:
    """Raise CalibrationError where thresholds or golden images were made with another preprocess file."""
    if (fault := preprocess_fault(bundle.manifest)) is not None:
        raise CalibrationError(f"{bundle.root}: {fault}")


def renewed_golden(bundle: Bundle, held: HeldOut) -> Renewed:
    """The golden images, made anew from held-out good pictures where theirs went through another preprocess file.

    Half of them get a defect drawn, as training's have: on good tiles alone agreement would say little. What is
    expected of them is what FP32 gives in ONNX Runtime, which has just agreed with training on the old ones: the graph
    is the same. Of an INT8 graph nothing is known any more: it is to be admitted again.
    """
    golden, sha256 = bundle.manifest.golden, preprocess_sha256(bundle)
    if golden.preprocess == sha256:
        return Renewed(golden, {})
    tiles = _tiles(bundle, held)
    engine = open_engine(REFERENCE, bundle, 1)
    scores, means = [], []
    try:
        batch = engine.spec.batch
        for at in range(0, len(tiles), batch):
            own = tiles[at : at + batch]
            found = engine.infer(np.concatenate([own, np.repeat(own[:1], batch - len(own), axis=0)]))
            scores += [float(value) for value in found.scores[: len(own)]]
            means += [float(value) for value in found.maps[: len(own)].mean(axis=(1, 2))]
    finally:
        engine.close()
    buffer = io.BytesIO()
    np.save(buffer, tiles, allow_pickle=False)
    changed = {"scores": scores, "map_means": means, "preprocess": sha256, "int8": None}
    return Renewed(golden.model_copy(update=changed), {golden.role: ("golden.npy", buffer.getvalue())})


def _tiles(bundle: Bundle, held: HeldOut) -> Pixels:
    """Tiles of parts spread over the held-out ones, uint8 [N, h, w, C]: the middle one of each."""
    recipe, line = bundle.manifest.recipe, line_of(bundle, renewing=True)
    random = np.random.default_rng(20_232)
    places = np.linspace(0, len(held.unseen) - 1, GOOD + WITH_DEFECT).round().astype(int)
    found = []
    for number, at in enumerate(places.tolist()):
        part = read_corrected(held.unseen[at].path, recipe, line)
        if number >= GOOD:
            size_px = max(2.0, SIDE_SHARE * min(part.shape[:2]))
            part = implant(part, "spot", size_px, CONTRAST, random, (0.25, 0.25, 0.5, 0.5)).picture
        tiles = prepare(part, recipe).tiles
        found.append(tiles[len(tiles) // 2])
    return np.stack(found)
