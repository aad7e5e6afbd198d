"""Opens the engines of a folder as its manifest says: ONNX Runtime on a CPU; TensorRT(-LLM) or PyTorch on a GPU.

Everything a stream would wait for is done before these functions return: graphs are captured, engines are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_audio.checkpoint.configs import FlowConfig, LanguageModelConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA, GpuRecord
from vita_audio.engines.interface import FlowEngine, LanguageModelEngine, SpeechTokenizerEngine, VocoderEngine

if TYPE_CHECKING:
    import torch

#: Prompt tokens of one step. On a CPU each of them costs the streams that run; a GPU reads the weights for as long as
#: it computes some 300 rows (H100, bf16), so these come nearly free.
CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK = 64, 256


@dataclass(frozen=True, slots=True)
class EngineSource:
    """A folder of engines and what its manifest says of them.

    Attributes:
        folder: the engines.
        sizes: part -> fields of its config dataclass.
        context_tokens: tokens of a stream.
        gpu: None for CPU engines.
        threads: CPU threads of each engine.
        device: where torch_cuda engines run: bfloat16 on a GPU, float32 on "cpu".
    """

    folder: Path
    sizes: Mapping[str, Mapping[str, Any]]
    context_tokens: int
    gpu: GpuRecord | None = None
    threads: int = 1
    device: str = "cuda:0"

    @property
    def kind(self) -> str:
        """Which engines these are: "cpu", "tensorrt_llm" or "torch_cuda"."""
        return "cpu" if self.gpu is None else self.gpu.engine

    @property
    def prefill_chunk(self) -> int:
        return CPU_PREFILL_CHUNK if self.gpu is None else min(GPU_PREFILL_CHUNK, self.gpu.max_num_tokens)

    @property
    def decoder_batch(self) -> int:
        """Streams of one decode. On a CPU a batch gains nothing and would make first chunks wait for each other, and
        alone a stream's sound is the same bits in any company."""
        return 1 if self.gpu is None or self.device == "cpu" else self.gpu.audio_max_batch


def open_language_model(source: EngineSource, slots: int) -> LanguageModelEngine:
    """Backbone and MCTP for `slots` streams, ready to run.

    Raises:
        EngineError: engines of an unknown kind, for fewer streams, for something else, or too large for what is here.
    """
    gpu = source.gpu
    if gpu is None:
        from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel

        return OnnxLanguageModel(source.folder / "language_model", slots, source.context_tokens, source.threads)
    check_slots(gpu, slots)
    config = LanguageModelConfig(**source.sizes["language_model"])
    if source.kind == TENSORRT_LLM:
        from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
        from vita_audio.engines.tensorrt_llm.layout import layout_for
        from vita_audio.engines.tensorrt_llm.session import SessionExecutor

        layout = layout_for(config, slots, source.context_tokens, gpu.max_num_tokens, gpu.candidates, gpu.head_first_id)
        return TensorRtLlmLanguageModel(SessionExecutor(source.folder / "language_model", layout), gpu.banned_ids)
    if source.kind == TORCH_CUDA:
        import torch

        from vita_audio.engines.torch.weights import WEIGHTS_FILE, StoredTensors
        from vita_audio.engines.torch_cuda.engine import Settings, TorchCudaLanguageModel
        from vita_audio.engines.torch_cuda.weights import load_weights

        device = _device(source)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = load_weights(config, StoredTensors(source.folder / WEIGHTS_FILE), device, dtype)
        settings = Settings(slots, source.context_tokens, gpu.head_first_id)
        engine = TorchCudaLanguageModel(config, weights, settings, gpu.banned_ids)
        engine.prepare(source.prefill_chunk)
        return engine
    raise _unknown(source)


def open_speech_tokenizer(source: EngineSource) -> SpeechTokenizerEngine:
    """Raises EngineError as `open_language_model`."""
    if source.kind == "cpu":
        from vita_audio.engines.onnxruntime.audio import OnnxSpeechTokenizer

        return OnnxSpeechTokenizer(source.folder, source.threads)
    from vita_audio.engines.torch.weights import AUDIO_FOLDER, SPEECH_TOKENIZER_FILE, load_weights_file

    if source.kind == TENSORRT_LLM:
        from vita_audio.engines.tensorrt_audio.audio import TensorRtSpeechTokenizer

        return TensorRtSpeechTokenizer(source.folder / AUDIO_FOLDER)
    if source.kind == TORCH_CUDA:
        from vita_audio.engines.torch.audio import TorchSpeechTokenizer

        config = SpeechTokenizerConfig(**source.sizes["speech_tokenizer"])
        return TorchSpeechTokenizer(config, load_weights_file(source.folder / SPEECH_TOKENIZER_FILE), _device(source))
    raise _unknown(source)


def open_audio_decoder(source: EngineSource) -> tuple[FlowEngine, VocoderEngine]:
    """Raises EngineError as `open_language_model`."""
    if source.kind == "cpu":
        from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder

        return OnnxFlow(source.folder, source.threads), OnnxVocoder(source.folder, source.threads)
    from vita_audio.engines.torch.weights import AUDIO_FOLDER, FLOW_FILE, VOCODER_FILE, load_weights_file

    if source.kind == TENSORRT_LLM:
        from vita_audio.engines.tensorrt_audio.audio import TensorRtFlow, TensorRtVocoder

        return TensorRtFlow(source.folder / AUDIO_FOLDER), TensorRtVocoder(source.folder / AUDIO_FOLDER)
    if source.kind == TORCH_CUDA:
        from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder

        device = _device(source)
        flow = FlowConfig(**_tuples(source.sizes["flow"]))
        vocoder = VocoderConfig(**_tuples(source.sizes["vocoder"]))
        return (
            TorchCudaFlow(flow, load_weights_file(source.folder / FLOW_FILE), device),
            TorchCudaVocoder(vocoder, load_weights_file(source.folder / VOCODER_FILE), device),
        )
    raise _unknown(source)


def check_slots(gpu: GpuRecord, slots: int) -> None:
    """Raises EngineError when TensorRT-LLM engines were built for fewer streams; others take what memory holds."""
    if gpu.engine == TENSORRT_LLM and slots > gpu.max_streams:
        raise EngineError(
            f"--slots: {slots} but gpu.max_streams of the engines is {gpu.max_streams}; "
            "serve fewer, or build with --streams"
        )


def _device(source: EngineSource) -> torch.device:
    import torch

    device = torch.device(source.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"{source.folder}: these engines need a CUDA device and PyTorch sees none; serve CPU engines, "
            "or try these without a GPU (--device cpu)"
        )
    return device


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where the configs have tuples."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in fields.items()}


def _unknown(source: EngineSource) -> EngineError:
    return EngineError(
        f"{source.folder}: gpu.engine is {source.kind!r}, this version knows {TENSORRT_LLM} and {TORCH_CUDA}; "
        "build the engines again"
    )
