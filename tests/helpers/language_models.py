"""Small random language models for tests, and all engines over them."""

from __future__ import annotations

from pathlib import Path

import torch

from build_engines.conformance.language_model import ENGINES
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.messages import GenerationSettings
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.generation.request import GenerationRequest
from vita_audio.models.language_model import LanguageModel


def random_weights(config: LanguageModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = LanguageModel(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # spread logits, as training does
    return dict(model.state_dict())


def make_engine(
    kind: str, config: LanguageModelConfig, tensors: dict[str, torch.Tensor], folder: Path, slots: int, context: int
) -> LanguageModelEngine:
    return ENGINES[kind](config, tensors, slots, context, folder)


def request(
    prompt: list[int],
    pattern: tuple[int, ...],
    max_tokens: int = 40,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.05,
    seed: int = 0,
) -> GenerationRequest:
    settings = GenerationSettings(
        "chat", "test", pattern, max_tokens, temperature, top_k, top_p, repetition_penalty, seed
    )
    return GenerationRequest(prompt, settings)
