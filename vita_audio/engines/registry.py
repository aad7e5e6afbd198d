"""Opens the engines of a folder, each stage by the family that the manifest names for it. To add one: docs/engines.md.

A family is a folder beside this file. Its `factory.py` has a function for every stage it can run, named as the stage;
it is imported only when one of its engines is opened, so that a CPU server needs no PyTorch. Everything a stream would
wait for is done before these functions return: graphs are captured, engines are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_record import TENSORRT_LLM, GpuRecord
from vita_audio.engines.interface import (
    FlowEngine,
    LanguageModelEngine,
    SpeechEncoderEngine,
    SpeechTokenizerEngine,
    VocoderEngine,
)
from vita_audio.engines.source import EngineSource

#: Family -> its module of factories.
FAMILIES: dict[str, str] = {
    "onnxruntime": "vita_audio.engines.onnxruntime.factory",
    "torch_cuda": "vita_audio.engines.torch_cuda.factory",
    "tensorrt_llm": "vita_audio.engines.tensorrt_llm.factory",
    "tensorrt_audio": "vita_audio.engines.tensorrt_audio.factory",
}


def open_language_model(source: EngineSource, slots: int) -> LanguageModelEngine:
    """Backbone and MCTP for `slots` streams, ready to run.

    Raises:
        EngineError: engines of an unknown family, for fewer streams, for something else, or too large for what is here.
    """
    if source.gpu is not None:
        check_slots(source.gpu, slots)
    engine: LanguageModelEngine = _factory(source, "language_model")(source, slots)
    return engine


def open_speech_tokenizer(source: EngineSource) -> SpeechTokenizerEngine:
    """Raises EngineError as `open_language_model`."""
    engine: SpeechTokenizerEngine = _factory(source, "speech_tokenizer")(source)
    return engine


def open_speech_encoder(source: EngineSource) -> SpeechEncoderEngine:
    """The speech input of a Plus model. Raises EngineError as `open_language_model`, and where the engines are of a
    model that has a speech tokenizer."""
    engine: SpeechEncoderEngine = _factory(source, "sensevoice")(source)
    return engine


def open_audio_decoder(source: EngineSource) -> tuple[FlowEngine, VocoderEngine]:
    """Raises EngineError as `open_language_model`."""
    return _factory(source, "flow")(source), _factory(source, "vocoder")(source)


def check_slots(gpu: GpuRecord, slots: int) -> None:
    """Raises EngineError when TensorRT-LLM engines were built for fewer streams; others take what memory holds."""
    if gpu.engine == TENSORRT_LLM and slots > gpu.max_streams:
        raise EngineError(
            f"--slots: {slots} but gpu.max_streams of the engines is {gpu.max_streams}; "
            "serve fewer, or build with --streams"
        )


def _factory(source: EngineSource, stage: str) -> Callable[..., Any]:
    family = source.manifest.engines.get(stage)
    if family not in FAMILIES:
        raise EngineError(
            f"{source.folder}: engines.{stage} is {family!r}, this version has {', '.join(FAMILIES)}; "
            "build the engines again"
        )
    factory: Callable[..., Any] | None = getattr(import_module(FAMILIES[family]), stage, None)
    if factory is None:
        raise EngineError(
            f"{source.folder}: engines.{stage} is {family!r}, which cannot run this stage; build the engines again"
        )
    return factory
