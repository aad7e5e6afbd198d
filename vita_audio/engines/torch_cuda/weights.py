"""Checkpoint -> the tensors the fixed-shape network reads: projections merged, on one device, in one type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig


class LayerWeights(NamedTuple):
    """One decoder layer. A tuple of tensors, so that one compiled layer serves all layers."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 kv_heads) * head_dim, hidden]
    qkv_bias: Tensor
    output: Tensor  # [hidden, heads * head_dim]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


class ModuleWeights(NamedTuple):
    """One MCTP module."""

    embed_norm: Tensor  # [hidden]
    hidden_norm: Tensor  # [hidden]
    projection: Tensor  # [hidden, 2 * hidden]
    layer: LayerWeights


class Weights(NamedTuple):
    """Everything a language model reads; `norm` and `head` are shared by backbone and MCTP."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    modules: tuple[ModuleWeights, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]

    @property
    def backbone_bytes(self) -> int:
        """Bytes a backbone forward with a token reads: all layers, final norm and head (one embedding row aside)."""
        return _bytes(self.norm, self.head, *(tensor for layer in self.layers for tensor in layer))

    @property
    def module_bytes(self) -> int:
        """Bytes one MCTP module reads, without the head."""
        module = self.modules[0]
        return _bytes(module.embed_norm, module.hidden_norm, module.projection, self.norm, *module.layer)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_weights(
    config: LanguageModelConfig, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Weights:
    """Move a checkpoint (released keys) to `device` layer by layer; the source is left as it is."""

    def get(key: str) -> Tensor:
        return tensors[key].to(device, dtype)

    def merge(keys: list[str]) -> Tensor:
        return torch.cat([get(key) for key in keys])

    def layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}."
        projections = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
        return LayerWeights(
            input_norm=get(f"{prefix}input_layernorm.weight"),
            qkv=merge([f"{key}.weight" for key in projections]),
            qkv_bias=merge([f"{key}.bias" for key in projections]),
            output=get(f"{prefix}self_attn.o_proj.weight"),
            post_norm=get(f"{prefix}post_attention_layernorm.weight"),
            gate_up=merge([f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"]),
            down=get(f"{prefix}mlp.down_proj.weight"),
        )

    embedding = get("model.embed_tokens.weight")
    return Weights(
        embedding=embedding,
        layers=tuple(layer(index) for index in range(config.backbone_layers)),
        modules=tuple(
            ModuleWeights(
                embed_norm=get(f"mtp_embed_norms.{k}.weight"),
                hidden_norm=get(f"mtp_hidden_norms.{k}.weight"),
                projection=get(f"mtp_projs.{k}.weight"),
                layer=layer(config.backbone_layers + k),
            )
            for k in range(config.mctp_modules)
        ),
        norm=get("model.norm.weight"),
        head=embedding if config.tie_word_embeddings else get("lm_head.weight"),
    )
