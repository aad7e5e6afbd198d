"""What an engine takes of the GPU, what fits it, and what is said when its memory ends while programs are captured."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from language_models import random_weights
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_room import room_bytes
from vita_audio.engines.torch_cuda import engine as engine_module
from vita_audio.engines.torch_cuda.cuda_graphs import Program
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.memory import (
    GIB,
    capture_error,
    check_memory,
    is_out_of_memory,
    programs_bytes,
    slot_bytes,
    slots_that_fit,
)
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits
from vita_audio.engines.torch_cuda.weights import load_weights

SEVEN_B = LanguageModelConfig(168072, 3584, 18944, 28 + 10, 28, 4, 10, 32768)
SMALL = LanguageModelConfig(300, 64, 96, 3 + 2, 4, 2, 2, 512)


def seven_b(slots: int = 64) -> int:
    return programs_bytes(SEVEN_B, Limits(slots, 10, 4096), 256, 2)


def test_memory_is_counted_and_refused_with_what_fits() -> None:
    each = slot_bytes(SEVEN_B, 4096, 2)
    # 38 layers x (K and V) x 4 heads x 128, H0 of 3584, two bytes each, and one byte for each id of the vocabulary.
    assert each == 4096 * (38 * 2 * 4 * 128 + 3584) * 2 + 168072
    check_memory(64, 4096, each, seven_b(), 40 * GIB)
    refused = r"200 x 4096 tokens need 6\d\.\d GiB, and \d\.\d GiB for their programs, of 40\.0 GiB free .*: 1\d\d fit"
    with pytest.raises(EngineError, match=refused):
        check_memory(200, 4096, each, seven_b(), 40 * GIB)
    with pytest.raises(EngineError, match=": 0 fit"):
        check_memory(1, 4096, each, seven_b(), GIB // 4)


def test_programs_of_a_7b_are_estimated_from_above() -> None:
    """An H100 took 0.80 GiB for 191 programs of 64 slots; the estimate is a little above, and grows with the slots."""
    assert 0.8 < seven_b() / GIB < 1.6
    assert seven_b(1) < seven_b(8) < seven_b(64) < seven_b(128)
    without = replace(SEVEN_B, num_hidden_layers=28, num_nextn_predict_layers=0)
    assert programs_bytes(without, Limits(64, 0, 4096), 256, 2) < seven_b()


@given(free=st.integers(0, 1 << 37), programs=st.integers(0, 1 << 33), slots=st.integers(1, 512))
def test_what_fits_fits_and_one_more_does_not(free: int, programs: int, slots: int) -> None:
    each = slot_bytes(SEVEN_B, 4096, 2)
    fit = slots_that_fit(free, each, programs)
    assert fit == 0 or fit * each + programs <= free
    if slots <= fit:
        check_memory(slots, 4096, each, programs, free)
    else:
        with pytest.raises(EngineError, match=f"{fit} fit"):
            check_memory(slots, 4096, each, programs, free)
    said = str(capture_error(slots, 4096, each, programs, free, 3, 215))
    assert "\n" not in said
    assert 0 <= int(said.split("about ")[1].split()[0]) < slots


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["allocator", "driver", "cuBLAS", "Triton"],
)
def test_memory_that_ends_while_capturing_is_one_line_with_the_slots_that_fit(error: RuntimeError) -> None:
    engine = small_engine()
    with failing(error), pytest.raises(EngineError) as raised:
        engine.prepare(16)
    said = str(raised.value)
    assert "the GPU's memory ended at program 4 of" in said
    assert "beside 4 x 256 tokens" in said
    assert "about 0 fit; take fewer slots" in said  # a CPU has no memory of a GPU
    assert "\n" not in said


def test_slots_that_fit_after_a_failed_capture() -> None:
    """1 GiB beside 64 slots of a 7B was too little: twice what was estimated is left for programs, and a tenth."""
    each = slot_bytes(SEVEN_B, 4096, 2)
    said = str(capture_error(64, 4096, each, seven_b(), GIB, 3, 215))
    assert f"about {int((GIB + 64 * each - 2 * seven_b()) * 0.9) // each} fit" in said


def test_another_failure_is_not_taken_for_memory() -> None:
    with failing(RuntimeError("CUDA error: an illegal memory access")), pytest.raises(RuntimeError, match="illegal"):
        small_engine().prepare(16)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_each_library_says_in_its_way_that_memory_has_ended(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))


def test_slots_leave_the_room_of_all_else_that_the_server_loads() -> None:
    """A GPU of 80 GiB, all of it free yet: 40 GiB are for networks and buffers of every process."""
    each, programs = slot_bytes(SEVEN_B, 4096, 2), seven_b(150)
    head = torch.zeros(SEVEN_B.vocab_size, 1)
    device = SimpleNamespace(type="cuda")
    weights: Any = SimpleNamespace(mctp_head=head, embedding=SimpleNamespace(device=device, element_size=lambda: 2))
    with mock.patch("torch.cuda.mem_get_info", return_value=(79 * GIB, 80 * GIB)):
        Settings(150, 4096).check(SEVEN_B, weights)
        with pytest.raises(EngineError, match=rf"of 40\.0 GiB .*: {slots_that_fit(40 * GIB, each, programs)} fit"):
            Settings(150, 4096, bytes_beside=40 * GIB).check(SEVEN_B, weights)


@given(free=st.integers(0, 1 << 37), used=st.integers(0, 1 << 37), beside=st.integers(0, 1 << 38))
def test_room_is_never_more_than_either_bound(free: int, used: int, beside: int) -> None:
    room = room_bytes(free, free + used, beside)
    assert room == 0 or (room <= free and room + beside <= free + used)
    assert room in (0, free, free + used - beside)


def small_engine() -> TorchCudaLanguageModel:
    weights = load_weights(SMALL, random_weights(SMALL), torch.device("cpu"), torch.float32)
    return TorchCudaLanguageModel(SMALL, weights, Settings(4, 256))


def failing(error: RuntimeError, after: int = 3) -> AbstractContextManager[object]:
    """After so many programs of an engine the GPU has no room."""
    made: list[object] = []

    def program(*arguments: object) -> Program:
        if len(made) == after:
            raise error
        made.append(arguments)
        return Program(*arguments)  # type: ignore[arg-type]

    return mock.patch.multiple(engine_module, Program=program)
