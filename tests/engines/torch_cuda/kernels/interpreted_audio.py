"""The kernels of the audio networks against their references, on tensors of the CPU: run by test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels import group_norm, layer_norm, snake

#: Kernel and reference round once and up to four times.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}

types = st.sampled_from(list(TOLERANCE))
seeds = st.integers(0, 2**31)
few = settings(max_examples=12, deadline=None, derandomize=True)


def assert_close(made: Tensor, expected: Tensor) -> None:
    assert made.dtype == expected.dtype
    limit = TOLERANCE[made.dtype]
    torch.testing.assert_close(made.float(), expected.float(), rtol=2 * limit, atol=2 * limit)


@few
@given(st.integers(1, 9), st.sampled_from([1, 7, 32, 160, 257]), types, seeds, st.booleans())
def test_layer_norm(rows: int, channels: int, dtype: torch.dtype, seed: int, added: bool) -> None:
    torch.manual_seed(seed)
    x, made = (2 * torch.randn(2, rows, channels).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(channels).to(dtype) for _ in range(2))
    arguments = (x, weight, bias, 1e-5, made if added else None)
    for one, expected in zip(layer_norm.fused(*arguments), layer_norm.reference(*arguments), strict=True):
        assert_close(one, expected)


@few
@given(st.integers(1, 3), st.integers(1, 70), st.sampled_from([1, 3, 4, 32]), types, seeds)
def test_group_norm(batch: int, frames: int, group: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    groups = 4
    x = 3 * torch.randn(batch, frames, groups * group).to(dtype)
    bias, weight, offset, shift = (torch.randn(groups * group).to(dtype) for _ in range(4))
    if frames * group == 1:
        frames, x = 2, torch.cat((x, -x), 1)  # PyTorch refuses statistics of one number
    arguments = (x, bias, weight, offset, 1e-5, groups, shift)
    assert_close(group_norm.fused(*arguments), group_norm.reference(*arguments))


@pytest.mark.parametrize("most", [16, 64])
def test_windows_longer_than_a_block(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """And values where Mish is a straight line, zero, and in between."""
    monkeypatch.setattr(group_norm, "_MOST", most)
    torch.manual_seed(0)
    x = torch.randn(2, 51, 8) + 5
    bias, shift = torch.randn(8), torch.randn(8)
    arguments = (x, bias, torch.full((8,), 40.0), torch.zeros(8), 1e-5, 2, shift)
    made = group_norm.fused(*arguments)
    torch.testing.assert_close(made, group_norm.reference(*arguments), rtol=1e-5, atol=1e-4)
    assert made.max() > 60
    assert torch.isfinite(made).all()


@few
@given(st.integers(1, 40), st.sampled_from([1, 3, 32, 128]), seeds, st.booleans(), st.booleans())
def test_snake(frames: int, channels: int, seed: int, biased: bool, added: bool) -> None:
    torch.manual_seed(seed)
    x, residual = (3 * torch.randn(2, frames, channels) for _ in range(2))
    alpha, bias = torch.rand(channels) + 0.1, torch.randn(channels)
    arguments = (x, alpha, 1 / alpha, bias if biased else None, residual if added else None)
    (total, made), (expected_total, expected) = snake.fused(*arguments), snake.reference(*arguments)
    assert_close(made, expected)
    if added or not biased:
        assert_close(total, expected_total)


def test_bad_numbers_stay_in_their_window() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 20, 8)
    bias, weight, offset = torch.randn(8), torch.randn(8), torch.randn(8)
    alone = group_norm.fused(x, bias, weight, offset, 1e-5, 2, bias)
    x[1] = float("nan")
    made = group_norm.fused(x, bias, weight, offset, 1e-5, 2, bias)
    assert torch.isnan(made[1]).all()
    assert torch.equal(made[[0, 2]], alone[[0, 2]])
