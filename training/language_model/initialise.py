"""Weights a stage starts from: random, or those of the stage before with MCTP modules copied (facts/audio.md 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from training.errors import TrainingError
from vita_audio.checkpoint import language_model_shapes
from vita_audio.configs import LanguageModelConfig

_SPREAD = 0.02  # of every random matrix, as in the Qwen2 reference


def random_weights(config: LanguageModelConfig, seed: int) -> dict[str, Tensor]:
    """A model that knows nothing: matrices N(0, 0.02), norms 1, biases 0."""
    draw = torch.Generator().manual_seed(seed)
    return {key: _random(key, shape, draw) for key, shape in language_model_shapes(config).items()}


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
