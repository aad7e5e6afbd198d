"""What a folder of GPU engines was built for: a part of its manifest. No PyTorch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vita_audio.engines.gpu_machine import GpuMachine

#: Language model engines of a GPU. The audio engines go with them: TensorRT, or PyTorch.
TENSORRT_LLM, TORCH_CUDA = "tensorrt_llm", "torch_cuda"
ENGINES = (TENSORRT_LLM, TORCH_CUDA)
#: What the engines of a folder are for; "language_model" is backbone and MCTP modules.
STAGES = ("language_model", "speech_tokenizer", "flow", "vocoder")
#: The first GPU generation with bfloat16.
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """Everything about GPU engines that a server has to match.

    Attributes:
        engine: "tensorrt_llm" or "torch_cuda".
        gpu: name of the GPU they were built on.
        compute_capability: of that GPU, as "9.0"; TensorRT engines run on that one only.
        tensorrt, tensorrt_llm: versions that built them, "none" for torch_cuda.
        container: release of the container they were built in.
        options: formats, KV cache and head as they were asked for.
        tp: GPUs that share the model.
        max_streams: streams of one step.
        max_num_tokens: tokens of one step, all streams together.
        audio_max_batch: windows of one call of an audio engine.
        candidates: the largest top-k that is drawn from.
        head_first_id: first id of the MCTP head; 0 is the full head.
        banned_ids: ids that never come out.
        bytes_beside_slots: memory of the GPU for all networks and their buffers, of speech too, but not for slots and
            programs of the language model; by the plan of the build (`build_engines/plan.py`).
    """

    engine: str
    gpu: str
    compute_capability: str
    tensorrt: str
    tensorrt_llm: str
    container: str
    options: dict[str, Any]
    tp: int
    max_streams: int
    max_num_tokens: int
    audio_max_batch: int
    candidates: int
    head_first_id: int
    banned_ids: tuple[int, ...]
    bytes_beside_slots: int

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GpuRecord:
        """Plain data -> record. Raises TypeError or KeyError when a field is missing or unknown."""
        return cls(**{**fields, "banned_ids": tuple(fields["banned_ids"])})

    def unfit_machine(self, machine: GpuMachine) -> str:
        """Why no build of these engines runs on a machine, and what to do; "" where one does."""
        if not machine.gpus:
            found = "there is no GPU here (nvidia-smi lists none)"
        elif tuple(map(int, machine.compute_capability.split("."))) < LEAST_CAPABILITY:
            found = f"{machine.gpus[0].name} has compute capability {machine.compute_capability}, below 8.0"
        else:
            return ""
        elsewhere = " or with --device cpu" if self.engine == TORCH_CUDA else ""
        return f"{self.engine} engines need a GPU and {found}; start on a machine with one{elsewhere}"

    def incompatibilities(self, machine: GpuMachine) -> Iterator[tuple[str, object, str]]:
        """(field, value, what is there instead) of everything for which these engines have to be built again."""
        if self.engine not in ENGINES:
            yield "engine", self.engine, f"this version knows {' and '.join(ENGINES)}"
        if self.engine != TENSORRT_LLM or self.unfit_machine(machine):
            return
        found = machine.compute_capability
        if self.compute_capability != found:
            yield "compute_capability", self.compute_capability, f"{machine.gpus[0].name} has {found}"
        for package in ("tensorrt", "tensorrt_llm"):
            built, installed = getattr(self, package), getattr(machine, package)
            if built != installed:
                yield package, built, f"{installed} is installed"
        if self.container != machine.container:
            yield "container", self.container, f"this is {machine.container}"
        if self.tp != 1:
            yield "tp", self.tp, "this server drives one GPU; build with --tp 1 and serve one replica for each GPU"


def standard_engines(gpu: GpuRecord | None, speech_input: str = "speech_tokenizer") -> dict[str, str]:
    """Stage -> engine family, as the builder makes them for a CPU or beside a GPU's language model.

    Args:
        speech_input: stage that takes speech in.
    """
    stages = [speech_input if stage == "speech_tokenizer" else stage for stage in STAGES]
    if gpu is None:
        return dict.fromkeys(stages, "onnxruntime")
    audio = "tensorrt_audio" if gpu.engine == TENSORRT_LLM else gpu.engine
    return dict(zip(stages, (gpu.engine, *(audio,) * 3), strict=True))
