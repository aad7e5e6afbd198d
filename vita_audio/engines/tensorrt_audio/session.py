"""Runs one TensorRT audio engine: a CUDA graph for each chunk geometry, plain calls for others.

**Not run on a GPU yet.** Written for TensorRT 10.14 (docs/tensorrt_llm.md 1.2). Every captured geometry has an
execution context of its own, as TensorRT asks for; all contexts of an engine share one scratch memory, since they never
run at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_audio.plan import BATCH, AudioPlan, EnginePlan, Geometry, bucket_of

Arrays = Mapping[str, NDArray[Any]]


class Device:
    """One GPU, one stream, one TensorRT runtime; checks that a plan's engines were built for it.

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
        self.stream = torch.cuda.Stream(self.torch)
        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))


class Session:
    """One engine of a folder.

    Args:
        device: where it runs.
        path: the `.engine` file.
        plan: what it was built for.
        max_batch: windows of one call.

    Raises:
        EngineError: the file is missing, not for this TensorRT, or does not have the plan's inputs.
    """

    def __init__(self, device: Device, path: Path, plan: EnginePlan, max_batch: int) -> None:
        trt, self._device, self.plan, self._path = device.tensorrt, device, plan, path
        self._max_batch = max_batch
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
        self._outputs = [name for name in names if name not in inputs]
        self._scratch = torch.empty(max(1, self._engine.device_memory_size_v2), dtype=torch.uint8, device=device.torch)
        self._plain: dict[int, Any] = {}
        with torch.cuda.stream(device.stream):
            self._captured = {_key(sizes): _Program(self, sizes, capture=True) for sizes in plan.captured(max_batch)}
        device.stream.synchronize()

    def program(self, geometry: Geometry) -> _Program:
        """The program that takes a geometry: captured, and maybe for a larger batch, or made for this call."""
        batch = geometry[BATCH]
        if batch <= self._max_batch:
            padded = {**geometry, BATCH: bucket_of(batch, self._max_batch)}
            captured = self._captured.get(_key(padded))
            if captured is not None:
                return captured
        return _Program(self, geometry, capture=False)

    def run(self, geometry: Geometry, arrays: Arrays) -> NDArray[Any]:
        """One call with inputs of exactly this geometry; the engine's one output, rows beyond the batch left out."""
        with torch.cuda.stream(self._device.stream):
            program = self.program(geometry)
            program.load(arrays)
            program.enqueue()
            return program.read(geometry[BATCH])

    @property
    def stream(self) -> torch.cuda.Stream:
        return self._device.stream

    def _plain_context(self, profile: int) -> Any:
        """The context of a profile for calls that are not captured; its shapes change from call to call."""
        if profile not in self._plain:
            self._plain[profile] = self._new_context(profile)
        return self._plain[profile]

    def _new_context(self, profile: int) -> Any:
        """A context on the shared scratch memory."""
        trt = self._device.tensorrt
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(f"{self._path}: no memory for another execution context; lower --max-batch and rebuild")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        stream = torch.cuda.current_stream(self._device.torch).cuda_stream
        if not context.set_optimization_profile_async(profile, stream):
            raise EngineError(f"{self._path}: has no profile {profile}; build the audio engines again")
        return context

    def _dtype(self, name: str) -> torch.dtype:
        trt = self._device.tensorrt
        return torch.from_numpy(np.empty(0, trt.nptype(self._engine.get_tensor_dtype(name)))).dtype


class _Program:
    """Inputs and output at fixed addresses for one geometry; one launch each call when captured."""

    def __init__(self, session: Session, geometry: Geometry, capture: bool) -> None:
        plan, device = session.plan, session._device.torch
        profile = plan.profile_of(geometry)
        context = self._context = session._new_context(profile) if capture else session._plain_context(profile)
        self._path, self._graph = session._path, None  # type: Path, torch.cuda.CUDAGraph | None
        self.inputs = {
            name: torch.zeros(shape, dtype=session._dtype(name), device=device)
            for name, shape in plan.shapes(geometry).items()
        }
        for name, tensor in self.inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"{self._path}: {name} cannot be {list(tensor.shape)}; build the audio engines again")
        (output,) = session._outputs
        self.output = torch.empty(tuple(context.get_tensor_shape(output)), dtype=session._dtype(output), device=device)
        for name, tensor in (*self.inputs.items(), (output, self.output)):
            context.set_tensor_address(name, tensor.data_ptr())
        if capture:
            for _ in range(2):  # TensorRT sets itself up for new shapes in the first call
                self.enqueue()
            torch.cuda.current_stream(device).synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device), capture_error_mode="thread_local"):
                self.enqueue()
            self._graph = graph

    def load(self, arrays: Arrays) -> None:
        """Copy inputs to the device; the rows that pad a batch keep what they held, which no other row sees."""
        for name, array in arrays.items():
            self.inputs[name][: len(array)].copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def enqueue(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"{self._path}: TensorRT refused the call; its log says why")

    def read(self, rows: int, tensor: Tensor | None = None) -> NDArray[Any]:
        """The first rows of the output, or of a tensor of the same batch, on the host; waits for them."""
        return (self.output if tensor is None else tensor)[:rows].cpu().numpy()


def _key(geometry: Geometry) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(geometry.items()))
