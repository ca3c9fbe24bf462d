"""What TensorRT takes of an ONNX graph, checked before a bundle is written (before hop 1).

The table and the restrictions are those of ONNX-TensorRT's own list of operators (docs/operators.md, read for 10.1 and
10.15, alike in what stands here), narrowed to what our graphs are made of: an operator that nobody has needed yet is
refused until its line is added, and with it a test that asks TensorRT-RTX's parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from training.errors import ExportError

# Kinds of values that the operators below take in TensorRT; INT64 is what shapes and axes are made of.
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
MOVABLE = NUMBERS | {TensorProto.BOOL}
BYTES = MOVABLE | {TensorProto.UINT8}  # uint8: as input or output of the network, and of Cast between, alone
QUANTIZED = frozenset({TensorProto.INT8})

# operator -> kinds of its first input
OPERATORS: dict[str, frozenset[int]] = {
    "Abs": NUMBERS,
    "Add": NUMBERS,
    "AveragePool": FLOATS,
    "BatchNormalization": FLOATS,
    "Cast": BYTES,
    "Ceil": FLOATS,
    "Clip": FLOATS,
    "Concat": MOVABLE,
    "Conv": FLOATS,
    "ConvTranspose": FLOATS,
    "DepthToSpace": NUMBERS,
    "DequantizeLinear": QUANTIZED,
    "Div": NUMBERS,
    "Elu": FLOATS,
    "Erf": FLOATS,
    "Exp": FLOATS,
    "Expand": MOVABLE,
    "Flatten": MOVABLE,
    "Floor": FLOATS,
    "Gather": MOVABLE,
    "Gemm": FLOATS,
    "GlobalAveragePool": FLOATS,
    "Greater": NUMBERS,
    "HardSigmoid": FLOATS,
    "HardSwish": FLOATS,
    "Identity": MOVABLE,
    "InstanceNormalization": FLOATS,
    "LayerNormalization": FLOATS,
    "LeakyRelu": FLOATS,
    "Less": NUMBERS,
    "Log": FLOATS,
    "MatMul": FLOATS,
    "Max": NUMBERS,
    "MaxPool": FLOATS,
    "Min": NUMBERS,
    "Mul": NUMBERS,
    "Neg": NUMBERS,
    "PRelu": FLOATS,
    "Pad": NUMBERS,
    "Pow": NUMBERS,
    "QuantizeLinear": FLOATS,
    "Reciprocal": FLOATS,
    "ReduceL1": NUMBERS,
    "ReduceL2": NUMBERS,
    "ReduceMax": NUMBERS,
    "ReduceMean": NUMBERS,
    "ReduceMin": NUMBERS,
    "ReduceSum": NUMBERS,
    "Relu": NUMBERS,
    "Reshape": MOVABLE,
    "Resize": FLOATS,
    "Round": FLOATS,
    "Shape": MOVABLE,
    "Sigmoid": FLOATS,
    "Slice": MOVABLE,
    "Softmax": FLOATS,
    "Softplus": FLOATS,
    "Split": MOVABLE,
    "Sqrt": FLOATS,
    "Squeeze": MOVABLE,
    "Sub": NUMBERS,
    "Tanh": FLOATS,
    "TopK": NUMBERS,
    "Transpose": MOVABLE,
    "Unsqueeze": MOVABLE,
    "Where": MOVABLE,
}
MAX_TOP_K = 3840
DOMAINS = frozenset({"", "ai.onnx"})

Constants = dict[str, NDArray[Any]]


def refuse_unsupported(model: onnx.ModelProto) -> None:
    """Raise ExportError where TensorRT would refuse the graph, naming each node and what is wrong with it."""
    found = faults(model)
    if found:
        raise ExportError(
            "TensorRT would refuse the graph: " + "; ".join(found[:5]) + ". The bundle would serve no GPU box: change "
            "the model's layers, or report it with the version of torch"
        )


def faults(model: onnx.ModelProto) -> list[str]:
    """A sentence for each node that TensorRT would refuse; empty for a graph that it takes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        return [f"the types of its values do not follow ({str(error)[:300]})"]
    kinds = _kinds(inferred.graph)
    constants = {value.name: numpy_helper.to_array(value) for value in inferred.graph.initializer}
    if inferred.functions:
        return [f"the graph has functions of its own ({inferred.functions[0].name}), which have to be inlined"]
    found: list[str] = []
    for index, node in enumerate(inferred.graph.node):
        if node.op_type == "Constant":
            constants |= _constant(node)
        for fault in _faults_of(node, kinds, constants):
            found.append(f"node {index} {node.name!r} ({node.op_type}): {fault}")
    return found


def _kinds(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensor name -> ONNX element type, of whatever is known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {value.name: value.data_type for value in graph.initializer}


def _constant(node: onnx.NodeProto) -> Constants:
    value = _attribute(node, "value", None)
    return {} if value is None else {node.output[0]: numpy_helper.to_array(value)}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _faults_of(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    if node.domain not in DOMAINS:
        yield f"is of the domain {node.domain!r}, which TensorRT does not know"
        return
    if node.op_type == "Constant":
        return
    allowed = OPERATORS.get(node.op_type)
    if allowed is None:
        yield "is no operator of our table of those that TensorRT takes (training/operators.py)"
        return
    first = kinds.get(node.input[0]) if node.input else None
    if first is not None and first not in allowed:
        yield f"takes no {_name(first)}; cast to float before it"
    if node.op_type not in ("Cast", "QuantizeLinear") and any(
        kinds.get(name) == TensorProto.UINT8 for name in node.output
    ):
        yield "gives uint8; cast as the last step"
    rule = RULES.get(node.op_type)
    if rule is not None:
        yield from rule(node, kinds, constants)


def _name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _resize(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    if _attribute(node, "antialias", 0):
        yield "antialias is not supported; shrink with AveragePool, or in preprocessing"
    if _attribute(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        yield "keep_aspect_ratio_policy has to be stretch"
    mode = _attribute(node, "coordinate_transformation_mode", b"half_pixel")
    if mode not in (b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn", b"asymmetric", b"align_corners"):
        yield f"coordinate_transformation_mode {mode.decode()} is not supported; half_pixel is"


def _top_k(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    count = constants.get(node.input[1])
    if count is None:
        yield "K has to be a constant"
    elif int(count.reshape(-1)[0]) > MAX_TOP_K:
        yield f"K is {int(count.reshape(-1)[0])}, at most {MAX_TOP_K} are supported"


def _quantized(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            yield "quantizes to uint8; give an int8 zero point of 0"
        return
    zero = constants.get(node.input[2])
    if zero is None:
        yield "the zero point has to be a constant"
    elif zero.dtype != np.int8:
        yield f"the zero point is {zero.dtype}; int8 is supported"
    elif zero.any():
        yield "the zero point has to be 0; quantize symmetrically"


def _pooling(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    if len(node.output) > 1 and node.output[1]:
        yield "the output of indices is not supported"
    if any(step != 1 for step in _attribute(node, "dilations", [])):
        yield "dilations have to be 1"


def _reduce(node: onnx.NodeProto, kinds: dict[str, int], constants: Constants) -> Iterator[str]:
    if len(node.input) > 1 and node.input[1] and node.input[1] not in constants:
        yield "the axes have to be a constant"


Rule = Callable[[onnx.NodeProto, dict[str, int], Constants], Iterator[str]]
RULES: dict[str, Rule] = {
    "Resize": _resize,
    "TopK": _top_k,
    "QuantizeLinear": _quantized,
    "DequantizeLinear": _quantized,
    "MaxPool": _pooling,
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
}
