"""TensorRT's runtime without a GPU: engines are NumPy functions, which read and write memory by the bound addresses.

As on a GPU, an engine sees addresses only; a context that a graph uses must not be changed again, and every input and
output must be bound, with memory that still belongs to a tensor of that size when the engine runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio.engines.tensorrt_audio import audio
from vita_audio.engines.tensorrt_audio.plan import PLAN_FILE, AudioPlan, EnginePlan
from vita_audio.engines.torch_cuda import cuda_graphs

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, slots=True)
class Network:
    """One engine.

    Attributes:
        run: inputs by name -> the output.
        shape: shapes of the inputs -> of the output.
        types: of inputs that are not float32.
    """

    run: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
    shape: Callable[[Mapping[str, tuple[int, ...]]], tuple[int, ...]]
    types: dict[str, type] = field(default_factory=dict)

    def type_of(self, name: str) -> Any:
        return self.types.get(name, np.float32)


class Context:
    """An execution context. `frozen` once a graph uses it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.frozen, self.profile = engine, False, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0

    def _change(self) -> None:
        assert not self.frozen, "a context that a CUDA graph uses is changed"
        assert not cuda_graphs.is_capturing() or not self.engine.runtime.recording, "changed while it is captured"

    def set_device_memory(self, address: int, size: int) -> None:
        self._change()
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._change()
        assert all(type(size) is int for size in shape)
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.network.shape(self.shapes)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._change()
        self.addresses[name] = address

    def run(self) -> None:
        assert self.profile >= 0
        assert self.scratch
        network, runtime = self.engine.network, self.engine.runtime
        if runtime.recording:
            self.frozen = True
        runtime.calls.append((self.engine.name, id(self), dict(self.addresses)))
        if not runtime.computing:
            return
        given = {name: self._at(name, shape).copy() for name, shape in self.shapes.items()}
        made = np.asarray(network.run(given), network.type_of("output"))
        output = self._at("output", self.get_tensor_shape("output"))
        output[:] = made

    def _at(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = np.dtype(self.engine.network.type_of(name))
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)


class Engine:
    device_memory_size_v2 = 16

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime, self.name, self.network = runtime, name, runtime.networks[name]
        self._names = [*runtime.plans[name].inputs, "output"]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return OUTPUT if name == "output" else INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.network.type_of(name)

    def create_execution_context(self, strategy: str) -> Context | None:
        if self.runtime.contexts == self.runtime.most_contexts:
            return None
        self.runtime.contexts += 1
        return Context(self)


class Runtime:
    """Attributes:
    calls: (engine, context, addresses) of each call.
    contexts: made so far; with `most_contexts` of them the GPU's memory is full.
    recording: a graph is being captured.
    computing: False calls no network.
    """

    def __init__(self, networks: Mapping[str, Network], plans: Mapping[str, EnginePlan]) -> None:
        self.networks, self.plans = networks, plans
        self.calls: list[tuple[str, int, dict[str, int]]] = []
        self.contexts, self.most_contexts = 0, 1 << 30
        self.recording, self.computing = False, True

    def deserialize_cuda_engine(self, data: bytes) -> Engine:
        return Engine(self, data.decode())


class FakeDevice:
    """In place of `session.Device`."""

    def __init__(self, runtime: Runtime, device: torch.device) -> None:
        self.torch, self.runtime = device, runtime
        self.tensorrt = SimpleNamespace(
            TensorIOMode=SimpleNamespace(INPUT=INPUT),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            nptype=lambda dtype: dtype,
        )

    def select(self, context: Context, profile: int) -> bool:
        context._change()
        context.profile = profile
        return True

    def execute(self, context: Context) -> bool:
        context.run()
        return True


class FakeCapturer:
    """In place of `cuda_graphs.Capturer`: a replay must enqueue the very calls that were captured."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.graphs = runtime, 0

    def capture(self, function: Callable[[], Tensor | None]) -> tuple[object, Tensor | None]:
        runtime = self._runtime
        outside = cuda_graphs._capturing.set(True)
        try:
            function()
            before, runtime.recording = len(runtime.calls), True
            made = function()
        finally:
            runtime.recording = False
            cuda_graphs._capturing.reset(outside)
        captured = runtime.calls[before:]
        self.graphs += 1

        def replay() -> None:
            begin = len(runtime.calls)
            again = function()
            assert runtime.calls[begin:] == captured, "a graph's calls are not the captured ones"
            if made is not None and again is not None:
                made.copy_(again)

        return SimpleNamespace(replay=replay), made


@contextmanager
def on_fake_tensorrt(
    folder: Path, networks: Mapping[str, Network], plans: Mapping[str, EnginePlan], device: torch.device
) -> Iterator[Runtime]:
    """Within it the engines of `folder` open over these networks; nothing is captured unless `captured` is called."""
    plans = {name: replace(plan, inputs=dict(plan.inputs)) for name, plan in plans.items()}
    (folder / PLAN_FILE).write_text(AudioPlan("10.14", "9.0", 8, plans).to_json())
    for name in networks:
        (folder / f"{name}.engine").write_bytes(name.encode())
    runtime = Runtime(networks, plans)
    with mock.patch.object(audio, "Device", return_value=FakeDevice(runtime, device)):
        yield runtime


def captured(runtime: Runtime, *engines: Any) -> FakeCapturer:
    """Let the decoder's functions over these engines be captured."""
    capturer = FakeCapturer(runtime)
    for engine in engines:
        engine.arrays._capturer = capturer
    return capturer
