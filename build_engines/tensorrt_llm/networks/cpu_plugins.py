"""Placeholders for TensorRT-LLM's plugins in a dry run: they record what the network asks for and keep shapes right.

Imported by `cpu_sources.install` only. A placeholder computes nothing true: attention gives back the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorrt as trt
import tensorrt_llm.functional as functional
from tensorrt_llm.parameter import Parameter

Lower = Callable[[Any, Sequence[Any], dict[str, np.ndarray]], Any]


@dataclass(frozen=True, slots=True)
class PluginCall:
    """One plugin layer: its fields and the names of its inputs."""

    name: str
    fields: dict[str, np.ndarray]
    inputs: tuple[str, ...]


@dataclass(slots=True)
class _Recorder:
    calls: list[PluginCall] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)  # TensorRT keeps pointers into them


RECORDER = _Recorder()


def _attention(network: Any, inputs: Sequence[Any], fields: dict[str, np.ndarray]) -> Any:
    """[tokens, q + k + v] -> [tokens, q]."""
    columns = np.arange(int(fields["num_heads"]) * int(fields["head_size"]), dtype=np.int32)
    RECORDER.constants.append(columns)
    chosen = network.add_constant(columns.shape, trt.Weights(columns)).get_output(0)
    return network.add_gather(inputs[0], chosen, len(inputs[0].shape) - 1)


def _gemm(network: Any, inputs: Sequence[Any], fields: dict[str, np.ndarray]) -> Any:
    turn = {0: trt.MatrixOperation.NONE, 1: trt.MatrixOperation.TRANSPOSE}
    left, right = (turn[int(fields[name])] for name in ("transa", "transb"))
    return network.add_matrix_multiply(inputs[0], left, inputs[1], right)


def _topk(network: Any, inputs: Sequence[Any], fields: dict[str, np.ndarray]) -> Any:
    kind = trt.TopKOperation.MAX if int(fields["is_largest"]) else trt.TopKOperation.MIN
    return network.add_topk(inputs[0], kind, int(fields["k"]), 1 << 1)


LOWER: dict[str, Lower] = {"GPTAttention": _attention, "Gemm": _gemm, "TopkLastDim": _topk}


class _Creator:
    """What the sources ask a plugin registry for."""

    plugin_version, plugin_namespace = "1", "tensorrt_llm"

    def __init__(self, name: str) -> None:
        self.name = name

    def create_plugin(self, _: str, collection: Any) -> tuple[str, dict[str, np.ndarray]]:
        parts = [collection[i] for i in range(len(collection))]
        return self.name, {part.name: np.array(part.data).copy() for part in parts}


class _Registry:
    def get_plugin_creator(self, name: str, version: str, namespace: str = "") -> _Creator | None:
        return _Creator(name) if name in LOWER else None

    get_creator = get_plugin_creator


def _add_plugin(network: Any, inputs: Sequence[Any], plugin: tuple[str, dict[str, np.ndarray]]) -> Any:
    name, fields = plugin
    RECORDER.calls.append(PluginCall(name, fields, tuple(tensor.name for tensor in inputs)))
    return LOWER[name](network, inputs, fields)


def install() -> None:
    """Bridge the TensorRT 11 style bindings of tensorrt-rtx to the TensorRT 10 calls of the sources."""
    trt.get_plugin_registry = _Registry
    trt.INetworkDefinition.add_plugin_v2 = _add_plugin
    if not hasattr(trt, "IPluginCreator"):
        trt.IPluginCreator = object
    # A strongly typed network works out types and places of tensors itself: these setters are gone.
    tensor = functional.Tensor
    tensor.dtype = tensor.dtype.setter(lambda self, value: None)
    tensor.location = tensor.location.setter(lambda self, value: None)
    # Weights that no checkpoint gave are drawn on a GPU; here they stay unwritten memory, which costs none.
    Parameter.xavier_init = lambda weights: None
