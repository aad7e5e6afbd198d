"""Arrays and functions of the streaming decoder on a CUDA device: a function is one CUDA graph for each prepared shape.

The set of graphs is closed: a capture takes as long as many decodes, and all streams would wait for it. So only
`prepare` captures; a batch of a shape that is prepared for fewer streams runs in parts of so many, and any other shape
kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio.engines.arrays import Array, Function, Inputs, Made, Reading
from vita_audio.engines.preparing import NoMemory
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer
from vita_audio.engines.torch_cuda.memory import is_out_of_memory
from vita_audio.engines.torch_cuda.shapes import power_of_two

_ALIGNMENT = 16  # bytes; of the fields of the input buffer

_Key = tuple[tuple[int, ...], ...]


def on_device(method: Callable[..., Tensor]) -> Callable[..., Any]:
    """A method of tensors that also takes NumPy arrays, and then answers with one; its object has a `_device`."""

    @wraps(method)
    @torch.inference_mode()
    def call(self: Any, first: Array, *rest: Any) -> Any:
        if not isinstance(first, np.ndarray):
            return method(self, first, *rest)
        given = (
            torch.from_numpy(np.ascontiguousarray(value)).to(self._device) if isinstance(value, np.ndarray) else value
            for value in (first, *rest)
        )
        return method(self, *given).cpu().numpy()

    return call


class DeviceArrays:
    """PyTorch on one device; on a CPU everything runs as it does on a GPU, but for the captures."""

    xp = torch
    rows_at_a_time = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._capturer = Capturer(device) if device.type == "cuda" else None

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self._device)

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        return array.to(getattr(torch, dtype))

    def phasor(self, angle: Tensor) -> Tensor:
        return torch.complex(angle.cos(), angle.sin())

    def program(self, function: Function) -> DeviceProgram:
        return DeviceProgram(function, self._device, self._capturer)


class DeviceProgram:
    """A function of tensors and the graphs of its prepared shapes; not thread safe.

    Args:
        function: named tensors -> a tensor or None.
        device: where it runs.
        capturer: makes the graphs; None runs the function as it is (a CPU).
    """

    def __init__(self, function: Function, device: torch.device, capturer: Capturer | None) -> None:
        self._function, self._device, self._capturer = function, device, capturer
        self._prepared: dict[_Key, FixedShape] = {}

    def __len__(self) -> int:
        return len(self._prepared)

    def prepare(self, inputs: Inputs) -> None:
        rows = _rows(inputs)
        key = _key(inputs, rows)
        if key in self._prepared:
            return
        try:
            self._prepared[key] = FixedShape(self._function, inputs, self._device, self._capturer)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Out here, where the error is gone, which has held what was allocated: the next smaller batch needs it.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise NoMemory(f"the GPU's memory ended while a program for batches of {rows} was captured")

    def __call__(self, inputs: Inputs) -> Reading:
        """Start the function; a batch is padded to a power of two where that is prepared."""
        rows = _rows(inputs)
        batch = power_of_two(rows)
        while batch and _key(inputs, batch) not in self._prepared:
            batch //= 2
        if batch >= rows:
            return self._prepared[_key(inputs, batch)].run(inputs, rows)
        if batch:
            return Joined([self(_part(inputs, first, first + batch)) for first in range(0, rows, batch)])
        return FixedShape(self._function, inputs, self._device, capturer=None).run(inputs, rows)


class FixedShape:
    """The function for one shape: inputs at fixed addresses in one buffer, so a call is one copy and one launch."""

    def __init__(self, function: Function, inputs: Inputs, device: torch.device, capturer: Capturer | None) -> None:
        starts, size = [], 0
        for array in inputs.values():
            starts.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        on_gpu = device.type == "cuda"
        self._staging = torch.zeros(size, dtype=torch.uint8, device="cpu", pin_memory=on_gpu)
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if on_gpu else None
        host = self._staging.numpy()
        self._host: dict[str, NDArray[Any]] = {}
        fields: dict[str, Tensor] = {}
        for (name, array), start in zip(inputs.items(), starts, strict=True):
            part = slice(start, start + array.nbytes)
            self._host[name] = host[part].view(array.dtype).reshape(array.shape)
            fields[name] = self._buffer[part].view(_torch_type(array)).view(array.shape)
        self._function, self._fields = function, fields
        self._output: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if capturer is not None:
            with torch.inference_mode():
                self._graph, self._output = capturer.capture(lambda: function(fields))

    @torch.inference_mode()
    def run(self, inputs: Inputs, rows: int) -> Reading:
        """Start it on these inputs; rows that fill up the batch are zeros."""
        if self._copied is not None:
            self._copied.synchronize()  # the last call's inputs have left the staging buffer
        for name, array in inputs.items():
            target = self._host[name]
            if array.ndim > 1:
                target[:rows], target[rows:] = array, 0
            else:
                target[:] = array
        self._buffer.copy_(self._staging, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        if self._graph is None:
            self._output = self._function(self._fields)
        else:
            self._graph.replay()
        return Made(None) if self._output is None else Arriving(self._output[:rows])


class Arriving:
    """A result on its way to pinned memory of the host: another call may overwrite it on the device meanwhile."""

    def __init__(self, result: Tensor) -> None:
        self._host = result.to("cpu", non_blocking=True, copy=True)
        self._arrived = torch.cuda.Event() if result.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    @property
    def ready(self) -> bool:
        return self._arrived is None or self._arrived.query()

    def get(self) -> NDArray[Any]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


@dataclass(frozen=True, slots=True)
class Joined:
    """Results of calls for some of the rows each."""

    readings: Sequence[Reading]

    @property
    def ready(self) -> bool:
        return all(reading.ready for reading in self.readings)

    def get(self) -> NDArray[Any]:
        return np.concatenate([reading.get() for reading in self.readings])


def _rows(inputs: Inputs) -> int:
    return next(len(array) for array in inputs.values() if array.ndim > 1)


def _part(inputs: Inputs, first: int, stop: int) -> Inputs:
    """Some of the rows."""
    return {name: array[first:stop] if array.ndim > 1 else array for name, array in inputs.items()}


def _key(inputs: Inputs, rows: int) -> _Key:
    return tuple((rows, *array.shape[1:]) if array.ndim > 1 else array.shape for array in inputs.values())


def _torch_type(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
