"""A lost GPU is told from a call that failed."""

from __future__ import annotations

import sys

import pytest
import torch

from vita_audio.engines.gpu_fault import gpu_is_lost

FAULT = RuntimeError("CUDA error: an illegal memory access was encountered")


def synchronize(lost: bool) -> None:
    if lost:
        raise FAULT


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("error", [FAULT, RuntimeError("Triton Error [CUDA]: misaligned address"), IndexError("7")])
def test_it_is_lost_if_cuda_goes_on_failing(monkeypatch: pytest.MonkeyPatch, lost: bool, error: Exception) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronize(lost))
    assert gpu_is_lost(error) == (lost and "CUDA" in str(error))


def test_without_a_gpu_or_without_pytorch_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not torch.cuda.is_initialized()
    assert not gpu_is_lost(FAULT)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not gpu_is_lost(FAULT)
