"""Weights a stage starts from: random, or those of the stage before with MCTP modules copied (docs/audio.md 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from training.errors import TrainingError
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes

_SPREAD = 0.02  # of every random matrix, as in the Qwen2 reference
_LOCAL_BIAS = 5.0  # a local head starts with about 90 % of its attention on one token
_LOCAL_FREQUENCY = 0.05  # radians a token: slower rotations hardly tell neighbours apart


def random_weights(config: LanguageModelConfig, seed: int, local_layers: int = 0) -> dict[str, Tensor]:
    """Random weights: matrices N(0, 0.02), norms 1, biases 0.

    Args:
        local_layers: in so many first layers, head h of each group of query heads attends at first to the token h + 1
            places before; the last head of a group stays free. To copy a word one must find what came after it, for
            which tokens must carry the ones before them: a model from nothing needs long to learn that alone.
            Query and key biases, which act before the rotary embedding, are all it takes.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = {key: _random(key, shape, draw) for key, shape in language_model_shapes(config).items()}
    for layer in range(local_layers):
        prefix = f"model.layers.{layer}.self_attn"
        _attend_locally(config, weights[f"{prefix}.q_proj.bias"], weights[f"{prefix}.k_proj.bias"])
    return weights


def _attend_locally(config: LanguageModelConfig, q_bias: Tensor, k_bias: Tensor) -> None:
    """Set biases q [heads * dim] and k [kv_heads * dim] in place: scores peak where key and query are h + 1 apart."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half) / half)
    size = torch.where(frequency >= _LOCAL_FREQUENCY, _LOCAL_BIAS, 0.0)
    k_bias.view(-1, 2, half)[:, 0] = size
    group = config.num_attention_heads // config.num_key_value_heads
    queries = q_bias.view(config.num_key_value_heads, group, 2, half)
    for head in range(group - 1):
        back = frequency * (head + 1)
        queries[:, head, 0], queries[:, head, 1] = size * back.cos(), -size * back.sin()


def with_modules(config: LanguageModelConfig, modules: int) -> LanguageModelConfig:
    """The same backbone with `modules` MCTP modules."""
    layers = config.backbone_layers + modules
    return replace(config, num_hidden_layers=layers, num_nextn_predict_layers=modules)


def add_modules(
    config: LanguageModelConfig, tensors: Mapping[str, Tensor], modules: int, seed: int
) -> tuple[LanguageModelConfig, dict[str, Tensor]]:
    """Give a model more MCTP modules, each a copy of the one before it.

    The first one copies the last backbone layer; its projection is N(0, 0.02) and its norms are 1.

    Raises:
        TrainingError: the model already has more than `modules`.
    """
    if config.mctp_modules > modules:
        raise TrainingError(f"the model has {config.mctp_modules} MCTP modules, more than the {modules} of this stage")
    larger = with_modules(config, modules)
    draw = torch.Generator().manual_seed(seed)
    result = dict(tensors)
    for key, shape in language_model_shapes(larger).items():
        if key in result:
            continue
        source = _key_before(key)
        result[key] = result[source].clone() if source else _random(key, shape, draw)
    return larger, result


def _key_before(key: str) -> str | None:
    """The key a missing one is copied from; None for projection and norms of the first module."""
    if key.startswith("model.layers."):
        prefix, index, name = "model.layers.", *key.removeprefix("model.layers.").split(".", 1)
    else:
        prefix, (index, name) = key.split(".")[0] + ".", key.split(".")[1:]
        if index == "0":
            return None
    return f"{prefix}{int(index) - 1}.{name}"


def _random(key: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
    return torch.randn(shape, generator=draw) * _SPREAD
