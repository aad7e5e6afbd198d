"""Defines both networks without weights, GPU or wheel, and reports what they are (docs/tensorrt_llm.md 8)."""

from __future__ import annotations

import math
import resource
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from build_engines.tensorrt_llm.networks.build import build_config
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from vita_audio.checkpoint.sizes import SIZES

#: Small, with heads of 64: TensorRT-LLM has kernels for no smaller ones.
TINY = replace(
    SIZES["tiny"].language_model, vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2 + 10
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A network input or output: -1 is a free dimension; `largest` is the profile's maximum of an input."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Definition:
    """What one network turned out to be."""

    part: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: int
    plugins: dict[str, int]
    attention: dict[str, Any]  # fields of the first attention plugin
    parameters: int
    seconds: float
    peak_mib: float
    engine_bytes: int | None  # of the compiled engine, None when it was only defined


def define(part: str, model: Any, options: NetworkOptions, compile_engine: bool = False) -> Definition:
    """Define a network of `build.network` or `build.load_network` with TensorRT-LLM's own builder.

    `cpu_sources.install` has to come first.

    Args:
        compile_engine: compile it too, ahead of time; without a checkpoint its weights have no meaning.
    """
    from tensorrt_llm.builder import Builder, build

    from build_engines.tensorrt_llm.networks.cpu_plugins import RECORDER

    RECORDER.calls.clear()
    made: list[Any] = []
    create = Builder.create_network

    def recorded(self: Any) -> Any:
        made.append(create(self))
        return made[-1]

    start = time.monotonic()
    with mock.patch.object(Builder, "create_network", recorded):
        engine = build(model, build_config(part, options, dry_run=not compile_engine))
    seconds = time.monotonic() - start
    (defined,) = made
    trt_network = defined.trt_network
    attention = next(call for call in RECORDER.calls if call.name == "GPTAttention")
    largest = {name: tuple(tensor.profiles[0].max) for name, tensor in defined._inputs.items()}
    return Definition(
        part=part,
        inputs=tuple(_tensor(trt_network.get_input(i), largest) for i in range(trt_network.num_inputs)),
        outputs=tuple(_tensor(trt_network.get_output(i), {}) for i in range(trt_network.num_outputs)),
        layers=trt_network.num_layers,
        plugins=dict(Counter(call.name for call in RECORDER.calls)),
        attention={name: value.tolist() for name, value in attention.fields.items()},
        parameters=sum(math.prod(p.shape) for _, p in model.named_parameters() if not p.is_buffer),
        seconds=seconds,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        engine_bytes=None if engine.engine is None else engine.engine.nbytes,
    )


def _tensor(tensor: Any, largest: dict[str, tuple[int, ...]]) -> Tensor:
    dtype = str(tensor.dtype).rpartition(".")[2].lower()
    return Tensor(tensor.name, dtype, tuple(tensor.shape), largest.get(tensor.name, ()))
