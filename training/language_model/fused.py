"""Decoder layers whose arithmetic around attention is compiled: the same weights and sums, fewer passes over memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.errors import TrainingError
from training.language_model.forward import TrainedLanguageModel, summed_loss
from vita_audio.models.language_model import Attend, DecoderLayer, rotate

_COMPILERS = ("c++", "g++", "clang++")


def fuse(model: TrainedLanguageModel) -> None:
    """Let all decoder layers of a model share two compiled functions, before and after attention; compile its loss.

    Attention itself stays outside: its groups of samples differ from pack to pack.

    Raises:
        TrainingError: a CPU without a C++ compiler.
    """
    asked = os.environ.get("CXX")
    if not any(map(shutil.which, [asked] if asked else _COMPILERS)):
        raise TrainingError(
            f"language_model.compile: no C++ compiler ({asked or ', '.join(_COMPILERS)}); install one or say false"
        )
    before, after = torch.compile(_before_attention, dynamic=True), torch.compile(_after_attention, dynamic=True)
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        layer.forward = _fused(layer, before, after)  # type: ignore[method-assign, assignment]
    model.summed_loss = torch.compile(summed_loss, dynamic=True)


def _fused(
    layer: DecoderLayer, before: Callable[..., tuple[Tensor, Tensor, Tensor]], after: Callable[..., Tensor]
) -> Callable[[Tensor, Tensor, Tensor, Attend], Tensor]:
    mix, mlp = layer.self_attn, layer.mlp
    eps, head_dim = layer.input_layernorm.eps, mix.head_dim

    def forward(x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = before(
            x, cos, sin, layer.input_layernorm.weight, eps, head_dim,
            mix.q_proj.weight, mix.q_proj.bias, mix.k_proj.weight, mix.k_proj.bias, mix.v_proj.weight, mix.v_proj.bias,
        )  # fmt: skip
        return after(
            x, attend(q, k, v), mix.o_proj.weight, layer.post_attention_layernorm.weight, eps,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight,
        )  # fmt: skip

    return forward


def _before_attention(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor,
    eps: float,
    head_dim: int,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [rows, hidden] -> rotated q, k and v, each [rows, heads, dim], as in `Attention` and `DecoderLayer`."""
    x = _normed(x, norm, eps)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (-1, head_dim))
        for weight, bias in ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    )
    return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v


def _after_attention(
    x: Tensor, attended: Tensor, o_weight: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """x [rows, hidden], attended [rows, heads, dim] -> the layer's output [rows, hidden]."""
    x = x + F.linear(attended.flatten(-2), o_weight)
    mixed = _normed(x, norm, eps)
    return x + F.linear(F.silu(F.linear(mixed, gate)) * F.linear(mixed, up), down)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
