"""A folder of engines and how they shall run: all that a factory of an engine is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_audio.engines.gpu_record import GpuRecord, standard_engines

if TYPE_CHECKING:
    from vita_audio.engines.manifest import Manifest

#: Prompt tokens of one step. On a CPU each of them costs the streams that run; a GPU reads the weights for as long as
#: it computes some 300 rows (H100, bf16), so these come nearly free.
CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK = 64, 256


@dataclass(frozen=True, slots=True)
class EngineSource:
    """A folder of engines, what its manifest says of them, and where they shall run.

    Attributes:
        folder: the engines.
        sizes: part -> fields of its config dataclass.
        context_tokens: tokens of a stream.
        gpu: None for CPU engines.
        threads: CPU threads of each engine.
        device: where torch_cuda engines run: bfloat16 on a GPU, float32 on "cpu".
        engines: stage -> family (`registry.py`); those that the builder makes by default.
    """

    folder: Path
    sizes: Mapping[str, Mapping[str, Any]]
    context_tokens: int
    gpu: GpuRecord | None = None
    threads: int = 1
    device: str = "cuda:0"
    engines: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.engines:
            object.__setattr__(self, "engines", standard_engines(self.gpu))

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, threads: int = 1, device: str = "cuda:0") -> EngineSource:
        """The engines that a manifest describes."""
        limits = manifest.limits
        return cls(folder, manifest.sizes, limits.context_tokens, manifest.gpu, threads, device, manifest.engines)

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

        return {name: frozen(value) for name, value in self.sizes[part].items()}
