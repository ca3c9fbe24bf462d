"""An FP32 graph and the ranges of its activations -> the same graph with its convolutions in INT8 (before hop 4).

Explicit Q/DQ as TensorRT takes it: int8, symmetric, every zero point 0; weights per output channel, those of a
ConvTranspose per tensor; the bias stays a float. Only the networks' own convolutions are quantized: scaling, residual,
smoothing, division and pooling stay FP32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.errors import CalibrationError
from contract.images import Pixels
from edge_runtime.engines.base import INPUT

NETWORK = "judge."  # training names the weights of the networks so, and none before or after them
KINDS = ("Conv", "ConvTranspose")
LEVELS = 127
SMALLEST = 1e-8  # of a range: what is always 0 needs a scale as well
Ranges = dict[str, float]


def layers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Name of a layer's weights -> the convolutions that use them, in the graph's order. Raises CalibrationError."""
    stored = {value.name for value in model.graph.initializer}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in KINDS and node.input[1].startswith(NETWORK) and node.input[1] in stored:
            found.setdefault(node.input[1], []).append(node)
    if not found:
        raise CalibrationError(
            f"the graph has no convolution whose weights are named {NETWORK}*, as flawline train names a network's: "
            "which part of it may be INT8 cannot be told; train the bundle again"
        )
    return found


def measure_ranges(model: onnx.ModelProto, batches: Iterable[Pixels]) -> Ranges:
    """Largest magnitude of what enters each layer over uint8 tiles [N, H, W, C], by the tensor's name.

    The extremes and no percentile: what deviates most is what is looked for.
    """
    names = sorted({node.input[0] for nodes in layers_of(model).values() for node in nodes})
    watched = _copy(model)
    for name in names:
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}.abs"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.peak"], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}.peak", TensorProto.FLOAT, []))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    peaks = np.zeros(len(names))
    for tiles in batches:
        peaks = np.maximum(peaks, session.run([f"{name}.peak" for name in names], {INPUT: tiles}))
    return dict(zip(names, peaks.tolist(), strict=True))


def quantize(model: onnx.ModelProto, ranges: Ranges, left_out: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``model`` with its layers in INT8, but for those whose weights are named in ``left_out``."""
    made = _copy(model)
    graph = made.graph
    weights = {value.name: value for value in graph.initializer}
    first: list[onnx.NodeProto] = []
    after: dict[str, list[onnx.NodeProto]] = {}
    joined = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    for name, nodes in layers_of(made).items():
        if name in left_out:
            continue
        first.append(_store(graph, weights[name], nodes[0].op_type == "Conv"))
        graph.initializer.remove(weights[name])
        for node in nodes:
            entering = node.input[0]
            if entering not in after:
                after[entering] = _pair(graph, entering, ranges[entering], entering in joined)
            node.input[0], node.input[1] = after[entering][-1].output[0], first[-1].output[0]
    ordered = [*first, *(made for node in graph.node for made in (node, *_following(node, after)))]
    nodes = [_copied(node) for node in ordered]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(made, full_check=True)
    return made


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _following(node: onnx.NodeProto, after: dict[str, list[onnx.NodeProto]]) -> Iterable[onnx.NodeProto]:
    return (made for name in node.output for made in after.get(name, ()))


def _store(graph: onnx.GraphProto, weight: onnx.TensorProto, by_channel: bool) -> onnx.NodeProto:
    """Put ``weight`` into the graph as int8; returns the node that makes floats of it again."""
    values = numpy_helper.to_array(weight)
    largest = np.abs(values).reshape(len(values), -1).max(axis=1) if by_channel else np.abs(values).max()
    scale = np.asarray(np.maximum(largest, SMALLEST) / LEVELS, np.float32)
    spread = scale.reshape(-1, *[1] * (values.ndim - 1)) if by_channel else scale
    stored = np.clip(np.rint(values / spread), -LEVELS, LEVELS).astype(np.int8)
    name = weight.name
    graph.initializer.append(numpy_helper.from_array(stored, f"{name}.int8"))
    inputs = [f"{name}.int8", *_parameters(graph, name, scale)]
    made = helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], name=f"{name}.dequantize")
    if by_channel:
        made.attribute.append(helper.make_attribute("axis", 0))
    return made


def _pair(graph: onnx.GraphProto, name: str, largest: float, joined: bool) -> list[onnx.NodeProto]:
    """Quantize and dequantize the activation ``name``; ``joined``: it is what a Concat makes."""
    parameters = _parameters(graph, name, np.asarray(max(largest, SMALLEST) / LEVELS, np.float32))
    ahead, entering = [], name
    if joined:
        # OpenVINO 2026.4 moves a quantizer from behind a Concat in front of it and rounds to whole numbers then, on
        # processors without AMX at least. It moves none through a Max, and this one changes nothing: what is below
        # is the lowest level anyway.
        lowest = np.asarray(-(LEVELS + 1) * max(largest, SMALLEST) / LEVELS, np.float32)
        graph.initializer.append(numpy_helper.from_array(lowest, f"{name}.lowest"))
        entering = f"{name}.held"
        ahead = [helper.make_node("Max", [name, f"{name}.lowest"], [entering], name=f"{name}.hold")]
    return [
        *ahead,
        helper.make_node("QuantizeLinear", [entering, *parameters], [f"{name}.int8"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *parameters], [f"{name}.float"], name=f"{name}.back"),
    ]


def _parameters(graph: onnx.GraphProto, name: str, scale: NDArray[np.float32]) -> tuple[str, str]:
    """Names of the scale and of the zero point, which is 0, of ``name``."""
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}.zero"))
    return f"{name}.scale", f"{name}.zero"
