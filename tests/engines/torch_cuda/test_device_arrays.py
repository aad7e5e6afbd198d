"""Programs of the decoder's functions: prepared shapes, padded batches, rows one by one, inputs in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from vita_audio.engines.preparing import NoMemory, prepare_batches
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays, DeviceProgram

ARRAYS = DeviceArrays(torch.device("cpu"))


def inputs(rows: int, width: int = 3) -> dict[str, np.ndarray]:
    """Every type and alignment that the decoder uses."""
    return {
        "x": np.arange(rows * width, dtype=np.float32).reshape(rows, width),
        "flag": np.ones((rows, 1), bool),
        "place": np.arange(rows, dtype=np.int64)[:, None],
        "tone": np.full((rows, 2), 1 + 2j, np.complex64),
        "shared": np.array([10, 20], np.int64),
    }


class Noting:
    """Sums its inputs; keeps the batches it was called with and what was in the last row."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.last: list[float] = []

    def __call__(self, given: Mapping[str, Tensor]) -> Tensor:
        self.batches.append(len(given["x"]))
        self.last.append(float(given["x"][-1].sum()))
        flags = given["flag"].float() + given["place"] + given["tone"].imag.sum(1, keepdim=True)
        return given["x"] + flags + given["shared"].sum()


def zeros(rows: int, width: int = 3) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(array) for name, array in inputs(rows, width).items()}


def expected(rows: int, width: int = 3) -> np.ndarray:
    return inputs(rows, width)["x"] + np.arange(rows)[:, None] + 1 + 4 + 30


def test_a_shape_that_is_not_prepared_runs_as_it_is() -> None:
    function = Noting()
    program = ARRAYS.program(function)
    reading = program(inputs(3))
    assert reading.ready
    np.testing.assert_array_equal(reading.get(), expected(3))
    assert function.batches == [3]
    assert len(program) == 0, "nothing is captured while streams run"


def test_a_batch_is_padded_with_zeros_to_one_that_is_prepared() -> None:
    function = Noting()
    program = ARRAYS.program(function)
    program.prepare(zeros(4))
    program.prepare(zeros(4))
    assert len(program) == 1
    np.testing.assert_array_equal(program(inputs(4)).get(), expected(4))
    np.testing.assert_array_equal(program(inputs(3)).get(), expected(3))
    assert function.batches == [4, 4]
    assert function.last == [inputs(4)["x"][-1].sum(), 0.0]


def test_what_is_prepared_for_one_stream_runs_stream_by_stream() -> None:
    function = Noting()
    program = ARRAYS.program(function)
    program.prepare(zeros(1))
    reading = program(inputs(3))
    assert reading.ready
    np.testing.assert_array_equal(reading.get(), expected(3))
    assert function.batches == [1, 1, 1]
    program(inputs(2, width=5)).get()
    assert function.batches[3:] == [2]


def test_a_batch_larger_than_what_is_prepared_runs_in_parts() -> None:
    function = Noting()
    program = ARRAYS.program(function)
    for rows in (4, 1):
        program.prepare(zeros(rows))
    np.testing.assert_array_equal(program(inputs(7)).get(), expected(7))
    np.testing.assert_array_equal(program(inputs(5)).get(), expected(5))
    np.testing.assert_array_equal(program(inputs(2)).get(), expected(2))
    assert function.batches == [4, 4, 4, 1, 1, 1]


class FullGpu:
    """Captures functions of at most so many rows."""

    def __init__(self, rows: int, error: RuntimeError) -> None:
        self._rows, self._error = rows, error

    def capture(self, function: Callable[[], Tensor]) -> tuple[object, Tensor]:
        made = function()
        if len(made) > self._rows:
            raise self._error
        return SimpleNamespace(replay=function), made


def on_gpu_of(rows: int, error: RuntimeError) -> tuple[DeviceProgram, Noting]:
    function = Noting()
    return DeviceProgram(function, torch.device("cpu"), FullGpu(rows, error)), function  # type: ignore[arg-type]


OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def test_memory_that_ends_while_capturing_leaves_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    program, function = on_gpu_of(2, OUT_OF_MEMORY)
    prepare_batches("audio decoder", 5, lambda batch: program.prepare(zeros(batch)))
    assert len(program) == 2
    assert [record.getMessage().split(": ", 3)[2] for record in caplog.records] == [
        "batches of 8 run as smaller ones, slower; give the language model fewer slots (--slots) or a smaller context "
        "(--context-tokens of the build)",
        "batches of 4 run as smaller ones, slower; give the language model fewer slots (--slots) or a smaller context "
        "(--context-tokens of the build)",
    ]
    function.batches.clear()
    assert program(inputs(5)).get().shape == (5, 3)
    assert function.batches == [2, 2, 1]


def test_a_gpu_without_memory_for_one_is_one_clear_error() -> None:
    program, _ = on_gpu_of(0, OUT_OF_MEMORY)
    with pytest.raises(NoMemory) as raised:
        prepare_batches("speech tokenizer", 1, lambda batch: program.prepare(zeros(batch)))
    assert str(raised.value) == (
        "speech tokenizer: the GPU's memory ended while a program for batches of 1 was captured; give the language "
        "model fewer slots (--slots) or a smaller context (--context-tokens of the build)"
    )
    with pytest.raises(RuntimeError, match="illegal memory access"):
        on_gpu_of(0, RuntimeError("CUDA error: an illegal memory access"))[0].prepare(zeros(1))


def test_a_result_stays_when_the_next_call_runs() -> None:
    program = ARRAYS.program(Noting())
    program.prepare(zeros(2))
    first = program(inputs(2))
    program(zeros(2))
    np.testing.assert_array_equal(first.get(), expected(2))


def test_a_function_without_a_result_is_run() -> None:
    ran = []
    program = DeviceProgram(lambda given: ran.append(len(given["x"])), torch.device("cpu"), None)  # type: ignore[arg-type]
    assert program(inputs(2)).ready
    assert ran == [2]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_arrays_are_of_the_named_type(dtype: str) -> None:
    made = ARRAYS.zeros((2, 3), dtype)
    assert (made.shape, str(made.dtype)) == ((2, 3), f"torch.{dtype}")
    assert ARRAYS.cast(torch.ones(2), dtype).dtype == made.dtype


def test_inputs_wait_in_the_memory_of_the_host_whatever_device_is_the_default() -> None:
    """A benchmark draws weights on the GPU by default; only memory of the host can be pinned."""
    with torch.device("meta"):
        program = ARRAYS.program(Noting())
        program.prepare(zeros(2))
        made = program(inputs(2))
    np.testing.assert_array_equal(made.get(), expected(2))
