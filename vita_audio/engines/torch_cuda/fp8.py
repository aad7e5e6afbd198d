"""Weight matrices in FP8 (E4M3): a byte for each number and a scale for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError

#: The largest number of float8_e4m3fn, which has no infinity.
FP8_MAX = 448.0


class Fp8Matrix(NamedTuple):
    """A matrix [rows, columns]; row r is `values[r] * scale[r]`."""

    values: Tensor  # float8_e4m3fn [rows, columns]
    scale: Tensor  # float32 [rows]


Matrix = Tensor | Fp8Matrix


def quantise(matrix: Tensor, name: str = "matrix") -> Fp8Matrix:
    """The nearest numbers; the largest of a row becomes FP8_MAX, a row of zeros stays one.

    Args:
        matrix: [rows, columns].
        name: for the error.

    Raises:
        EngineError: a number is infinite or none.
    """
    wide = matrix.float()
    largest = wide.abs().amax(dim=1)
    if not largest.isfinite().all():
        row = int((~largest.isfinite()).nonzero()[0])
        raise EngineError(f"{name}: row {row} holds NaN or infinity, which FP8 cannot; repair the checkpoint")
    scale = largest / FP8_MAX
    # Rows too small for a normal scale would divide by zero: their scale is 1 and they become zeros.
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    values = (wide / scale[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return Fp8Matrix(values, scale)


def dequantise(matrix: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """[rows, columns] in `dtype`."""
    return (matrix.values.float() * matrix.scale[:, None]).to(dtype)


def rows(matrix: Matrix) -> int:
    return len(matrix.values if isinstance(matrix, Fp8Matrix) else matrix)


def part(matrix: Matrix, first: int, stop: int | None = None) -> Matrix:
    """Some rows of a matrix."""
    if isinstance(matrix, Fp8Matrix):
        return Fp8Matrix(matrix.values[first:stop], matrix.scale[first:stop])
    return matrix[first:stop]
