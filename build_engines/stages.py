"""The numbered stages of each target, and what runs them. A stage's module is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from build_engines.options import GpuOptions
from build_engines.pipeline import GRAPHS, Build, Stage, StageRecord, build_lock, is_done, run_stage, select
from vita_audio.checkpoint.configs import (
    AUDIO_DECODER,
    GENERATION_CONFIG_FILE,
    LANGUAGE_MODEL,
    SENSEVOICE,
    SPEECH_TOKENIZER,
    TOKENIZER_FILE,
)
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_record import TENSORRT_LLM

TARGETS = ("cpu", "gpu")
#: Parts of the checkpoint, and options, that stages depend on.
_CHECKPOINT = (LANGUAGE_MODEL, SPEECH_TOKENIZER, AUDIO_DECODER)
_LANGUAGE_MODEL = (LANGUAGE_MODEL,)
_LIMITS_OF, _LIMITS = (TOKENIZER_FILE, GENERATION_CONFIG_FILE), ("context_tokens", "max_tokens")
#: Options that the memory of the GPU depends on, and those that say how the language model is stored.
_MEMORY = ("context_tokens", "gpu.streams", "gpu.step_tokens", "gpu.audio_batch")
_FORMAT = ("gpu.format", "gpu.mctp_format", "gpu.fp8_kv_cache", "gpu.tp", "gpu.head", "scales_sha256")
_TORCH_CUDA_FORMAT = ("gpu.format", "gpu.mctp_format", "gpu.mctp_head_format", "gpu.head")

CPU_STAGES = (
    Stage(1, "check checkpoint", "build_engines.checked:run", reads=_CHECKPOINT),
    Stage(2, "speech tokenizer", "build_engines.onnxruntime.speech_tokenizer:run", reads=(SPEECH_TOKENIZER,)),
    Stage(3, "language model", "build_engines.onnxruntime.language_model:run", reads=(LANGUAGE_MODEL,)),
    Stage(4, "flow", "build_engines.onnxruntime.flow:run", reads=(AUDIO_DECODER,)),
    Stage(5, "vocoder", "build_engines.onnxruntime.vocoder:run", reads=(AUDIO_DECODER,)),
    Stage(6, "tokenizer and limits", "build_engines.limits:run", _LIMITS_OF, (1,), _LIMITS),
    Stage(
        7,
        "manifest",
        "build_engines.manifest:run",
        reads=(".",),
        needs=(1, 2, 3, 4, 5, 6),
        options=("target", "checkpoint_name", "versions"),
    ),
)
#: In place of stages of the speech tokenizer, in builds of Plus checkpoints: name, module and what it reads.
_SENSEVOICE_STAGES = {
    "speech tokenizer": ("SenseVoice", "build_engines.onnxruntime.sensevoice:run", (LANGUAGE_MODEL,)),
    "speech tokenizer graph": ("SenseVoice graph", "build_engines.onnxruntime.sensevoice:run", (LANGUAGE_MODEL,)),
    "audio weights": ("audio weights", "build_engines.torch_cuda.audio:run_plus", (LANGUAGE_MODEL, AUDIO_DECODER)),
}


def gpu_stages(options: GpuOptions) -> tuple[Stage, ...]:
    """The stages that options ask for. Raises EngineError for options that are not valid."""
    options.check()
    machine = Stage(
        1,
        "check machine",
        "build_engines.machine:run",
        options=("gpu.engine", "gpu.mctp_head_format", *_MEMORY, *_FORMAT),
        always=True,
    )
    checked = Stage(2, "check checkpoint", "build_engines.checked:run", reads=_CHECKPOINT)
    limits = Stage(3, "tokenizer and limits", "build_engines.limits:run", _LIMITS_OF, (2,), _LIMITS)
    made = _TENSORRT_STAGES if options.engine == TENSORRT_LLM else _TORCH_CUDA_STAGES
    before = (machine, checked, limits, *made)
    manifest = Stage(
        len(before) + 1,
        "manifest",
        "build_engines.gpu_manifest:run",
        reads=(".",),
        needs=tuple(stage.number for stage in before),
        options=(
            "target",
            "checkpoint_name",
            "versions",
            "gpu.engine",
            "gpu.candidates",
            "gpu.mctp_head_format",
            *_MEMORY,
            *_FORMAT,
        ),
    )
    return (*before, manifest)


_ENGINE = ("context_tokens", "gpu.streams", "gpu.step_tokens", "gpu.candidates", *_FORMAT)
_TENSORRT_STAGES = (
    Stage(4, "convert backbone", "build_engines.tensorrt_llm.convert:run_backbone", _LANGUAGE_MODEL, (2,), _FORMAT),
    Stage(5, "convert MCTP", "build_engines.tensorrt_llm.convert:run_mctp", _LANGUAGE_MODEL, (2,), _FORMAT),
    Stage(
        6, "backbone engine", "build_engines.tensorrt_llm.engines:run_backbone", _LANGUAGE_MODEL, (1, 2, 3, 4), _ENGINE
    ),
    Stage(7, "MCTP engine", "build_engines.tensorrt_llm.engines:run_mctp", _LANGUAGE_MODEL, (1, 2, 3, 5), _ENGINE),
    Stage(
        8,
        "speech tokenizer graph",
        "build_engines.onnxruntime.speech_tokenizer:run_whole",
        reads=(SPEECH_TOKENIZER,),
        into=GRAPHS,
    ),
    Stage(9, "flow graphs", "build_engines.onnxruntime.flow:run", reads=(AUDIO_DECODER,), into=GRAPHS),
    Stage(10, "vocoder graphs", "build_engines.onnxruntime.vocoder:run", reads=(AUDIO_DECODER,), into=GRAPHS),
    Stage(
        11,
        "audio engines",
        "build_engines.tensorrt_audio.build:run",
        needs=(1, 8, 9, 10),
        options=("gpu.audio_batch",),
    ),
)
_TORCH_CUDA_STAGES = (
    Stage(
        4,
        "language model weights",
        "build_engines.torch_cuda.language_model:run",
        _LANGUAGE_MODEL,
        (2,),
        _TORCH_CUDA_FORMAT,
    ),
    Stage(5, "audio weights", "build_engines.torch_cuda.audio:run", reads=(SPEECH_TOKENIZER, AUDIO_DECODER)),
)


def stages_of(build: Build) -> Sequence[Stage]:
    """The stages of a build's target, for its checkpoint's speech input.

    Raises:
        EngineError: an unknown target, or options that do not belong to it.
    """
    if build.target not in TARGETS:
        raise EngineError(f"--target: {build.target!r} is not valid: choose one of {', '.join(TARGETS)}")
    if build.target == "gpu":
        return _for_speech_input(build, gpu_stages(build.gpu))
    default = GpuOptions()
    for option in (each.name for each in fields(GpuOptions)):
        if getattr(build.gpu, option) != getattr(default, option):
            flag = f"--{option.replace('_', '-')}"
            raise EngineError(f"{flag}: belongs to --target gpu, not to --target cpu; leave it out")
    return _for_speech_input(build, CPU_STAGES)


def _for_speech_input(build: Build, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Stages of a base checkpoint, or those for a Plus checkpoint."""
    if build.speech_input != SENSEVOICE:
        return stages
    made = []
    for stage in stages:
        name, run, reads = _SENSEVOICE_STAGES.get(stage.name, (stage.name, stage.run, stage.reads))
        made.append(replace(stage, name=name, run=run, reads=reads))
    return tuple(made)


def run_build(
    build: Build,
    numbers: Sequence[int] = (),
    force: bool = False,
    on_start: Callable[[Stage], None] = lambda stage: None,
    on_end: Callable[[Stage, StageRecord | None], None] = lambda stage, record: None,
) -> None:
    """Run the stages that are not done, or those named.

    Args:
        build: from what, where to.
        numbers: only these stages; all when empty.
        force: run them even if nothing changed.
        on_start, on_end: called around each stage; the record is None when it was skipped as unchanged.

    Raises:
        CheckpointError, EngineError: what is wrong, in one line; finished stages stay finished.
    """
    chosen = select(stages_of(build), numbers)
    with build_lock(build):
        for stage in chosen:
            on_start(stage)
            on_end(stage, None if is_done(build, stage) and not force else run_stage(build, stage))
