"""Opens the torch_cuda engines of a folder: programs captured as CUDA graphs, or run eagerly on a CPU."""

from __future__ import annotations

import torch

from vita_audio.checkpoint.configs import (
    SENSEVOICE,
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_record import LEAST_CAPABILITY
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch.weights import (
    FLOW_FILE,
    SENSEVOICE_FILE,
    SPEECH_TOKENIZER_FILE,
    VOCODER_FILE,
    WEIGHTS_FILE,
    StoredTensors,
    load_weights_file,
)
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.sensevoice import TorchCudaSenseVoice
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits, most_rows
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer
from vita_audio.engines.torch_cuda.weights import load_weights


def language_model(source: EngineSource, slots: int) -> TorchCudaLanguageModel:
    config, device = LanguageModelConfig(**source.config("language_model")), device_of(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limits = Limits(slots, config.mctp_modules, source.context_tokens)
    plus = source.manifest.speech_input == SENSEVOICE
    prompt_rows = most_rows(limits, source.prefill_chunk) if plus else 0
    weights = load_weights(config, StoredTensors(source.folder / WEIGHTS_FILE), device, dtype, prompt_rows)
    gpu = source.gpu
    settings = Settings(
        slots,
        source.context_tokens,
        gpu.head_first_id if gpu else 0,
        kernels_off=source.kernels_off,
        bytes_beside=gpu.bytes_beside_slots if gpu else 0,
        folder=source.folder,
    )
    engine = TorchCudaLanguageModel(config, weights, settings, gpu.banned_ids if gpu else ())
    engine.prepare(source.prefill_chunk)
    return engine


def speech_tokenizer(source: EngineSource) -> TorchCudaSpeechTokenizer:
    config = SpeechTokenizerConfig(**source.config("speech_tokenizer"))
    tensors = load_weights_file(source.folder / SPEECH_TOKENIZER_FILE)
    engine = TorchCudaSpeechTokenizer(config, tensors, device_of(source), source.speech_precision, source.kernels_off)
    engine.prepare()
    return engine


def sensevoice(source: EngineSource) -> TorchCudaSenseVoice:
    config = SenseVoiceConfig(**source.config("sensevoice"))
    tensors = load_weights_file(source.folder / SENSEVOICE_FILE)
    engine = TorchCudaSenseVoice(config, tensors, device_of(source), source.speech_precision, source.kernels_off)
    engine.prepare(source.context_tokens)
    return engine


def flow(source: EngineSource) -> TorchCudaFlow:
    config = FlowConfig(**source.config("flow"))
    tensors = load_weights_file(source.folder / FLOW_FILE)
    return TorchCudaFlow(config, tensors, device_of(source), source.decoder_precision, source.kernels_off)


def vocoder(source: EngineSource) -> TorchCudaVocoder:
    config = VocoderConfig(**source.config("vocoder"))
    tensors = load_weights_file(source.folder / VOCODER_FILE)
    return TorchCudaVocoder(config, tensors, device_of(source), source.decoder_precision, source.kernels_off)


def device_of(source: EngineSource) -> torch.device:
    """Where a source's engines run. Raises EngineError for a GPU that PyTorch does not see or that is too old."""
    device = torch.device(source.device)
    if device.type != "cuda":
        return device
    remedy = "serve CPU engines, or try these without a GPU (--device cpu)"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # PyTorch says why: no GPU, an old driver, built without CUDA
        why = " ".join(str(error).split())
        raise EngineError(
            f"{source.folder}: these engines need a CUDA device and PyTorch sees none ({why}); {remedy}"
        ) from None
    if (found := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        name, least = torch.cuda.get_device_name(device), ".".join(map(str, LEAST_CAPABILITY))
        raise EngineError(
            f"{source.folder}: {name} has compute capability {'.'.join(map(str, found))}, below {least}; {remedy}"
        )
    return device
