"""One function of fixed shape with its inputs: replayed as a CUDA graph, or called eagerly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Name -> (shape, neutral value) of each input.
Fields = dict[str, tuple[tuple[int, ...], int]]
#: Fields of the input buffer on the device -> what the program made, None when there is nothing to read.
Function = Callable[[Mapping[str, Tensor]], Tensor | None]

Made = TypeVar("Made")

_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def is_capturing() -> bool:
    """Whether this thread captures a function, or runs it once before: an engine keeps what the graph will use."""
    return _capturing.get()


class Capturer:
    """Captures functions on one stream, into one pool of memory: graphs that share it never run at the same time.

    One stream, because cuBLAS keeps a workspace (32 MiB on Hopper) for every stream that it has seen. Its kernels, also
    in the graphs, have the priority of the stream that is current where this is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=torch.cuda.current_stream(device).priority)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], Made]) -> tuple[torch.cuda.CUDAGraph, Made]:
        """The graph of `function`, and what it makes: valid after each replay until another graph of the pool runs."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        outside = _capturing.set(True)
        try:
            output = self._captured(function, graph)
        finally:
            _capturing.reset(outside)
            current.wait_stream(self._stream)  # also after a failure: what ran before it may still read its inputs
        return graph, output

    def _captured(self, function: Callable[[], Made], graph: torch.cuda.CUDAGraph) -> Made:
        with torch.cuda.stream(self._stream):
            function()  # kernels are compiled and workspaces allocated outside the capture
            # thread_local: other threads of the process may use the GPU meanwhile. Not `torch.cuda.graph`: it empties
            # the allocator's cache for each graph.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = function()
            except BaseException:
                with suppress(RuntimeError):  # what broke the capture says more than that it is broken
                    graph.capture_end()
                raise
            graph.capture_end()
        return output


class Program:
    """All inputs are integers in one buffer, so that a call is one copy to the device and one launch.

    Args:
        fields: name -> (shape, neutral value). With every field neutral the function must change nothing a stream owns:
            warming up and capturing run it so.
        function: reads the fields, works on tensors of fixed addresses.
        device: where the inputs go.
        capturer: makes it a CUDA graph; None calls the function anew each time.
    """

    def __init__(self, fields: Fields, function: Function, device: torch.device, capturer: Capturer | None) -> None:
        self._function = function
        neutral = [np.full(shape, value, np.int64).ravel() for shape, value in fields.values()]
        self._neutral = np.concatenate(neutral)
        on_gpu = device.type == "cuda"
        self._staging = torch.from_numpy(self._neutral.copy())
        if on_gpu:
            self._staging = self._staging.pin_memory()
        self._buffer = self._staging.to(device)
        self._copied = torch.cuda.Event() if on_gpu else None
        host = self._staging.numpy()
        self.inputs: dict[str, NDArray[np.int64]] = {}  # written by the caller between `reset` and `run`
        self._fields: dict[str, Tensor] = {}
        start = 0
        for name, (shape, _) in fields.items():
            stop = start + int(np.prod(shape))
            self.inputs[name] = host[start:stop].reshape(shape)
            self._fields[name] = self._buffer[start:stop].view(shape)
            start = stop
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None
        if capturer is not None:
            self._graph, self._output = capturer.capture(lambda: self._function(self._fields))

    def reset(self) -> None:
        """Make every input neutral; first waits until the last call's inputs have left the staging buffer."""
        if self._copied is not None:
            self._copied.synchronize()
        self._staging.numpy()[:] = self._neutral

    def run(self) -> Tensor | None:
        """Run on what `inputs` holds. The result stays valid until the next program runs; reading it waits."""
        self._buffer.copy_(self._staging, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self.launch()

    def launch(self) -> Tensor | None:
        """Run once more on the inputs that are on the device."""
        if self._graph is None:
            self._output = self._function(self._fields)
        else:
            self._graph.replay()
        return self._output
