"""What GPU engines are built for: engine, number formats, GPUs, limits, head; and the flags of commands that set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vita_audio.contract.errors import EngineError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.gpu_record import ENGINES, TENSORRT_LLM, TORCH_CUDA

#: What users say -> what the conversion to TensorRT-LLM says.
FORMATS = {"bf16": "none", "fp8": "fp8", "w4a16": "w4a16_awq"}
HEADS = ("auto", "full", "audio")
#: The audio-only head begins at a multiple of this: a matrix product of half precision wants its size aligned.
_HEAD_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """Options of `--target gpu`.

    Attributes:
        engine: torch_cuda (CUDA graphs in PyTorch, built in minutes and on any GPU from Ampere on), or tensorrt_llm.
        format: linear layers of the backbone: bf16, fp8 or w4a16.
        mctp_format: those of the MCTP modules; "" is as `format`.
        mctp_head_format: head of the MCTP modules: bf16, or fp8 (torch_cuda).
        fp8_kv_cache: 8-bit keys and values; both formats must be fp8.
        scales: file with the scales that fp8 and w4a16 need.
        tp: GPUs that share the model (tensor parallel).
        streams: most streams of one step.
        step_tokens: most tokens of one step, all streams together.
        head: which ids MCTP modules can give: full, audio (control and audio tokens: a tenth of the bytes), or auto:
            audio where the checkpoint's own mode lets the modules make audio alone.
        candidates: the largest top-k that is drawn from.
        audio_batch: windows of one call of an audio engine.
    """

    engine: str = TORCH_CUDA
    format: str = "bf16"
    mctp_format: str = ""
    fp8_kv_cache: bool = False
    scales: Path | None = None
    tp: int = 1
    streams: int = 64
    step_tokens: int = 2048
    head: str = "auto"
    candidates: int = 64
    audio_batch: int = 8
    mctp_head_format: str = "bf16"

    @property
    def formats(self) -> tuple[str, str]:
        """Of the backbone and of the MCTP modules."""
        return self.format, self.mctp_format or self.format

    @property
    def quantisations(self) -> dict[str, str]:
        """The same in the words of the conversion to TensorRT-LLM."""
        return {part: FORMATS[name] for part, name in zip(("backbone", "mctp"), self.formats, strict=True)}

    def check(self) -> None:
        """Raises EngineError naming the option, its value and what is allowed."""
        _choice("--engine", self.engine, ENGINES)
        _choice("--format", self.format, FORMATS)
        _choice("--mctp-format", self.formats[1], FORMATS)
        _choice("--mctp-head-format", self.mctp_head_format, ("bf16", "fp8"))
        _choice("--head", self.head, HEADS)
        _range("--tp", self.tp, 1, 64)
        _range("--streams", self.streams, 1, 2048)
        _range("--step-tokens", self.step_tokens, self.streams, 1 << 16)
        _range("--candidates", self.candidates, 1, 1024)
        _range("--audio-batch", self.audio_batch, 1, 64)
        if self.engine == TORCH_CUDA:
            self._check_torch_cuda()
        elif self.mctp_head_format != "bf16":
            raise EngineError(f"--mctp-head-format: {self.mctp_head_format} is for --engine {TORCH_CUDA}; leave it out")
        if self.fp8_kv_cache and self.formats != ("fp8", "fp8"):
            raise EngineError(
                f"--fp8-kv-cache: needs --format fp8 for both parts, they are {' and '.join(self.formats)}"
            )

    def _check_torch_cuda(self) -> None:
        for option, name in zip(("--format", "--mctp-format"), self.formats, strict=True):
            if name == "w4a16":
                raise EngineError(f"{option}: w4a16 is for --engine {TENSORRT_LLM}; take bf16 or fp8")
        if self.tp > 1:
            raise EngineError("--tp: the torch_cuda engine runs on one GPU; leave it out")
        if self.fp8_kv_cache:
            raise EngineError("--fp8-kv-cache: the torch_cuda engine keeps keys and values in bf16; leave it out")
        if self.scales is not None:
            raise EngineError("--scales: the torch_cuda engine scales FP8 weights by their own rows; leave it out")

    def head_first_id(self, pattern: Sequence[int], text_tokens: int) -> int:
        """First id of the MCTP head: 0 is the full head.

        Args:
            pattern: the checkpoint's own mode. In boost and balance the modules make audio and its tags alone.
            text_tokens: ids below are text.
        """
        audio_modes = (NAMED_MODES["boost"], NAMED_MODES["balance"])
        audio = self.head == "audio" or (self.head == "auto" and tuple(pattern) in audio_modes)
        return text_tokens // _HEAD_ALIGNMENT * _HEAD_ALIGNMENT if audio else 0


def _choice(option: str, value: str, known: Sequence[str] | dict[str, str]) -> None:
    if value not in known:
        raise EngineError(f"{option}: {value!r} is not valid: choose one of {', '.join(known)}")


def _range(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise EngineError(f"{option}: {value} is not valid: {lowest} to {highest}")


# Flags that commands share: their names are those of the attributes above.
ContextTokens = Annotated[int, typer.Option(help="Most tokens of prompt and answer together.")]
Engine = Annotated[
    str, typer.Option(help="torch_cuda: CUDA graphs in PyTorch, nothing to compile; or tensorrt_llm (gpu).")
]
Format = Annotated[str, typer.Option(help="Linear layers of the backbone: bf16, fp8 or w4a16 (gpu).")]
MctpFormat = Annotated[str, typer.Option(help="Those of the MCTP modules; as --format without it (gpu).")]
MctpHeadFormat = Annotated[str, typer.Option(help="Head of the MCTP modules: bf16 or fp8 (gpu, torch_cuda).")]
Fp8KvCache = Annotated[bool, typer.Option("--fp8-kv-cache", help="8-bit KV cache; both formats fp8 (gpu).")]
Tp = Annotated[int, typer.Option(help="GPUs that share the model: 1, 2, 4 (gpu).")]
Streams = Annotated[int, typer.Option(help="Most streams at the same time (gpu).")]
StepTokens = Annotated[int, typer.Option(help="Most tokens of one step, all streams together (gpu).")]
Head = Annotated[str, typer.Option(help="Ids of the MCTP head: full, audio, or auto: by the checkpoint's mode (gpu).")]
Candidates = Annotated[int, typer.Option(help="Largest top-k that MCTP modules draw from (gpu).")]
AudioBatch = Annotated[int, typer.Option(help="Windows of one call of an audio engine (gpu).")]
