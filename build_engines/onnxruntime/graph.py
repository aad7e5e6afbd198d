"""Writes ONNX graphs node by node, with the layers that the audio networks share.

The graphs are written, not traced: both of PyTorch's exporters fail or leave hundreds of shape nodes on these networks,
and what makes them fast in ONNX Runtime is not in the PyTorch modules (measured at T = 250, one thread):
Mish from Exp instead of Softplus (10x), 2-D convolutions of height 1 (blocked kernels, 1.2-1.8x), fused
attention, products over [rows, width] that add the bias on the way. (Fused skip + LayerNorm is slower than its parts.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 21, 10
FUSED = "com.microsoft"  # ONNX Runtime's own operators
END = np.iinfo(np.int64).max


class Graph:
    """Collects nodes, weights, inputs and outputs; every layer returns the name of its result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._branches = 0

    # Graph plumbing

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several results."""
        names = [f"{self.name}/{kind}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, names[0], domain=domain, **attributes))
        return names

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one result."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def weight(self, name: str, value: NDArray) -> str:
        """A constant; the same name is stored once."""
        self.weights.setdefault(name, np.asarray(value, order="C"))
        return name

    def ints(self, *values: int) -> str:
        return self.weight("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.weight(f"integer_{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        return self.weight(f"number_{value!r}", np.array(value, np.float32))

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, kind: int, shape: Sequence[int | str]) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.declare_output(name, kind, shape)

    def declare_output(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """A result that has its public name already."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def branch(self, name: str) -> Graph:
        """An empty graph for one side of an If. It may read this graph's values; its own names do not clash."""
        self._branches += 1
        return Graph(f"{self.name}/{name}{self._branches}")

    def as_branch(self, value: str, kind: int, shape: Sequence[int | str]) -> onnx.GraphProto:
        """The nodes as one side of an If that yields `value`; weights have to be the parent's."""
        return helper.make_graph(self.nodes, self.name, [], [helper.make_tensor_value_info(value, kind, shape)])

    def save(self, path: Path, metadata: Mapping[str, str], check: bool = True) -> None:
        """Write the graph; `metadata` is what an engine must know without a config file.

        `check` runs ONNX's checker, which does not know the operators ONNX Runtime adds to the standard domain.
        """
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vita_audio")
        for name, value in self.weights.items():  # the two calls before would copy them
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        helper.set_model_props(model, dict(metadata))
        if check:
            onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(model, path)

    # Shapes

    def size(self, value: str, axis: int) -> str:
        """Length of one axis, a scalar."""
        return self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))

    def vector(self, *parts: int | str) -> str:
        """A shape made of numbers and scalars known at run time."""
        values = [
            self.ints(part) if isinstance(part, int) else self.op("Unsqueeze", part, self.ints(0)) for part in parts
        ]
        return self.op("Concat", *values, axis=0)

    def reshape(self, value: str, *shape: int) -> str:
        """0 keeps an axis, -1 is worked out."""
        return self.op("Reshape", value, self.ints(*shape))

    def slice(self, value: str, start: str, stop: str, axis: int) -> str:
        """start and stop are one-element vectors."""
        return self.op("Slice", value, start, stop, self.ints(axis))

    # Layers over [B, T, width]

    def linear(self, x: str, key: str, weight: NDArray, bias: NDArray | None = None) -> str:
        """weight [out, in] as PyTorch stores it."""
        y = self.op("MatMul", x, self.weight(key + ".weight", weight.T))
        return y if bias is None else self.op("Add", y, self.weight(key + ".bias", bias))

    def layer_norm(self, x: str, key: str, scale: NDArray, bias: NDArray) -> str:
        parts = self.weight(key + ".weight", scale), self.weight(key + ".bias", bias)
        return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=1e-5)

    def gemm(self, x: str, key: str, weight: NDArray, bias: NDArray | None = None) -> str:
        """The same over rows [B * T, width]: with a bias it is one node and one pass, not two."""
        if bias is None:
            return self.linear(x, key, weight)
        parts = self.weight(key + ".weight", weight.T), self.weight(key + ".bias", bias)
        return self.op("Gemm", x, *parts)

    # Layers over [B, channels, 1, T]: one-dimensional, written with height 1

    def conv(
        self,
        x: str,
        key: str,
        weight: NDArray,
        bias: NDArray | None = None,
        pads: tuple[int, int] = (0, 0),
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> str:
        """weight [out, in / groups, kernel] as PyTorch stores it; pads are (left, right)."""
        inputs = [x, self.weight(key + ".weight", weight[:, :, None])]
        if bias is not None:
            inputs.append(self.weight(key + ".bias", bias))
        shape: dict[str, Any] = {"pads": [0, pads[0], 0, pads[1]], "strides": [1, stride], "dilations": [1, dilation]}
        return self.op("Conv", *inputs, **shape, group=groups)

    def conv_transpose(self, x: str, key: str, weight: NDArray, bias: NDArray, padding: int, stride: int) -> str:
        """weight [in, out, kernel] as PyTorch stores it."""
        parts = self.weight(key + ".weight", weight[:, :, None]), self.weight(key + ".bias", bias)
        return self.op("ConvTranspose", x, *parts, pads=[0, padding, 0, padding], strides=[1, stride])

    def group_norm(self, x: str, key: str, groups: int, scale: NDArray, bias: NDArray) -> str:
        """Mean and variance over (channels / groups, T)."""
        one, zero = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        y = self.op(
            "InstanceNormalization",
            self.reshape(x, 0, groups, -1),
            self.weight(f"ones_{groups}", one),
            self.weight(f"zeros_{groups}", zero),
            epsilon=1e-5,
        )
        y = self.reshape(y, 0, len(scale), 1, -1)
        y = self.op("Mul", y, self.weight(key + ".weight", scale[:, None, None]))
        return self.op("Add", y, self.weight(key + ".bias", bias[:, None, None]))

    def mish(self, x: str) -> str:
        """x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2); at 20 the factor is 1 in float32."""
        e = self.op("Exp", self.op("Min", x, self.number(20.0)))
        n = self.op("Mul", e, self.op("Add", e, self.number(2.0)))
        return self.op("Mul", x, self.op("Div", n, self.op("Add", n, self.number(2.0))))

    def to_rows(self, x: str, channels: int) -> str:
        """[B, channels, 1, T] -> [B, T, channels]."""
        return self.op("Transpose", self.reshape(x, 0, channels, -1), perm=[0, 2, 1])

    def to_channels(self, x: str, channels: int) -> str:
        """[B, T, channels] -> [B, channels, 1, T]."""
        return self.reshape(self.op("Transpose", x, perm=[0, 2, 1]), 0, channels, 1, -1)


def weights_of(state: Mapping[str, Any]) -> dict[str, NDArray]:
    """float32 arrays of a PyTorch state dict."""
    return {key: value.detach().cpu().float().numpy() for key, value in state.items()}


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
