"""The pointwise kernels against their references, on tensors of the CPU: run by test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels import enter, gate, norm, rotate
from vita_audio.engines.torch_cuda.network import rotary_tables

EPS = 1e-6
#: Kernel and reference round once and twice: a step of bfloat16 apart, and a little more where numbers cancel.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7}
CPU = torch.device("cpu")

some_rows = st.integers(1, 40)
some_sizes = st.sampled_from([1, 7, 33, 64, 160, 257])
types = st.sampled_from([torch.float32, torch.bfloat16])
seeds = st.integers(0, 2**31)
few = settings(max_examples=12, deadline=None, derandomize=True)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def assert_close(made: Tensor, expected: Tensor) -> None:
    assert made.dtype == expected.dtype
    limit = TOLERANCE[made.dtype]
    torch.testing.assert_close(made.float(), expected.float(), rtol=2 * limit, atol=limit)


def rows_of(rows: int, among: int) -> Tensor:
    """Different rows, the last of all among them: what no stream owns is there."""
    chosen = torch.randperm(among - 1)[: rows - 1]
    return torch.cat([chosen, torch.tensor([among - 1])])[torch.randperm(rows)]


@few
@given(some_rows, some_sizes, types, seeds)
def test_norm(rows: int, hidden: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = 3 * random(rows, hidden, dtype=dtype), random(hidden, dtype=dtype)
    assert_close(norm.fused(x, weight, EPS), norm.reference(x, weight, EPS))


@few
@given(some_rows, some_sizes, types, seeds, st.integers(1, 9), st.booleans())
def test_final_norm(rows: int, hidden: int, dtype: torch.dtype, seed: int, streams: int, stored: bool) -> None:
    torch.manual_seed(seed)
    x, weight, last = (
        random(rows, hidden, dtype=dtype),
        random(hidden, dtype=dtype),
        torch.randint(0, rows, (streams,)),
    )
    stores = [torch.full((rows + 5, hidden), 7.0, dtype=dtype) for _ in range(2)]
    at = rows_of(rows, rows + 5)
    made, expected = (
        one(x, weight, EPS, last, *((store, at) if stored else ()))
        for one, store in ((norm.final_fused, stores[0]), (norm.final_reference, stores[1]))
    )
    assert_close(made[0], expected[0])
    assert_close(made[1], expected[1])
    assert (made[0] is stores[0]) == stored


@few
@given(some_rows, some_sizes, types, seeds, st.integers(0, 9), st.booleans())
def test_enter(rows: int, hidden: int, dtype: torch.dtype, seed: int, shift: int, indexed: bool) -> None:
    torch.manual_seed(seed)
    ids, id_at = torch.randint(0, 11, (rows + shift,)), torch.randperm(rows)
    embedding, states = random(11, hidden, dtype=dtype), random(rows + 3, hidden, dtype=dtype)
    hidden_at = rows_of(rows, rows + 3) if indexed else None
    weights = random(hidden, dtype=dtype), random(hidden, dtype=dtype)
    arguments = (ids, id_at, shift, embedding, states if indexed else states[:rows], hidden_at, *weights, EPS)
    assert_close(enter.fused(*arguments), enter.reference(*arguments))


@few
@given(some_rows, st.sampled_from([(4, 2, 16), (7, 1, 24), (5, 1, 10), (1, 1, 2), (14, 2, 64)]), types, types, seeds)
def test_rotate(rows: int, sizes: tuple[int, int, int], dtype: torch.dtype, table_of: torch.dtype, seed: int) -> None:
    """Rows anywhere in the caches, first and last included; nothing else is written."""
    heads, kv_heads, dim = sizes
    torch.manual_seed(seed)
    context = 50
    width = (heads + 2 * kv_heads) * dim
    qkv, bias = random(rows, width, dtype=dtype), 5 * random(width, dtype=dtype)
    rotary, position = rotary_tables(context, dim, 1e4, CPU), torch.randint(0, context, (rows,))
    position[0], position[-1] = 0, context - 1
    caches = [torch.full((rows + 9, 2, kv_heads, dim), 7.0, dtype=dtype) for _ in range(2)]
    cache_row = rows_of(rows, rows + 9)
    made = rotate.fused(qkv, bias, rotary, position, caches[0], cache_row)
    assert_close(made, rotate.reference(qkv, bias, rotary, position, caches[1], cache_row))
    assert_close(caches[0], caches[1])
    assert int((caches[0] == 7.0).all(-1).all(-1).all(-1).sum()) == 9


@few
@given(some_rows, st.sampled_from([1, 5, 384, 1024, 1500]), types, seeds)
def test_gate(rows: int, size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    gate_up = 4 * random(rows, 2 * size, dtype=dtype)
    assert_close(gate.fused(gate_up), gate.reference(gate_up))


def test_padding_rows_share_a_row_that_nobody_reads() -> None:
    qkv, bias = torch.randn(3, 12), torch.randn(12)
    cache = torch.zeros(4, 2, 1, 4)
    position, cache_row = torch.tensor([2, 0, 0]), torch.tensor([1, 3, 3])
    made = rotate.fused(qkv, bias, rotary_tables(3, 4, 1e4, CPU), position, cache, cache_row)
    assert torch.isfinite(made).all()
    assert not cache[[0, 2]].any()
    assert cache[[1, 3]].any(-1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_leaves_the_others(bad: float) -> None:
    x, weight = torch.randn(3, 33), torch.ones(33)
    expected = norm.reference(x, weight, EPS)
    x[1] = bad
    assert_close(norm.fused(x, weight, EPS)[[0, 2]], expected[[0, 2]])
