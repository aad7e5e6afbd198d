"""Checkpoint -> the tensors the fixed-shape network reads: projections merged, on one device, in one type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix

#: In files, an FP8 matrix X has its scales beside it as X_scale; MCTP_HEAD is there where the modules' head is FP8.
SCALE, MCTP_HEAD = "_scale", "mctp_head.weight"


class LayerWeights(NamedTuple):
    """One decoder layer. Projections that read the same rows are one matrix."""

    input_norm: Tensor  # [hidden]
    qkv: Matrix  # [(heads + 2 kv_heads) * head_dim, hidden]
    qkv_bias: Tensor
    output: Matrix  # [hidden, heads * head_dim]
    post_norm: Tensor  # [hidden]
    gate_up: Matrix  # [2 * intermediate, hidden]
    down: Matrix  # [hidden, intermediate]


class ModuleWeights(NamedTuple):
    """One MCTP module."""

    embed_norm: Tensor  # [hidden]
    hidden_norm: Tensor  # [hidden]
    projection: Matrix  # [hidden, 2 * hidden]
    layer: LayerWeights


class Weights(NamedTuple):
    """Everything a language model reads; `norm` is shared by backbone and MCTP, and `head` where it is bfloat16."""

    embedding: Tensor  # [vocab + prompt rows, hidden]; see `torch/prompt_rows.py`
    layers: tuple[LayerWeights, ...]
    modules: tuple[ModuleWeights, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]
    mctp_head: Matrix  # [ids, hidden]: that of the MCTP modules, for the last ids of the vocabulary


def holds_fp8(weights: Weights) -> bool:
    """Whether any of the matrices is FP8."""
    layers, modules = (layer.qkv for layer in weights.layers), (module.projection for module in weights.modules)
    return any(isinstance(one, Fp8Matrix) for one in (weights.mctp_head, *layers, *modules))


def load_weights(
    config: LanguageModelConfig,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    prompt_rows: int = 0,
) -> Weights:
    """Move a checkpoint (released keys) to `device` layer by layer; the source is left as it is.

    Matrices that the source holds in FP8 stay so, everything else becomes `dtype`.

    Args:
        prompt_rows: rows behind the embedding for what stands in prompts in place of ids (a Plus checkpoint).
    """

    def get(key: str) -> Tensor:
        return tensors[key].to(device, dtype)

    def merge(keys: Sequence[str]) -> Tensor:
        return torch.cat([get(key) for key in keys])

    def matrix(*keys: str) -> Matrix:
        """Their rows one after the other."""
        if keys[0] + SCALE not in tensors:
            return merge(keys) if len(keys) > 1 else get(*keys)
        values = [tensors[key].to(device).view(torch.uint8) for key in keys]  # PyTorch joins no FP8 tensors
        scales = [tensors[key + SCALE].to(device) for key in keys]
        return Fp8Matrix(torch.cat(values).view(torch.float8_e4m3fn), torch.cat(scales))

    def layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}."
        projections = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
        return LayerWeights(
            input_norm=get(f"{prefix}input_layernorm.weight"),
            qkv=matrix(*(f"{key}.weight" for key in projections)),
            qkv_bias=merge([f"{key}.bias" for key in projections]),
            output=matrix(f"{prefix}self_attn.o_proj.weight"),
            post_norm=get(f"{prefix}post_attention_layernorm.weight"),
            gate_up=matrix(f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"),
            down=matrix(f"{prefix}mlp.down_proj.weight"),
        )

    embedding = torch.zeros(config.vocab_size + prompt_rows, config.hidden_size, device=device, dtype=dtype)
    vocabulary = embedding[: config.vocab_size]
    vocabulary.copy_(tensors["model.embed_tokens.weight"])
    head = vocabulary if config.tie_word_embeddings else get("lm_head.weight")
    return Weights(
        embedding=embedding,
        layers=tuple(layer(index) for index in range(config.backbone_layers)),
        modules=tuple(
            ModuleWeights(
                embed_norm=get(f"mtp_embed_norms.{k}.weight"),
                hidden_norm=get(f"mtp_hidden_norms.{k}.weight"),
                projection=matrix(f"mtp_projs.{k}.weight"),
                layer=layer(config.backbone_layers + k),
            )
            for k in range(config.mctp_modules)
        ),
        norm=get("model.norm.weight"),
        head=head,
        mctp_head=matrix(MCTP_HEAD) if MCTP_HEAD in tensors else head,
    )
