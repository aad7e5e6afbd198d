"""Products with weights, and what follows them: a bias, a residual, or the gate of a feed-forward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels import gate as gate_operation


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: bool = False,
    gated: Callable[[Tensor], Tensor] = gate_operation.reference,
) -> Tensor:
    """x [rows, K] times weight [N, K], by cuBLAS on a GPU.

    Args:
        bias: [N].
        residual: [rows, N], added; its memory becomes the result's, since a copy would be a launch of its own.
        gate: `silu(first half) * second half` of the product is returned: [rows, N / 2].
        gated: what does that.

    Returns:
        [rows, N].
    """
    if residual is not None:
        return residual.addmm_(x, weight.t())
    product = F.linear(x, weight, bias)
    return gated(product) if gate else product
