"""Opens the TensorRT audio engines of a folder."""

from __future__ import annotations

from vita_audio.engines.source import EngineSource
from vita_audio.engines.tensorrt_audio.audio import (
    TensorRtFlow,
    TensorRtSenseVoice,
    TensorRtSpeechTokenizer,
    TensorRtVocoder,
)
from vita_audio.engines.torch.weights import AUDIO_FOLDER


def speech_tokenizer(source: EngineSource) -> TensorRtSpeechTokenizer:
    return TensorRtSpeechTokenizer(source.folder / AUDIO_FOLDER)


def sensevoice(source: EngineSource) -> TensorRtSenseVoice:
    return TensorRtSenseVoice(source.folder / AUDIO_FOLDER)


def flow(source: EngineSource) -> TensorRtFlow:
    return TensorRtFlow(source.folder / AUDIO_FOLDER)


def vocoder(source: EngineSource) -> TensorRtVocoder:
    return TensorRtVocoder(source.folder / AUDIO_FOLDER)
