"""Weight matrices in FP8 (E4M3): a byte for each number and a scale for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fp8Matrix(NamedTuple):
    """A matrix [rows, columns]; row r is `values[r] * scale[r]`."""

    values: Tensor  # float8_e4m3fn [rows, columns]
    scale: Tensor  # float32 [rows]


Matrix = Tensor | Fp8Matrix


def dequantise(matrix: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """[rows, columns] in `dtype`."""
    return (matrix.values.float() * matrix.scale[:, None]).to(dtype)
