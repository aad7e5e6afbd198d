"""Number formats of linear layers: as they are, FP8, and 4-bit weights with AWQ (docs/tensorrt_llm.md 5.2).

Scales are named as in TensorRT-LLM checkpoints. A stored value times weights_scaling_factor is the weight. FP8 inputs
are divided by activation_scaling_factor; AWQ inputs are multiplied, and weights divided, by prequant_scaling_factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from build_engines.tensorrt_llm.layout import Split
from build_engines.tensorrt_llm.split import TensorParallel
from vita_audio.contract.errors import EngineError

ACTIVATION, WEIGHT, PREQUANT = "activation_scaling_factor", "weights_scaling_factor", "prequant_scaling_factor"
FP8_MAX = 448.0  # largest float8_e4m3fn
INT4_MIN, INT4_MAX = -8, 7

Scales = Mapping[str, Tensor]  # scale name -> value, of one released linear layer


def quantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale in float8_e4m3fn, round to nearest even; what lies beyond the range becomes its end."""
    return (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def quantise_int4(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [out, in] by scale [out, in / group] -> int8 values in [-8, 7], round to nearest even."""
    grouped = weight.float().unflatten(-1, (scale.shape[-1], -1))  # [out, groups, group]
    return (grouped / scale.float()[..., None]).round().clamp(INT4_MIN, INT4_MAX).to(torch.int8).flatten(-2)


def pack_int4(values: Tensor) -> Tensor:
    """[out, in] -> int8 [out / 2, in]: an even row in the low four bits, the odd row after it in the high ones."""
    return (values[0::2] & 0x0F) | (values[1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse of `pack_int4`."""
    return torch.stack([(packed << 4) >> 4, packed >> 4], dim=1).flatten(0, 1)  # shifts of int8 keep the sign


@dataclass(frozen=True, slots=True)
class Unquantised:
    """Weights in the model's own dtype."""

    name: str = "none"
    algorithm: str | None = None

    def config(self) -> dict[str, object]:
        return {}

    def multiple(self, ranks: int) -> int:
        return 1

    def scale_shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {}

    def encode(
        self,
        rule: Split,
        weights: Sequence[Tensor],
        scales: Sequence[Scales],
        ranks: TensorParallel,
        dtype: torch.dtype,
    ) -> list[dict[str, Tensor]]:
        return [{"weight": share} for share in ranks.split(rule, weights)]

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["weight"]


@dataclass(frozen=True, slots=True)
class Fp8:
    """FP8 weights and inputs, one scale for each; layers that read one input share both, as the engine fuses them."""

    name: str = "fp8"
    algorithm: str | None = "FP8"

    def config(self) -> dict[str, object]:
        return {}

    def multiple(self, ranks: int) -> int:
        """What rows and columns of a weight, over all ranks, must be a multiple of."""
        return 1

    def scale_shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Scales that a scales file must hold for a released weight [rows, columns]."""
        return {ACTIVATION: (), WEIGHT: ()}

    def encode(
        self,
        rule: Split,
        weights: Sequence[Tensor],
        scales: Sequence[Scales],
        ranks: TensorParallel,
        dtype: torch.dtype,
    ) -> list[dict[str, Tensor]]:
        """Tensors of each rank, by the end of their names.

        Args:
            rule: how ranks share the layer.
            weights: its released weights.
            scales: of all layers that read its input; its own come first, in the order of `weights`.
            ranks: the tensor-parallel group.
            dtype: of the model.
        """
        shared = {name: torch.stack([s[name].float() for s in scales]).max() for name in (ACTIVATION, WEIGHT)}
        return [
            {"weight": quantise_fp8(share, shared[WEIGHT])} | {name: value.view(1) for name, value in shared.items()}
            for share in ranks.split(rule, weights)
        ]

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A rank's weight as the engine sees it, float32."""
        return tensors["weight"].float() * tensors[WEIGHT]


@dataclass(frozen=True, slots=True)
class Awq:
    """4-bit weights, a scale for every `group` inputs of a row, inputs in the model's dtype."""

    name: str = "w4a16_awq"
    algorithm: str | None = "W4A16_AWQ"
    group: int = 128

    def config(self) -> dict[str, object]:
        return {"group_size": self.group, "has_zero_point": False, "pre_quant_scale": True}

    def multiple(self, ranks: int) -> int:
        """TensorRT-LLM pads weights of other sizes, which this converter does not: they are refused."""
        return self.group * ranks

    def scale_shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {PREQUANT: (columns,), WEIGHT: (rows, columns // self.group)}

    def encode(
        self,
        rule: Split,
        weights: Sequence[Tensor],
        scales: Sequence[Scales],
        ranks: TensorParallel,
        dtype: torch.dtype,
    ) -> list[dict[str, Tensor]]:
        """As `Fp8.encode`. Scales are rounded to `dtype` first: the engine multiplies by what is stored."""
        prequant = scales[0][PREQUANT].to(dtype)  # equal for all that share the input
        own = [s[WEIGHT].to(dtype) for s in scales[: len(weights)]]
        inputs = ranks.split(Split.COLUMNS if rule is Split.COLUMNS else Split.REPLICATED, [prequant])
        shares = zip(ranks.split(rule, weights), ranks.split(rule, own), inputs, strict=True)
        return [
            {"weight": pack_int4(quantise_int4(w.float() / p.float(), s)), WEIGHT: s, PREQUANT: p} for w, s, p in shares
        ]

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        values, scale = unpack_int4(tensors["weight"]).float(), tensors[WEIGHT].float()
        grouped = values.unflatten(-1, (scale.shape[-1], -1)) * scale[..., None]
        return grouped.flatten(-2) * tensors[PREQUANT].float()


Format = Unquantised | Fp8 | Awq
FORMATS: dict[str, Format] = {known.name: known for known in (Unquantised(), Fp8(), Awq())}


def format_named(name: str, option: str) -> Format:
    """Raises EngineError for an unknown name; `option` is where it was given."""
    if name not in FORMATS:
        raise EngineError(f"{option}: {name!r} is not a known quantisation: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
