"""How a torch_cuda engine runs, and what of it fits the model and the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_room import room_bytes
from vita_audio.engines.source import GPU_PREFILL_CHUNK
from vita_audio.engines.torch_cuda.fp8 import rows
from vita_audio.engines.torch_cuda.memory import check_memory, programs_bytes, slot_bytes
from vita_audio.engines.torch_cuda.shapes import Limits
from vita_audio.engines.torch_cuda.weights import Weights


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of an engine.

    Attributes:
        slots: streams that may be open at once.
        context: tokens a slot holds.
        first_mctp_id: MCTP modules emit ids from here on only (the audio-only head); 0 is the full head.
        attention: "split" is the GPU kernel of `split_attention.py`, "rectangle" is PyTorch's own; "auto" takes the
            first on a CUDA device where the GPU language Triton is installed.
        capture: CUDA graphs on a CUDA device; no meaning elsewhere.
        kernels_off: names of `kernels/operations.py` that run as their reference, to find a kernel that is wrong.
        bytes_beside: memory of the GPU that all else of the server takes (`GpuRecord.bytes_beside_slots`).
        folder: of the engines: what is measured on this GPU is kept there. None measures nothing.
    """

    slots: int
    context: int
    first_mctp_id: int = 0
    attention: Literal["auto", "rectangle", "split"] = "auto"
    capture: bool = True
    kernels_off: frozenset[str] = frozenset()
    bytes_beside: int = 0
    folder: Path | None = None

    def check(self, config: LanguageModelConfig, weights: Weights) -> None:
        """Raises EngineError for a setting out of range, or slots that the GPU's free memory does not hold."""
        if self.slots < 1:
            raise EngineError(f"slots is {self.slots}, must be at least 1")
        if not 1 <= self.context <= config.max_position_embeddings:
            raise EngineError(
                f"context is {self.context}, must be 1..{config.max_position_embeddings} (max_position_embeddings)"
            )
        if not 0 <= self.first_mctp_id < config.vocab_size:
            raise EngineError(f"first_mctp_id is {self.first_mctp_id}, must be 0..{config.vocab_size - 1}")
        head_first_id = config.vocab_size - rows(weights.mctp_head)
        if self.first_mctp_id < head_first_id:
            raise EngineError(
                f"first_mctp_id is {self.first_mctp_id}, must be at least {head_first_id}, where the FP8 head of the "
                "MCTP modules begins; build the engines again"
            )
        if weights.embedding.device.type == "cuda":
            room = room_bytes(*torch.cuda.mem_get_info(weights.embedding.device), self.bytes_beside)
            check_memory(self.slots, self.context, *self.memory(config, weights.embedding.element_size()), room)

    def memory(self, config: LanguageModelConfig, element_size: int) -> tuple[int, int]:
        """Device memory in bytes: of one slot, and (estimated) of all programs that are prepared."""
        limits = Limits(self.slots, config.mctp_modules, self.context)
        programs = programs_bytes(config, limits, GPU_PREFILL_CHUNK, element_size)
        return slot_bytes(config, self.context, element_size), programs
