"""Opens the TensorRT-LLM language model of a folder."""

from __future__ import annotations

from vita_audio.checkpoint.configs import SENSEVOICE, LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.source import EngineSource
from vita_audio.engines.tensorrt_llm import session
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import layout_for


def language_model(source: EngineSource, slots: int) -> TensorRtLlmLanguageModel:
    gpu, config = source.gpu, LanguageModelConfig(**source.config("language_model"))
    if gpu is None:
        raise EngineError(
            f"{source.folder}: the manifest does not say what its GPU engines were built for; build again"
        )
    limits = slots, source.context_tokens, gpu.max_num_tokens, gpu.candidates, gpu.head_first_id
    layout = layout_for(config, *limits, embedded=source.manifest.speech_input == SENSEVOICE)
    executor = session.SessionExecutor(source.folder / "language_model", layout, bytes_beside=gpu.bytes_beside_slots)
    return TensorRtLlmLanguageModel(executor, gpu.banned_ids)
