"""What of a language model is stored in FP8, and under which names: `X` and `X_scale` instead of `X` alone.

MCTP modules share the backbone's head. With theirs in FP8 the file holds one more matrix, the rows of the head that
they can draw from; the backbone's own head, as the embedding, norms and biases, is bfloat16 in every format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from build_engines.options import GpuOptions
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.checkpoint.tensor_file import Outline
from vita_audio.engines.torch_cuda.fp8 import quantise
from vita_audio.engines.torch_cuda.weights import MCTP_HEAD, SCALE

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.\w+_proj\.weight")
_PROJECTION = re.compile(r"mtp_projs\.\d+\.weight")


class Fp8Parts(NamedTuple):
    """Parts of a language model that are FP8.

    Attributes:
        backbone, mctp: products of their layers.
        mctp_head: the rows from `first_id` on that MCTP modules draw from.
    """

    backbone: bool = False
    mctp: bool = False
    mctp_head: bool = False
    first_id: int = 0

    @classmethod
    def of(cls, options: GpuOptions, first_id: int) -> Fp8Parts:
        backbone, mctp = (name == "fp8" for name in options.formats)
        return cls(backbone, mctp, options.mctp_head_format == "fp8", first_id)

    def holds(self, key: str, config: LanguageModelConfig) -> bool:
        """Whether a tensor of the checkpoint is FP8."""
        if found := _LAYER.fullmatch(key):
            return self.backbone if int(found[1]) < config.backbone_layers else self.mctp
        return self.mctp and _PROJECTION.fullmatch(key) is not None

    def copies_head(self, key: str, config: LanguageModelConfig) -> bool:
        """Whether a tensor is the head of which the MCTP modules get an FP8 copy."""
        return self.mctp_head and config.mctp_modules > 0 and key == head_key(config)


def head_key(config: LanguageModelConfig) -> str:
    return "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"


def outline(config: LanguageModelConfig, parts: Fp8Parts) -> Outline:
    """The tensors of the file, in its order."""
    made: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def add_fp8(key: str, rows: int, columns: int) -> None:
        made[key] = (rows, columns), torch.float8_e4m3fn
        made[key + SCALE] = (rows,), torch.float32

    for key, shape in language_model_shapes(config).items():
        if parts.holds(key, config):
            add_fp8(key, *shape)
        else:
            made[key] = shape, torch.bfloat16
        if parts.copies_head(key, config):
            add_fp8(MCTP_HEAD, shape[0] - parts.first_id, shape[1])
    return made


def encode(
    config: LanguageModelConfig, parts: Fp8Parts, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint, in the order of its shapes -> those of `outline`. Raises EngineError as `quantise`."""

    def fp8(key: str, tensor: Tensor, source: str) -> Iterator[tuple[str, Tensor]]:
        values, scale = quantise(tensor, source)
        yield key, values
        yield key + SCALE, scale

    for key, tensor in tensors:
        if parts.holds(key, config):
            yield from fp8(key, tensor, key)
        else:
            yield key, tensor.to(torch.bfloat16)
        if parts.copies_head(key, config):
            yield from fp8(MCTP_HEAD, tensor[parts.first_id :], key)
