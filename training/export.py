"""Trained network -> one static ONNX graph, proven against PyTorch before anything is kept (before hop 1).

The graph is run by ONNX Runtime on real tiles; where score or map differ, or where an image's score depends on the
images beside it in the batch, ExportError is raised and no bundle is written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import ExportError
from training.graph import Inspection, Inspector
from training.half import halve
from training.models import model_entry
from training.models.base import NotExported
from training.operators import refuse_unsupported

OPSET = 18
TOLERANCE = 1e-4  # relative; FP32 against FP32 differs by rounding alone
FLOOR = 0.1  # a score under this share of the largest is compared absolutely: on a good tile it is all but zero
OUTPUTS = ("score", "map", "reconstruction")
EXTREME_TILES = 3
# FP16 against FP32. A card adds up otherwise than ONNX Runtime on a CPU does, so that engines are given more room than
# was used here, but not much more.
ADMITTED_FP16 = 0.01
ROOM_FP16, LEAST_FP16 = 4.0, 4e-3


class Outputs(NamedTuple):
    """What the graph gave: score float32 [N], map float32 [N, H, W], reconstruction uint8 [N, H, W, C]."""

    score: NDArray[np.float32]
    map: NDArray[np.float32]
    reconstruction: NDArray[np.uint8]


def export(inspector: Inspector, path: Path, golden: Tensor) -> Inspection:
    """Write the graph to ``path``, prove it on ``golden`` (uint8 [N, H, W, C], N >= 2), return what PyTorch gives.

    Raises ExportError, and removes the file, where the proof fails.
    """
    if isinstance(inspector.judge, NotExported):
        raise ExportError(model_entry(inspector.judge.name).not_exported)
    inspector.eval()
    refuse_training_mode(inspector)
    expected = inspector.inspect(golden)
    try:
        write_graph(inspector, path, golden[:2])
        prove(path, golden, expected)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return expected


def export_half(inspector: Inspector, path: Path, golden: Tensor, expected: Inspection) -> float:
    """Write the same graph with its networks in FP16; returns the tolerance within which engines have to agree.

    Run by ONNX Runtime on ``golden``, against the FP32 that PyTorch gives. Raises ExportError, and leaves no file,
    where it cannot be exported or disagrees: a bundle without it is whole. OSError and MemoryError are passed on.
    """
    try:
        write_graph(halve(inspector), path, golden[:2])
        worst = _disagreement(run_graph(open_session(path), np.ascontiguousarray(golden.numpy())), expected)
        if not worst <= ADMITTED_FP16:
            raise ExportError(f"scores in FP16 are off by {worst:.2g} relative, at most {ADMITTED_FP16:g} is admitted")
    except (ExportError, OSError, MemoryError):
        path.unlink(missing_ok=True)
        raise
    except Exception as error:
        path.unlink(missing_ok=True)
        raise ExportError(f"the FP16 graph cannot be made ({(str(error).splitlines() or [''])[0][:200]})") from error
    return max(LEAST_FP16, ROOM_FP16 * worst)


def _disagreement(found: Outputs, expected: Inspection) -> float:
    """The largest relative deviation of a score or of a map's mean; infinite where a value is no number."""
    worst = 0.0
    for ours, theirs in (
        (found.score.astype(np.float64), expected.score.double().numpy()),
        (found.map.mean(axis=(1, 2), dtype=np.float64), expected.map.double().mean(dim=(1, 2)).numpy()),
    ):
        if not np.isfinite(ours).all():
            return float("inf")
        floor = max(FLOOR * float(np.abs(theirs).max()), 1e-6)
        worst = max(worst, float((np.abs(ours - theirs) / np.maximum(np.abs(theirs), floor)).max()))
    return worst


def refuse_training_mode(inspector: Inspector) -> None:
    """Raise ExportError where a layer would use the statistics of its batch."""
    training = [name for name, module in inspector.named_modules() if module.training]
    if training:
        raise ExportError(
            f"{len(training)} layer(s) are in training mode ({training[0] or 'the whole network'}): their scores would "
            "depend on the other images of the batch; call eval() before the export"
        )


def write_graph(inspector: Inspector, path: Path, example: Tensor) -> None:
    """Export with a dynamic batch and weights inside the file, and check what was written."""
    batch = torch.export.Dim("N", min=1, max=4096)
    with _quiet():
        program = torch.onnx.export(
            inspector,
            (example.contiguous(),),
            dynamo=True,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"image": {0: batch}},
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError("the exporter returned no graph")
    model = program.model_proto
    _forget_sources(model)
    onnx.checker.check_model(model, full_check=True)
    refuse_unsupported(model)
    onnx.save_model(model, str(path))


def _forget_sources(model: Any) -> None:
    """Drop the stack traces that the exporter writes into each node: they name this machine's folders."""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for item in graph.node:
            del item.metadata_props[:]
            item.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own deprecation warnings, progress lines and hints about optional operators to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def open_session(path: Path, threads: int = 2) -> Any:
    """An ONNX Runtime session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: Any, tiles: NDArray[np.uint8]) -> Outputs:
    """Outputs of the graph for uint8 tiles [N, H, W, C]."""
    score, deviation, reconstruction = session.run(list(OUTPUTS), {"image": tiles})
    return Outputs(score, deviation, reconstruction)


def prove(path: Path, golden: Tensor, expected: Inspection) -> None:
    """Raise ExportError unless the graph agrees with PyTorch and each image's score is its own."""
    session = open_session(path)
    tiles = np.ascontiguousarray(golden.numpy())
    together = run_graph(session, tiles)
    scores = expected.score.numpy()
    _agree("score: ONNX Runtime and PyTorch", together.score, scores, FLOOR * float(np.abs(scores).max()))
    _agree("map: ONNX Runtime and PyTorch", together.map, expected.map.numpy(), float(expected.map.abs().max()))
    apart = together.reconstruction.astype(np.int16) - expected.reconstruction.numpy()
    if int(np.abs(apart).max()) > 1:
        raise ExportError(f"reconstruction: ONNX Runtime and PyTorch differ by {int(np.abs(apart).max())} grey levels")
    refuse_batch_dependence(session, tiles, together.score)


def refuse_batch_dependence(session: Any, tiles: NDArray[np.uint8], scores: NDArray[np.float32]) -> None:
    """Raise ExportError where a tile scores differently alone, among others, and beside black and white tiles."""
    extremes = np.stack(
        [np.full_like(tiles[0], level) for level in np.linspace(0, 255, EXTREME_TILES).astype(np.uint8)]
    )
    floor = FLOOR * float(np.abs(scores).max())
    for index in range(len(tiles)):
        alone = run_graph(session, tiles[index : index + 1]).score
        beside = run_graph(session, np.concatenate([extremes, tiles[index : index + 1]])).score[-1:]
        _agree(f"score of image {index} alone and in a batch", alone, scores[index : index + 1], floor)
        _agree(f"score of image {index} beside other images", beside, scores[index : index + 1], floor)


def _agree(what: str, found: NDArray[np.float32], expected: NDArray[np.float32], floor: float) -> None:
    """Relative agreement; values below ``floor`` are held to its scale, since what they differ by is rounding."""
    if not np.isfinite(found).all() or not np.isfinite(expected).all():
        raise ExportError(f"{what}: not all values are numbers; the network is not usable, train it again")
    worst = float((np.abs(found - expected) / np.maximum(np.abs(expected), max(floor, 1e-6))).max())
    if worst > TOLERANCE:
        raise ExportError(
            f"{what} differ by {worst:.2e} relative, at most {TOLERANCE:.0e} is rounding: no bundle is written. "
            "The graph does not compute what was trained; report it with the versions of torch and onnxruntime"
        )
