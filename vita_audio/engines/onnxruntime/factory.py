"""Opens the ONNX Runtime engines of a folder: the CPU default."""

from __future__ import annotations

from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.onnxruntime.sensevoice import OnnxSenseVoice
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.source import EngineSource


def language_model(source: EngineSource, slots: int) -> OnnxLanguageModel:
    return OnnxLanguageModel(source.folder / "language_model", slots, source.context_tokens, source.threads)


def speech_tokenizer(source: EngineSource) -> OnnxSpeechTokenizer:
    return OnnxSpeechTokenizer(source.folder, source.threads)


def sensevoice(source: EngineSource) -> OnnxSenseVoice:
    return OnnxSenseVoice(source.folder, source.threads)


def flow(source: EngineSource) -> OnnxFlow:
    return OnnxFlow(source.folder, source.threads)


def vocoder(source: EngineSource) -> OnnxVocoder:
    return OnnxVocoder(source.folder, source.threads)
