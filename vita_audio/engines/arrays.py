"""Where the streaming decoder keeps its arrays and runs its functions of them: the host, or the engines' device.

Decoding is written once, over `xp`: NumPy, or PyTorch, whose functions have the same names. A function whose engines
run on a device is a program there: all its inputs go up in one copy, its work is a launch, its result comes down later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vita_audio.engines.interface import SolvingFlowEngine

#: A NumPy array or a tensor of the device.
Array = Any
#: Named arrays of the host. Those of two or more axes have a row for each stream; the others are the same for all.
Inputs = Mapping[str, NDArray[Any]]
#: Named arrays -> a result with a row for each stream, or None. Rows must not depend on each other, and with inputs
#: that are all zeros it must change nothing that a stream owns: rows that fill a batch up are such rows.
Function = Callable[[Mapping[str, Array]], Array | None]


class Reading(Protocol):
    """A result on its way to the host."""

    @property
    def ready(self) -> bool:
        """Whether `get` would not wait."""
        ...

    def get(self) -> NDArray[Any]:
        """[rows, ...] of the call; waits. Raises what the device has to report."""
        ...


class Program(Protocol):
    """A function bound to the device."""

    def __call__(self, inputs: Inputs) -> Reading: ...

    def prepare(self, inputs: Inputs) -> None:
        """Do what is done once for these shapes; `inputs` are zeros. Raises NoMemory."""
        ...


class Arrays(Protocol):
    """Arrays of one device."""

    @property
    def xp(self) -> Any:
        """The module with their functions: numpy or torch."""
        ...

    @property
    def rows_at_a_time(self) -> int:
        """Rows of 256 samples that an elementwise calculation takes at a time, so that they stay in the cache.

        0: all of them, since on a GPU each operation is a launch.
        """
        ...

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array: ...

    def cast(self, array: Array, dtype: str) -> Array: ...

    def phasor(self, angle: Array) -> Array:
        """exp(i angle), complex64, of float32 radians."""
        ...

    def program(self, function: Function) -> Program: ...


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that takes tensors, of the device of `arrays`, as well as NumPy arrays; it answers in kind."""

    arrays: Arrays


@runtime_checkable
class DeviceFlowEngine(SolvingFlowEngine, Protocol):
    """A flow that is a `DeviceEngine`.

    With tensors, `condition` takes a frame map for each window: tokens [B, N], frame_token [B, F]. It does not check
    their values.
    """

    arrays: Arrays
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Made:
    """A result that is there."""

    array: Any

    @property
    def ready(self) -> bool:
        return True

    def get(self) -> NDArray[Any]:
        return self.array


class HostProgram:
    """A function of NumPy arrays: called as it is."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, inputs: Inputs) -> Made:
        return Made(self._function(inputs))

    def prepare(self, inputs: Inputs) -> None:
        self._function(inputs)


class HostArrays:
    """NumPy."""

    xp = np
    rows_at_a_time = 16  # 32 kB of complex samples

    def zeros(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def cast(self, array: NDArray[Any], dtype: str) -> NDArray[Any]:
        return array.astype(dtype)

    def phasor(self, angle: NDArray[np.float32]) -> NDArray[np.complex64]:
        waves = np.empty(angle.shape, np.complex64)
        np.cos(angle, out=waves.real)
        np.sin(angle, out=waves.imag)
        return waves

    def program(self, function: Function) -> HostProgram:
        return HostProgram(function)
