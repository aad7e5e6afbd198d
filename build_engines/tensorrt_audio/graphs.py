"""The audio graphs for TensorRT: ONNX Runtime's own operators rewritten in standard ones, products in half precision.

The graphs of `export_audio` are written for ONNX Runtime. TensorRT reads them once two operators are spelled out. Types
are explicit in the graph (a strongly typed network), so a CPU checks what the GPU will build (docs/onnx.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from build_engines.onnxruntime.graph import FUSED
from vita_audio.contract.errors import EngineError

#: Where nearly all the work is; in float16 they run on tensor cores.
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def standard_graph(path: Path, half_products: bool) -> onnx.ModelProto:
    """The graph of `path` for TensorRT.

    Args:
        half_products: inputs and weights of convolutions and matrix products become float16, results float32 again.
            All else stays float32: the exponentials of Mish reach 1e17, far beyond float16.

    Raises:
        EngineError: it is not a graph of `export_audio`.
    """
    try:
        model = onnx.load(path)
    except Exception as error:
        raise EngineError(f"{path}: not a readable ONNX graph ({error}); export the engines again") from error
    graph = model.graph
    widths = _product_widths(graph)
    nodes = [made for node in graph.node for made in _standard(node, graph, widths)]
    if half_products:
        nodes = list(_with_half_products(nodes, graph))
    del graph.node[:]
    graph.node.extend(nodes)
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain})
    if foreign:
        raise EngineError(f"{path}: TensorRT has no {', '.join(foreign)}; teach tensorrt_audio_graphs to spell it out")
    for opset in [opset for opset in model.opset_import if opset.domain == FUSED]:
        model.opset_import.remove(opset)
    onnx.checker.check_model(model)
    return model


def with_frame_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of the flow's condition with a frame map for each window: frame_token [B, F] in place of [F].

    Windows of a batch are at any place of their streams, and tokens have six or seven frames by their place.
    """
    graph = model.graph
    (maps,) = (value for value in graph.input if value.name == "frame_token")
    dims = maps.type.tensor_type.shape.dim
    frames = dims[0].dim_param
    dims[0].dim_param = "batch"
    dims.add().dim_param = frames
    (at,) = (index for index, node in enumerate(graph.node) if maps.name in node.input)
    gather = graph.node[at]
    places, axis = f"{gather.name}/places", f"{gather.name}/axis"
    graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), axis))
    unsqueeze = helper.make_node("Unsqueeze", [maps.name, axis], [places])  # [B, F, 1]
    taken = helper.make_node("GatherND", [gather.input[0], places], gather.output, batch_dims=1)  # [B, F, mels]
    graph.node.remove(gather)
    graph.node.insert(at, unsqueeze)
    graph.node.insert(at + 1, taken)
    onnx.checker.check_model(model)
    return model


def _standard(node: NodeProto, graph: onnx.GraphProto, widths: dict[str, int]) -> Iterator[NodeProto]:
    kind = (node.domain, node.op_type)
    if kind == (FUSED, "QuickGelu"):  # exported with alpha 1: the SiLU
        gate = f"{node.name}/gate"
        yield helper.make_node("Sigmoid", [node.input[0]], [gate])
        yield helper.make_node("Mul", [node.input[0], gate], node.output)
    elif kind == (FUSED, "MultiHeadAttention"):
        yield from _attention(node, graph, widths)
    else:
        yield node


def _attention(node: NodeProto, graph: onnx.GraphProto, widths: dict[str, int]) -> Iterator[NodeProto]:
    """softmax(q k / sqrt(d) + bias) v over [B, T, heads * d]: the pattern that TensorRT fuses into one kernel."""
    heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
    queries, keys, values, *rest = node.input
    bias = rest[2] if len(rest) > 2 else ""  # q, k, v, projection bias, padding mask, attention bias
    if any(rest[:2]) or queries not in widths:
        raise EngineError(f"{node.name}: attention with a projection bias or of unknown width is not exported here")
    width, name = widths[queries], node.name
    split = _constant(graph, f"{name}/split", np.array([0, 0, heads, width // heads], np.int64))
    joined = _constant(graph, f"{name}/joined", np.array([0, 0, width], np.int64))
    scale = _constant(graph, f"{name}/scale", np.array((width // heads) ** -0.5, np.float32))
    for part, value, perm in (("q", queries, [0, 2, 1, 3]), ("k", keys, [0, 2, 3, 1]), ("v", values, [0, 2, 1, 3])):
        yield helper.make_node("Reshape", [value, split], [f"{name}/{part}_split"])
        yield helper.make_node("Transpose", [f"{name}/{part}_split"], [f"{name}/{part}"], perm=perm)
    yield helper.make_node("Mul", [f"{name}/q", scale], [f"{name}/q_scaled"])
    yield helper.make_node("MatMul", [f"{name}/q_scaled", f"{name}/k"], [f"{name}/scores"])  # [B, heads, T, T]
    scores = f"{name}/scores"
    if bias:
        scores = f"{name}/biased"
        yield helper.make_node("Add", [f"{name}/scores", bias], [scores])
    yield helper.make_node("Softmax", [scores], [f"{name}/weights"], axis=-1)
    yield helper.make_node("MatMul", [f"{name}/weights", f"{name}/v"], [f"{name}/mixed"])
    yield helper.make_node("Transpose", [f"{name}/mixed"], [f"{name}/rows"], perm=[0, 2, 1, 3])
    yield helper.make_node("Reshape", [f"{name}/rows", joined], node.output)


def _product_widths(graph: onnx.GraphProto) -> dict[str, int]:
    """Columns of every matrix product with a weight, also after a reshape: the widths of queries."""
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    widths: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights:
            widths[node.output[0]] = weights[node.input[1]][-1]
        elif node.op_type in ("Reshape", "Add") and node.input[0] in widths:
            widths[node.output[0]] = widths[node.input[0]]
        elif node.op_type == "Split" and node.input[0] in widths:
            widths |= dict.fromkeys(node.output, widths[node.input[0]] // len(node.output))  # q, k and v
    return widths


def _with_half_products(nodes: list[NodeProto], graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """Casts around every product; weights that only products read are stored in half."""
    weights = {weight.name: weight for weight in graph.initializer}
    halved: dict[str, str] = {}
    for node in nodes:
        if node.op_type not in PRODUCTS:
            yield node
            continue
        inputs = []
        for name in node.input:
            if name and name not in halved:
                halved[name] = f"{name}/half"
                if name in weights:
                    value = numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(numpy_helper.from_array(value, halved[name]))
                else:
                    yield helper.make_node("Cast", [name], [halved[name]], to=TensorProto.FLOAT16)
            inputs.append(halved[name] if name else "")
        made = f"{node.output[0]}/product"
        product = NodeProto()
        product.CopyFrom(node)
        del product.input[:], product.output[:]
        product.input.extend(inputs)
        product.output.append(made)
        yield product
        yield helper.make_node("Cast", [made], node.output, to=TensorProto.FLOAT)
    used = {name for node in nodes if node.op_type not in PRODUCTS for name in node.input}
    for name in [name for name in halved if name in weights and name not in used]:
        graph.initializer.remove(weights[name])


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
