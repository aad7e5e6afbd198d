"""A folder of engines and how they shall run: all that a factory of an engine is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio.engines.audio_precision import FLOAT32, TF32
from vita_audio.engines.gpu_record import GpuRecord
from vita_audio.engines.manifest import Manifest

#: Prompt tokens of one step. On a CPU each of them costs the streams that run; a GPU reads the weights for as long as
#: it computes some 300 rows (H100, bf16), so these come nearly free.
CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK = 64, 256


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Engines, and where they shall run.

    Attributes:
        folder: the engines.
        manifest: what they were built from and hold.
        threads: CPU threads of each engine.
        device: where PyTorch's engines run: bfloat16 on a GPU, float32 on "cpu".
        kernels_off: kernels of torch_cuda engines that run as their references (`torch_cuda/kernels/names.py`).
        decoder_precision, speech_precision: of torch_cuda's flow and vocoder, and of its speech tokenizer
            (`audio_precision.py`).
    """

    folder: Path
    manifest: Manifest
    threads: int = 1
    device: str = "cuda:0"
    kernels_off: frozenset[str] = frozenset()
    decoder_precision: str = TF32
    speech_precision: str = FLOAT32

    @property
    def gpu(self) -> GpuRecord | None:
        """What GPU engines were built for; None for CPU engines."""
        return self.manifest.gpu

    @property
    def context_tokens(self) -> int:
        """Tokens of a stream, prompt and answer."""
        return self.manifest.limits.context_tokens

    @property
    def prefill_chunk(self) -> int:
        return CPU_PREFILL_CHUNK if self.gpu is None else min(GPU_PREFILL_CHUNK, self.gpu.max_num_tokens)

    @property
    def decoder_batch(self) -> int:
        """Streams of one decode. On a CPU a batch gains nothing and would make first chunks wait for each other, and
        alone a stream's sound is the same bits in any company."""
        return 1 if self.gpu is None or self.device == "cpu" else self.gpu.audio_max_batch

    def config(self, part: str) -> dict[str, Any]:
        """The fields of a part's config dataclass; JSON has lists where these have tuples."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list) else value

        return {name: frozen(value) for name, value in self.manifest.sizes[part].items()}
