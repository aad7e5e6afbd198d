"""The kernel of matrix products against float64, on tensors of the CPU: run by test_interpreted.py.

Rows are float32: the interpreter multiplies matrices of bfloat16 by their bits. A residual is bfloat16, and so then is
the result.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix
from vita_audio.engines.torch_cuda.kernels import linear
from vita_audio.engines.torch_cuda.kernels.linear import Launches
from vita_audio.engines.torch_cuda.kernels.linear_tiling import FEW_ROWS, Product, Tiling, few_rows

#: Of a number: a step of bfloat16, which the interpreter cuts off to, and what sums of float32 are off by.
STEP = {torch.bfloat16: 2.0**-7, torch.float32: 4e-5}
CPU = torch.device("cpu")
HOPPER, AMPERE = 90, 80

epilogues = st.sampled_from(["plain", "bias", "residual", "gate", "bias and gate", "bias and residual"])
few = settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])


def weight_of(n: int, k: int, fp8: bool) -> Matrix:
    if not fp8:
        return torch.randn(n, k).bfloat16()
    values = torch.randn(n, k).to(torch.float8_e4m3fn)
    values[0, : min(k, 4)] = torch.tensor([448.0, -448.0, 2.0**-9, -(2.0**-7)])[:k].to(torch.float8_e4m3fn)
    return Fp8Matrix(values, torch.rand(n) + 0.5)


def exact(x: Tensor, weight: Matrix, bias: Tensor | None, residual: Tensor | None, gate: bool) -> Tensor:
    full = weight.values.double() * weight.scale.double()[:, None] if isinstance(weight, Fp8Matrix) else weight.double()
    product = F.linear(x.double(), full, None if bias is None else bias.double())
    if gate:
        first, second = product.chunk(2, dim=-1)
        return F.silu(first) * second
    return product if residual is None else product + residual.double()


def assert_close(made: Tensor, expected: Tensor) -> None:
    size = float(expected.abs().mean())
    torch.testing.assert_close(made.double(), expected, rtol=STEP[made.dtype], atol=1e-4 * size)


def arguments(
    rows: int, n: int, k: int, fp8: bool, epilogue: str
) -> tuple[Tensor, Matrix, Tensor | None, Tensor | None, bool]:
    gate = "gate" in epilogue
    n = 2 * n if gate else n
    return (
        torch.randn(rows, k),
        weight_of(n, k, fp8),
        torch.randn(n).bfloat16() if "bias" in epilogue else None,
        torch.randn(rows, n).bfloat16() if "residual" in epilogue else None,
        gate,
    )


@few
@given(
    st.integers(1, 17), st.integers(1, 70), st.sampled_from([1, 7, 32, 64, 100, 129]), st.booleans(), epilogues,
    st.integers(1, 5), st.sampled_from([HOPPER, AMPERE]), st.integers(0, 2**31),
)  # fmt: skip
def test_linear(rows: int, n: int, k: int, fp8: bool, epilogue: str, split: int, capability: int, seed: int) -> None:
    torch.manual_seed(seed)
    given_ = arguments(rows, n, k, fp8, epilogue)
    steps = -(-k // 32)
    parts = -(-steps // -(-steps // split))
    launches = Launches.on(CPU, 4, capability)
    expected = exact(*given_)
    made = linear.launch(*given_, launches, Tiling(16, 16, 32, 1, 1, parts))
    assert_close(made, expected)
    assert made is given_[3] or given_[3] is None
    assert not launches.arrived.any()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_every_tiling(fp8: bool, gate: bool) -> None:
    torch.manual_seed(1)
    product = Product(264, 1032, fp8, gate)
    x, weight = torch.randn(16, product.k), weight_of(product.n, product.k, fp8)
    expected = exact(x, weight, None, None, gate)
    launches = Launches.on(CPU, 4, HOPPER)
    for tiling in few_rows(product, launches.processors):
        assert_close(linear.launch(x, weight, None, None, gate, launches, tiling), expected)


@pytest.mark.parametrize("rows", [17, 33, 150])
def test_many_rows_of_fp8(rows: int) -> None:
    torch.manual_seed(2)
    launches = Launches.on(CPU, 8, HOPPER)
    for gate in (False, True):
        given_ = arguments(rows, 90, 200, True, "gate" if gate else "residual")
        expected = exact(*given_)
        tiling = launches.tiling(Product(180 if gate else 90, 200, True, gate, not gate), rows)
        assert tiling is not None
        assert_close(linear.launch(*given_, launches, tiling), expected)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_row_is_the_same_in_any_company(fp8: bool) -> None:
    """Bit by bit: alone, beside others, at another place, and beside rows that are not numbers."""
    torch.manual_seed(3)
    x, weight = torch.randn(FEW_ROWS, 300), weight_of(80, 300, fp8)
    launches = Launches.on(CPU, 4, HOPPER)
    product = Product(80, 300, fp8)

    def made(x: Tensor) -> Tensor:
        tiling = launches.tiling(product, len(x))
        assert tiling is not None
        return linear.launch(x, weight, None, None, False, launches, tiling)

    together = made(x)
    for row in range(FEW_ROWS):
        assert torch.equal(made(x[row : row + 1])[0], together[row])
    assert torch.equal(made(x.flip(0)[:9].contiguous()), together.flip(0)[:9])
    x[3] = float("nan")
    others = [row for row in range(FEW_ROWS) if row != 3]
    assert torch.equal(made(x)[others], together[others])
