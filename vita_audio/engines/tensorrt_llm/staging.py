"""Moves the packed tensors of a step to the device in one copy, without waiting for it.

A step's arrays are written one after the other into a pinned buffer, copied to a persistent device buffer, and viewed
there under their types and shapes. The copy is ordered before the engine call that reads it and after the one before,
because both go to the same stream. Only the pinned side may be overwritten too early: it is a ring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio.engines.tensorrt_llm.tensors import TensorSpec, check_arrays

_ALIGNMENT = 256  # bytes; what device allocations have, and more than any kernel asks for


class Staging:
    """For the steps of one engine.

    Args:
        specs: the tensors of a step.
        largest: size of every dimension name, `tokens`, `streams` and `sampled` at their maximum.
        constants: the constant tensors at their maximum; they are moved once.
        device: where the engine runs.
        depth: pinned buffers; a step waits only when this many are still to be copied.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        largest: Mapping[str, int],
        constants: Mapping[str, NDArray],
        device: torch.device,
        depth: int = 3,
    ) -> None:
        self._specs, self._largest = specs, dict(largest)
        self._moving = [name for name, s in specs.items() if s.place == "device" and not s.constant]
        size = sum(_aligned(_bytes(specs[name], largest)) for name in self._moving)
        self._on_cuda = device.type == "cuda"
        self._pinned = [
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self._on_cuda) for _ in range(depth)
        ]
        self._copied = [torch.cuda.Event() for _ in range(depth)] if self._on_cuda else []
        self._buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self._constants = {
            name: torch.from_numpy(array).to(device if specs[name].place == "device" else "cpu")
            for name, array in constants.items()
        }
        self._turn = 0

    def put(self, arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
        """Tensors of one step, under the same names. They are valid until the next call.

        Raises:
            EngineError: the arrays are not those of the step (`tensors.check_arrays`).
        """
        of_step = {"tokens": "input_ids", "streams": "last_token_ids", "sampled": "sampled_rows"}
        sizes = {dimension: len(arrays[name]) for dimension, name in of_step.items()}
        check_arrays(arrays, self._specs, {**self._largest, **sizes})
        pinned = self._next_pinned()
        target, tensors, start = pinned.numpy(), dict[str, Tensor](), 0
        for name in self._moving:
            array = arrays[name]
            stop = start + array.nbytes
            target[start:stop].view(array.dtype).reshape(array.shape)[...] = array
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensors[name] = self._buffer[start:stop].view(dtype).view(array.shape)
            start = _aligned(stop)
        self._buffer[:start].copy_(pinned[:start], non_blocking=True)
        if self._on_cuda:
            self._copied[self._turn].record()
        for name, constant in self._constants.items():
            tensors[name] = constant[: len(arrays[name])]
        for name, spec in self._specs.items():
            if spec.place == "host" and not spec.constant:
                tensors[name] = torch.from_numpy(arrays[name])
        return tensors

    def _next_pinned(self) -> Tensor:
        self._turn = (self._turn + 1) % len(self._pinned)
        if self._on_cuda:
            self._copied[self._turn].synchronize()
        return self._pinned[self._turn]


def _bytes(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    return np.dtype(spec.dtype).itemsize * math.prod(sizes[d] if isinstance(d, str) else d for d in spec.shape)


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
