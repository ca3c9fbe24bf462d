"""Our own check of a graph against TensorRT-RTX's real parser and builder: the same verdict on each example."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.engines.tensorrt import BuildOptions, build_plan
from edge_runtime.errors import EngineError
from training.errors import ExportError
from training.operators import MAX_TOP_K, OPERATORS, RULES, faults, refuse_unsupported

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")

SIDE = 64
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
U8, F32, I64 = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT64
Array = np.ndarray[Any, Any]


class Example:
    """A graph from `image` uint8 [1, 64, 64, 1] to `out`: cast and transposed, what is tested, then the output."""

    def __init__(self, *nodes: onnx.NodeProto, out: int = F32, raw: bool = False, **constants: Array) -> None:
        before = [
            helper.make_node("Cast", ["image"], ["float"], to=F32),
            helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2]),
        ]
        graph = helper.make_graph(
            [*([] if raw else before), *nodes],
            "example",
            [helper.make_tensor_value_info("image", U8, ["N", SIDE, SIDE, 1])],
            [helper.make_tensor_value_info("out", out, None)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        self.model = helper.make_model(graph, opset_imports=OPSETS, ir_version=9)


def node(kind: str, inputs: str, outputs: str = "out", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.replace("-", "").split(" "), outputs.split(), **attributes)


def resize(**attributes: Any) -> Example:
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    return Example(node("Resize", "x - scales", mode="linear", **attributes), scales=scales)


def top_k(count: int) -> Example:
    return Example(
        node("Reshape", "x shape", "flat"),
        node("TopK", "flat k", "out places"),
        shape=np.array([1, -1], np.int64),
        k=np.array([count], np.int64),
    )


def quantized(zero: Array) -> Example:
    return Example(
        node("QuantizeLinear", "x scale zero", "q"),
        node("DequantizeLinear", "q scale zero"),
        scale=np.array(0.1, np.float32),
        zero=zero,
    )


def four(*shape: int) -> Array:
    return np.linspace(-0.5, 0.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)


TAKEN = {
    "cast, then transpose": Example(node("Identity", "x")),
    "transpose, then cast": Example(
        node("Transpose", "x", "nhwc", perm=[0, 2, 3, 1]), node("Cast", "nhwc", to=U8), out=U8
    ),
    "resize": resize(coordinate_transformation_mode="half_pixel"),
    "resize, nearest": Example(
        node("Resize", "x - scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        scales=np.array([1, 1, 2, 2], np.float32),
    ),
    "largest top k": top_k(MAX_TOP_K),
    "symmetric int8": quantized(np.array(0, np.int8)),
    "mirrored edges": Example(node("Pad", "x pads", mode="reflect"), pads=np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)),
    "max pool": Example(node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])),
    "average pool": Example(node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])),
    **{
        f"{kind} over constant axes": Example(node(kind, "x axes", keepdims=0), axes=np.array([2, 3], np.int64))
        for kind in REDUCTIONS
    },
    "activations": Example(
        node("Sigmoid", "x", "a"), node("Elu", "a", "b"), node("PRelu", "b slope", "c"), node("HardSigmoid", "c", "d"),
        node("HardSwish", "d", "e"), node("Erf", "e", "f"), node("Exp", "f", "g"), node("Log", "g", "h"),
        node("Neg", "h", "i"), node("Max", "i x", "j"), node("Min", "j x", "k"), node("Floor", "k", "l"),
        node("Ceil", "l", "m"), node("Reciprocal", "m", "n"), node("Softmax", "n", "o", axis=1),
        node("Less", "o x", "p"), node("Where", "p o x"),
        slope=np.full((1, 1, 1), 0.25, np.float32),
    ),
    "attention's pieces": Example(
        node("Split", "x parts", "a b", axis=2),
        node("MatMul", "a t", "c"),
        node("LayerNormalization", "c scale", "d", axis=-1),
        node("Gather", "d first", "e", axis=2),
        node("Unsqueeze", "e axis", "f"),
        node("Expand", "f wide", "g"),
        node("GlobalAveragePool", "b", "h"),
        node("Flatten", "h", "i"),
        node("ReduceSum", "g all", "j"),
        node("Add", "i j"),
        parts=np.array([32, 32], np.int64), t=four(SIDE, 5), scale=four(5), first=np.array(0, np.int64),
        axis=np.array([2], np.int64), wide=np.array([1, 1, 7, 5], np.int64), all=np.array([1, 2, 3], np.int64),
    ),
    "where": Example(
        node("Greater", "x zero", "above", ), node("Where", "above x zero"), zero=np.array(0.0, np.float32)
    ),
    "convolutions": Example(
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale shift mean variance", "b"),
        node("LeakyRelu", "b", "l", alpha=0.2),
        node("ConvTranspose", "l t", "u", strides=[2, 2]),
        node("InstanceNormalization", "u one zero", "i"),
        node("DepthToSpace", "i", "d", blocksize=2),
        node("Tanh", "d"),
        w=four(4, 1, 3, 3), t=four(4, 4, 2, 2), scale=four(4), shift=four(4), mean=four(4),
        variance=np.ones(4, np.float32), one=np.ones(4, np.float32), zero=np.zeros(4, np.float32),
    ),
    "arithmetic": Example(
        node("Abs", "x", "a"), node("Add", "a half", "b"), node("Pow", "b half", "c"), node("Sqrt", "c", "d"),
        node("Div", "d half", "e"), node("Mul", "e half", "f"), node("Sub", "f half", "g"), node("Softplus", "g", "h"),
        node("Round", "h", "i"), node("Clip", "i low high", "j"), node("Relu", "j", "k"), node("Concat", "k x", axis=1),
        half=np.array(0.5, np.float32), low=np.array(0, np.float32), high=np.array(200, np.float32),
    ),
    "shapes": Example(
        node("Shape", "x", "size"),
        node("Reshape", "x size", "same"),
        node("Slice", "same start stop axes", "cut"),
        node("Squeeze", "cut one", "flat"),
        node("Reshape", "flat row", "rows"),
        node("Gemm", "rows w"),
        start=np.array([0], np.int64), stop=np.array([8], np.int64), axes=np.array([2], np.int64),
        one=np.array([1], np.int64), row=np.array([1, -1], np.int64), w=four(8 * SIDE, 3),
    ),
}  # fmt: skip
REFUSED = {
    "uint8 transpose": Example(
        node("Transpose", "image", "moved", perm=[0, 3, 1, 2]), node("Cast", "moved", to=F32), raw=True
    ),
    "uint8 arithmetic": Example(
        node("Add", "image image", "twice"), node("Cast", "twice", to=F32), raw=True
    ),
    "uint8 out of a transpose": Example(
        node("Cast", "x", "byte", to=U8), node("Transpose", "byte", perm=[0, 2, 3, 1]), out=U8
    ),
    "antialiased resize": resize(antialias=1),
    "resize that keeps the aspect": Example(
        node("Resize", "x - - sizes", mode="linear", keep_aspect_ratio_policy="not_larger"),
        sizes=np.array([1, 1, 32, 48], np.int64),
    ),
    "resize of a region": Example(
        node("Resize", "x roi scales", mode="linear", coordinate_transformation_mode="tf_crop_and_resize"),
        roi=np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], np.float32), scales=np.array([1, 1, 0.5, 0.5], np.float32),
    ),
    "top k beyond the limit": top_k(MAX_TOP_K + 1),
    "zero point that is not zero": quantized(np.array(3, np.int8)),
    "uint8 zero point": quantized(np.array(128, np.uint8)),
    "int32 bias": Example(
        node("DequantizeLinear", "bias scale", "b"), node("Add", "x b"),
        bias=np.array([7], np.int32), scale=np.array(0.1, np.float32),
    ),
    "indices of a max pool": Example(
        node("MaxPool", "x", "pooled places", kernel_shape=[2, 2], strides=[2, 2]),
        node("Cast", "places", to=F32),
    ),
    "dilated pool": Example(node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])),
    **{
        f"{kind} over axes that depend on the image": Example(
            node("ReduceMin", "x", "least", keepdims=0), node("Cast", "least", "axis", to=I64),
            node("Reshape", "axis one", "axes"), node(kind, "x axes", keepdims=0), one=np.array([1], np.int64),
        )
        for kind in REDUCTIONS
    },
    "operator that TensorRT does not know": Example(node("Det", "x")),
    "domain that TensorRT does not know": Example(helper.make_node("Magic", ["x"], ["out"], domain="com.example")),
}  # fmt: skip


def verdict_of_rtx(model: onnx.ModelProto) -> str | None:
    """What TensorRT-RTX's parser or builder says against the graph, or None."""
    try:
        build_plan("tensorrt-rtx", model.SerializeToString(), BuildOptions((1, SIDE, SIDE, 1), 256, "8.6"))
    except EngineError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", TAKEN)
def test_what_tensorrt_rtx_takes_is_taken(name: str) -> None:
    assert verdict_of_rtx(TAKEN[name].model) is None
    assert faults(TAKEN[name].model) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorrt_rtx_refuses_is_refused(name: str) -> None:
    said = verdict_of_rtx(REFUSED[name].model)
    assert said is not None, "TensorRT-RTX takes it: it is no example of what is refused"
    assert faults(REFUSED[name].model), said
    with pytest.raises(ExportError, match=r"TensorRT would refuse the graph: node \d"):
        refuse_unsupported(REFUSED[name].model)


def test_every_operator_of_the_table_is_tried_on_the_real_parser() -> None:
    seen = {node.op_type for example in TAKEN.values() for node in example.model.graph.node}
    assert set(OPERATORS) == seen


def test_every_rule_has_an_example_that_breaks_it() -> None:
    broken = " ".join(fault for example in REFUSED.values() for fault in faults(example.model))
    assert all(f"({name})" in broken for name in set(RULES))


def test_the_parser_s_words_name_node_and_reason() -> None:
    said = verdict_of_rtx(REFUSED["uint8 transpose"].model) or ""
    assert said.startswith("tensorrt-rtx 1.") and "refuses the graph: node 0" in said and "(Transpose)" in said
