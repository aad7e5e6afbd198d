"""One function of fixed shape with its inputs: replayed as a CUDA graph, or called eagerly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Name -> (shape, neutral value) of each input.
Fields = dict[str, tuple[tuple[int, ...], int]]
#: Fields of the input buffer on the device -> what the program made, None when there is nothing to read.
Function = Callable[[Mapping[str, Tensor]], Tensor | None]


class Program:
    """All inputs are integers in one buffer, so that a call is one copy to the device and one launch.

    Args:
        fields: name -> (shape, neutral value). With every field neutral the function must change nothing a stream owns:
            warming up and capturing run it so.
        function: reads the fields, works on tensors of fixed addresses.
        device: a CUDA device captures the function, unless `capture` is off; any other runs it as it is.
        pool: `torch.cuda.graph_pool_handle()`, shared by the graphs of an engine, which never run at the same time.
    """

    def __init__(
        self,
        fields: Fields,
        function: Function,
        device: torch.device,
        capture: bool,
        pool: Any = None,
    ) -> None:
        self._function, self._graph = function, None  # type: Function, torch.cuda.CUDAGraph | None
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
        self._output: Tensor | None = None
        if on_gpu and capture:
            self._capture(device, pool)

    def _capture(self, device: torch.device, pool: Any) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries pick kernels and allocate workspaces outside the capture
                self._function(self._fields)
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = self._function(self._fields)

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
        if self._graph is None:
            self._output = self._function(self._fields)
        else:
            self._graph.replay()
        return self._output
