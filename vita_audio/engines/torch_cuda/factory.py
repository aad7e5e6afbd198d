"""Opens the torch_cuda engines of a folder: programs captured as CUDA graphs, or run eagerly on a CPU."""

from __future__ import annotations

import torch

from vita_audio.checkpoint.configs import FlowConfig, LanguageModelConfig, VocoderConfig
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch.factory import device_of
from vita_audio.engines.torch.weights import FLOW_FILE, VOCODER_FILE, WEIGHTS_FILE, StoredTensors, load_weights_file
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights


def language_model(source: EngineSource, slots: int) -> TorchCudaLanguageModel:
    config, device = LanguageModelConfig(**source.config("language_model")), device_of(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = load_weights(config, StoredTensors(source.folder / WEIGHTS_FILE), device, dtype)
    first_mctp_id, banned_ids = (source.gpu.head_first_id, source.gpu.banned_ids) if source.gpu else (0, ())
    settings = Settings(
        slots, source.context_tokens, first_mctp_id, kernels_off=source.kernels_off, folder=source.folder
    )
    engine = TorchCudaLanguageModel(config, weights, settings, banned_ids)
    engine.prepare(source.prefill_chunk)
    return engine


def flow(source: EngineSource) -> TorchCudaFlow:
    config = FlowConfig(**source.config("flow"))
    return TorchCudaFlow(config, load_weights_file(source.folder / FLOW_FILE), device_of(source))


def vocoder(source: EngineSource) -> TorchCudaVocoder:
    config = VocoderConfig(**source.config("vocoder"))
    return TorchCudaVocoder(config, load_weights_file(source.folder / VOCODER_FILE), device_of(source))
