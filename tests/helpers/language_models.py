"""Small random language models for tests, and all engines over them."""

from __future__ import annotations

from pathlib import Path

import torch

from build_engines.conformance.language_model import ENGINES
from generation_doubles import request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.models.language_model import LanguageModel

__all__ = ["ENGINES", "make_engine", "random_weights", "request"]


def random_weights(config: LanguageModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = LanguageModel(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # spread logits, as training does
    return dict(model.state_dict())


def make_engine(
    kind: str,
    config: LanguageModelConfig,
    tensors: dict[str, torch.Tensor],
    folder: Path,
    slots: int,
    context: int,
    plus: bool = False,
) -> LanguageModelEngine:
    return ENGINES[kind](config, tensors, slots, context, folder, plus)
