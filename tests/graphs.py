"""A bundle without training: residual against the stored mean of good pictures, as a real ONNX graph."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.bundle import (
    ROLE_DATA,
    ROLE_GRAPH,
    Bundle,
    DataFingerprint,
    Golden,
    Manifest,
    ModelInfo,
    file_entry,
    open_bundle,
    write_manifest,
)
from contract.preprocess import prepare
from contract.recipe import QualityBounds, Recipe, Thresholds

BLUR = 5
POOL = 2


def write_bundle(
    folder: Path,
    good: list[np.ndarray],
    recipe: Recipe | None = None,
    *,
    thresholds: Thresholds | None = None,
    quality: QualityBounds | None = None,
    fit: list[str] | None = None,
    validation: list[str] | None = None,
) -> Bundle:
    """Write and open a bundle "trained" on ``good`` (uint8 [H, W] or RGB [H, W, 3]).

    The map is the blurred absolute difference to the mean good tile, over its deviation; the score is its maximum.
    ``fit`` and ``validation`` are sha256 of image files that calibration must then not use.
    """
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tiles = np.concatenate([prepare(part, recipe).tiles for part in good])
    graph = make_graph(tiles.mean(0), tiles.astype(np.float32).std(0) + 8.0)
    (folder / "model.fp32.onnx").write_bytes(graph)
    golden = tiles[:4]
    np.save(folder / "golden.npy", golden)
    scores, maps = reference(golden, tiles.mean(0), tiles.astype(np.float32).std(0) + 8.0)
    splits: dict[str, Any] = {"fit": _rows(fit), "validation": _rows(validation), "holdout": []}
    (folder / "data.json").write_text(json.dumps(splits))
    manifest = Manifest(
        id=hashlib.sha256(graph).hexdigest()[:16],
        name=recipe.name,
        created="2026-01-01T00:00:00Z",
        model=ModelInfo(name="mean-image", parameters=0, score="max", map_hw=maps.shape[1:]),
        recipe=recipe,
        files={
            ROLE_GRAPH: file_entry(folder, "model.fp32.onnx"),
            ROLE_DATA: file_entry(folder, "data.json"),
            "golden": file_entry(folder, "golden.npy"),
        },
        golden=Golden(role="golden", scores=scores.tolist(), map_means=maps.mean((1, 2), dtype=np.float64).tolist()),
        data=DataFingerprint(
            name=recipe.name,
            fit_images=len(good),
            fit_groups=len(good),
            validation_images=0,
            validation_groups=0,
            holdout_images=0,
            holdout_groups=0,
            grouping="one image, one part",
        ),
        thresholds=thresholds,
        quality=quality,
    )
    write_manifest(folder, manifest)
    return open_bundle(folder)


def _rows(hashes: list[str] | None) -> list[dict[str, str]]:
    return [{"sha256": value, "group": "", "file": ""} for value in hashes or []]


def make_graph(mean: np.ndarray, scale: np.ndarray) -> bytes:
    """ONNX: uint8 [N, H, W, C] -> score [N], map [N, H/2, W/2], reconstruction uint8 [N, H, W, C]."""
    height, width, channels = mean.shape
    constants = {
        "mean": np.transpose(mean, (2, 0, 1))[None].astype(np.float32),
        "scale": np.transpose(scale, (2, 0, 1))[None].astype(np.float32),
        "zero": np.zeros((), np.float32),
        "half": np.full((), 0.5, np.float32),
        "channel_axis": np.array([1], np.int64),
        "plane_axes": np.array([1, 2], np.int64),
    }
    pad = BLUR // 2
    nodes = [
        helper.make_node("Cast", ["image"], ["nhwc"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["nhwc"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["x", "mean"], ["signed"]),
        helper.make_node("Div", ["signed", "scale"], ["scaled"]),
        helper.make_node("Abs", ["scaled"], ["residual"]),
        helper.make_node("ReduceMean", ["residual", "channel_axis"], ["grey"], keepdims=1),
        helper.make_node(
            "AveragePool", ["grey"], ["blurred"], kernel_shape=[BLUR, BLUR], pads=[pad] * 4, count_include_pad=1
        ),
        helper.make_node("AveragePool", ["blurred"], ["small"], kernel_shape=[POOL, POOL], strides=[POOL, POOL]),
        helper.make_node("Squeeze", ["small", "channel_axis"], ["map"]),
        helper.make_node("ReduceMax", ["map", "plane_axes"], ["score"], keepdims=0),
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "mean"], ["expected"]),
        helper.make_node("Add", ["expected", "half"], ["rounded"]),
        helper.make_node("Transpose", ["rounded"], ["expected_nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["expected_nhwc"], ["reconstruction"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "mean-image",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, channels])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", height // POOL, width // POOL]),
            helper.make_tensor_value_info("reconstruction", TensorProto.UINT8, ["N", height, width, channels]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def reference(tiles: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The graph once more in numpy: scores float32 [N] and maps float32 [N, H/2, W/2]."""
    residual = np.abs((tiles.astype(np.float32) - mean.astype(np.float32)) / scale.astype(np.float32)).mean(-1)
    pad = BLUR // 2
    padded = np.pad(residual, ((0, 0), (pad, pad), (pad, pad)))
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (BLUR, BLUR), (1, 2)).mean((-1, -2))
    count, height, width = blurred.shape
    maps = blurred.reshape(count, height // POOL, POOL, width // POOL, POOL).mean((2, 4)).astype(np.float32)
    return maps.max((1, 2)), maps
