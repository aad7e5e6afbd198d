"""A function of tensors as one CUDA graph for each shape of its inputs, captured when that shape first comes.

For functions of many small kernels: a capture takes about twice as long as launching them once, and every later call
of that shape is a single launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio.engines.torch_cuda.cuda_graphs import Capturer
from vita_audio.engines.torch_cuda.shapes import power_of_two

#: Graphs of one function that are kept; the least recently used makes room. A launch of a graph is some kilobytes, and
#: a decoder has a few dozen shapes while streams run and less than 150 with all their ends.
MAX_GRAPHS = 160

Arrays = Mapping[str, NDArray[np.float32] | NDArray[np.int64]]
Function = Callable[[Mapping[str, Tensor]], Tensor]


class ShapeGraph:
    """One shape: inputs at fixed addresses, and a launch."""

    def __init__(self, function: Function, arrays: Arrays, device: torch.device, capturer: Capturer | None) -> None:
        self.inputs = {
            name: torch.zeros(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=device)
            for name, array in arrays.items()
        }
        self._function, self._graph = function, None  # type: Function, torch.cuda.CUDAGraph | None
        self.output: Tensor | None = None
        if capturer is not None:
            self._graph, self.output = capturer.capture(lambda: function(self.inputs))

    def load(self, arrays: Arrays) -> None:
        """Copy inputs to the device; rows that pad a batch keep what they held, which no other row sees."""
        for name, array in arrays.items():
            target = self.inputs[name]
            rows = target[: len(array)] if array.ndim > 1 else target
            rows.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def launch(self) -> Tensor:
        """The function's result: valid until another graph of the same capturer runs."""
        if self._graph is None:
            self.output = self._function(self.inputs)
        else:
            self._graph.replay()
        assert self.output is not None
        return self.output


class ShapeGraphs:
    """All shapes of one function; not thread safe.

    Args:
        function: named inputs -> result; may write to its inputs. Arrays of two or more axes carry a batch in the first
            one, whose rows must not depend on each other.
        device: where it runs.
        capturer: makes the graphs; None runs the function as it is (a CPU).
    """

    def __init__(self, function: Function, device: torch.device, capturer: Capturer | None) -> None:
        self._function, self._device, self._capturer = function, device, capturer
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], ShapeGraph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def load(self, **arrays: NDArray[np.float32] | NDArray[np.int64]) -> ShapeGraph:
        """The graph of these arrays' shapes, with the arrays on the device.

        The batch is padded to a power of two, so that few shapes exist.
        """
        padded = {
            name: array if array.ndim == 1 else np.broadcast_to(array[:1], (power_of_two(len(array)), *array.shape[1:]))
            for name, array in arrays.items()
        }
        key = tuple(array.shape for array in padded.values())
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) == MAX_GRAPHS:
                self._graphs.popitem(last=False)
            graph = self._graphs[key] = ShapeGraph(self._function, padded, self._device, self._capturer)
        self._graphs.move_to_end(key)
        graph.load(arrays)
        return graph
