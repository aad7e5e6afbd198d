"""Runs one TensorRT audio engine on tensors of the device, inside CUDA graphs of the streaming decoder or outside.

**Not run on a GPU yet.** Written for TensorRT 10.14 (docs/tensorrt_llm.md 1.2). What a graph uses is never changed
again, as TensorRT asks for: an execution context and buffers of its own for each geometry. Any other call has a context
of its profile and new buffers. All contexts of an engine share one scratch memory: they never run at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.preparing import NoMemory
from vita_audio.engines.tensorrt_audio.plan import AudioPlan, EnginePlan, Geometry
from vita_audio.engines.torch_cuda.cuda_graphs import is_capturing

Tensors = Mapping[str, Tensor]


class Device:
    """One GPU and one TensorRT runtime; checks that a plan's engines were built for it.

    Raises:
        EngineError: TensorRT or a GPU is missing, or the engines were built for another one.
    """

    def __init__(self, plan: AudioPlan, index: int = 0) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise EngineError("tensorrt is not installed: serve from the container that built the engines") from error
        if not torch.cuda.is_available():
            raise EngineError("no CUDA device: serve with --profile cpu, or on the machine that built the engines")
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        for field, built, found in (
            ("tensorrt", plan.tensorrt, tensorrt.__version__),
            ("compute_capability", plan.compute_capability, capability),
        ):
            if built != found:
                raise EngineError(f"audio engines: {field} is {built!r} but {found!r} is here; build them again here")
        self.tensorrt = tensorrt
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)  # engines are loaded onto the current device
        self._own = torch.cuda.Stream(self.torch)
        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))

    def select(self, context: Any, profile: int) -> bool:
        """Set the profile of a context; False where it has none such."""
        return context.set_optimization_profile_async(profile, torch.cuda.current_stream(self.torch).cuda_stream)

    def execute(self, context: Any) -> bool:
        """Enqueue a context in the order of the current stream; False where TensorRT refuses.

        On the default stream TensorRT would make the host wait, so another one takes its place there.
        """
        current = torch.cuda.current_stream(self.torch)
        if current != torch.cuda.default_stream(self.torch):
            return context.execute_async_v3(current.cuda_stream)
        self._own.wait_stream(current)
        taken = context.execute_async_v3(self._own.cuda_stream)
        current.wait_stream(self._own)
        return taken


class Session:
    """One engine of a folder.

    Args:
        device: where it runs.
        path: the `.engine` file.
        plan: what it was built for.

    Raises:
        EngineError: the file is missing, not for this TensorRT, or does not have the plan's inputs.
    """

    def __init__(self, device: Device, path: Path, plan: EnginePlan) -> None:
        trt, self._device, self.plan, self._path = device.tensorrt, device, plan, path
        try:
            self._engine = device.runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise EngineError(f"{path}: cannot be read ({type(error).__name__}); build the audio engines") from error
        if self._engine is None:
            raise EngineError(f"{path}: TensorRT cannot load it; its log says why; build the audio engines again")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        if inputs != set(plan.inputs):
            raise EngineError(f"{path}: its inputs are {sorted(inputs)}, the plan says {sorted(plan.inputs)}; rebuild")
        (self._output,) = (name for name in names if name not in inputs)
        self._types = {name: self._dtype(name) for name in names}
        self._scratch = torch.empty(max(1, self._engine.device_memory_size_v2), dtype=torch.uint8, device=device.torch)
        self._plain: dict[int, Any] = {}
        self._kept: dict[tuple[tuple[str, int], ...], Program] = {}

    def __len__(self) -> int:
        """Geometries that CUDA graphs use."""
        return len(self._kept)

    def __call__(self, geometry: Geometry, inputs: Tensors) -> Tensor:
        """The engine's one output for inputs of exactly this geometry; valid until its next call of the geometry."""
        program = self.program(geometry)
        program.load(inputs)
        return program.run()

    def program(self, geometry: Geometry) -> Program:
        """Inputs, output and context of a geometry: those of the CUDA graphs that have it, else new ones.

        Raises:
            EngineError: the engine was not built for it.
            NoMemory: the GPU has none for another context.
        """
        key = tuple(sorted(geometry.items()))
        if key in self._kept:
            return self._kept[key]
        profile = self.plan.profile_of(geometry)
        kept = is_capturing()
        context = self._new_context(profile) if kept else self._plain_context(profile)
        program = Program(self._device, context, self._path)
        program.bind(self.plan.shapes(geometry), self._output, self._types)
        if kept:
            self._kept[key] = program
        return program

    def _plain_context(self, profile: int) -> Any:
        """The context of a profile for calls outside graphs; its shapes change from call to call."""
        if profile not in self._plain:
            self._plain[profile] = self._new_context(profile)
        return self._plain[profile]

    def _new_context(self, profile: int) -> Any:
        """A context on the shared scratch memory."""
        trt = self._device.tensorrt
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise NoMemory(f"{self._path.name}: the GPU has no memory for another execution context")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        if not self._device.select(context, profile):
            raise EngineError(f"{self._path}: has no profile {profile}; build the audio engines again")
        return context

    def _dtype(self, name: str) -> torch.dtype:
        trt = self._device.tensorrt
        return torch.from_numpy(np.empty(0, trt.nptype(self._engine.get_tensor_dtype(name)))).dtype


class Program:
    """Inputs and output at fixed addresses for one geometry. The engine reads inputs and writes the output only."""

    def __init__(self, device: Device, context: Any, path: Path) -> None:
        self._device, self._context, self._path = device, context, path
        self.inputs: dict[str, Tensor] = {}

    def bind(self, shapes: Mapping[str, tuple[int, ...]], output: str, types: Mapping[str, torch.dtype]) -> None:
        """Make the buffers. Raises EngineError where TensorRT does not take a shape."""
        context, device = self._context, self._device.torch
        for name, shape in shapes.items():
            self.inputs[name] = torch.zeros(shape, dtype=types[name], device=device)
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{self._path}: {name} cannot be {list(shape)}; build the audio engines again")
        self.output = torch.empty(tuple(context.get_tensor_shape(output)), dtype=types[output], device=device)
        for name, tensor in (*self.inputs.items(), (output, self.output)):
            context.set_tensor_address(name, tensor.data_ptr())

    def load(self, inputs: Tensors) -> None:
        """Copy inputs to where the engine reads them."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)

    def run(self) -> Tensor:
        """Enqueue the engine; its output."""
        if not self._device.execute(self._context):
            raise EngineError(f"{self._path}: TensorRT refused the call; its log says why")
        return self.output
