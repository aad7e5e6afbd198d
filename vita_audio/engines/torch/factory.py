"""Opens the one reference engine that is served: the speech tokenizer beside torch_cuda's engines."""

from __future__ import annotations

import torch

from vita_audio.checkpoint.configs import SpeechTokenizerConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_record import LEAST_CAPABILITY
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch.audio import TorchSpeechTokenizer
from vita_audio.engines.torch.weights import SPEECH_TOKENIZER_FILE, load_weights_file


def speech_tokenizer(source: EngineSource) -> TorchSpeechTokenizer:
    config = SpeechTokenizerConfig(**source.config("speech_tokenizer"))
    return TorchSpeechTokenizer(config, load_weights_file(source.folder / SPEECH_TOKENIZER_FILE), device_of(source))


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
