"""The seven stages that turn a checkpoint bundle into the engines of a CPU server, and what runs stages of any target.

Exporters are imported where they run: a GPU build does not need all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from build_engines.gpu.options import GpuOptions
from build_engines.pipeline import (
    Build,
    Facts,
    Stage,
    StageRecord,
    build_lock,
    is_done,
    needed_record,
    run_stage,
    select,
)
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.check import (
    AUDIO_DECODER,
    GENERATION_CONFIG_FILE,
    LANGUAGE_MODEL,
    SPEECH_TOKENIZER,
    TOKENIZER_FILE,
    CheckpointSizes,
    check_checkpoint,
)
from vita_audio.checkpoint.file_records import FileRecord, combined_sha256
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.engines.gpu_record import GpuRecord
from vita_audio.engines.manifest import MANIFEST, Manifest
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder
from vita_audio.text.vocabulary import Vocabulary

#: Answer tokens when a request names no MAX_TOKENS: about 45 s of speech in the boost mode.
DEFAULT_MAX_TOKENS = 1024


def checked_facts(found: CheckpointSizes) -> Facts:
    """What later stages need to know of a checked bundle."""
    return {
        "sizes": found.sizes(),
        "vocabulary": found.vocabulary.to_dict(),
        "default_pattern": list(found.default_pattern),
        "samples": found.samples,
        "repetition_penalty": found.repetition_penalty,
    }


def _check(build: Build, folder: Path) -> Facts:
    return checked_facts(check_checkpoint(build.checkpoint))


def speech_tokenizer_graph(build: Build, folder: Path) -> Facts:
    from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer

    config, tensors = load_speech_tokenizer(build.checkpoint / SPEECH_TOKENIZER)
    model = SpeechTokenizer(config).eval()
    model.load_state_dict(tensors)
    export_speech_tokenizer(model, folder)
    return {}


def _language_model(build: Build, folder: Path) -> Facts:
    from build_engines.onnxruntime.language_model import export_language_model

    config, tensors = load_language_model(build.checkpoint / LANGUAGE_MODEL)
    vocabulary = Vocabulary.from_tokenizer(build.checkpoint / TOKENIZER_FILE)
    banned = vocabulary.banned_ids(config.vocab_size)
    export_language_model(config, tensors, folder / LANGUAGE_MODEL, banned_ids=banned)
    return {}


def flow_graphs(build: Build, folder: Path) -> Facts:
    from build_engines.onnxruntime.flow import export_flow

    config, tensors = load_flow(build.checkpoint / AUDIO_DECODER)
    model = Flow(config).eval()
    model.load_state_dict(tensors)
    export_flow(model, folder)
    return {}


def vocoder_graphs(build: Build, folder: Path) -> Facts:
    from build_engines.onnxruntime.vocoder import export_vocoder

    config, tensors = load_vocoder(build.checkpoint / AUDIO_DECODER)
    model = Vocoder(config).eval()
    model.load_state_dict(tensors)
    export_vocoder(model, folder)
    return {}


def tokenizer_and_limits(build: Build, folder: Path, checked_by: int = 1) -> Facts:
    """`checked_by`: number of the stage that checked the checkpoint."""
    shutil.copyfile(build.checkpoint / TOKENIZER_FILE, folder / "tokenizer.json")
    return {"limits": make_limits(build, needed_record(build, checked_by).facts).to_dict()}


def make_limits(build: Build, checked: Facts) -> Limits:
    """What the engines will serve of a checked bundle. Raises EngineError for options out of range."""
    sizes = checked["sizes"]["language_model"]
    for option in ("context_tokens", "max_tokens"):
        if getattr(build, option) < 1:
            raise EngineError(f"--{option.replace('_', '-')}: {getattr(build, option)} is not valid: at least 1")
    context = min(build.context_tokens, sizes["max_position_embeddings"])
    most = min(build.max_tokens, context)
    return Limits(
        context_tokens=context,
        max_tokens=most,
        default_max_tokens=min(DEFAULT_MAX_TOKENS, most),
        mctp_modules=sizes["num_nextn_predict_layers"],
        default_pattern=tuple(checked["default_pattern"]),
        tts_samples=checked["samples"],
        repetition_penalty=checked["repetition_penalty"],
    )


def write_manifest(
    build: Build, folder: Path, checked_by: int, limits_by: int, made_by: Sequence[int], gpu: GpuRecord | None = None
) -> Facts:
    """manifest.json over the files of earlier stages.

    Args:
        checked_by, limits_by: numbers of the stages that checked the checkpoint and fixed the limits.
        made_by: numbers of the stages whose files are the engines.
        gpu: what GPU engines were built for.

    Raises:
        EngineError: a stage has not run, or a file is not as its stage made it.
    """
    checked = needed_record(build, checked_by).facts
    files = {}
    for number in made_by:
        for name, sha256 in needed_record(build, number).files.items():
            file = build.out / name
            if not file.is_file() or build.sha256(file) != sha256:
                raise EngineError(f"{file}: changed or gone since stage {number} made it: run --stage {number}")
            files[name] = FileRecord(sha256, file.stat().st_size)
    manifest = Manifest(
        target=build.target,
        checkpoint_name=build.checkpoint.resolve().name,
        checkpoint_sha256=combined_sha256(build.checkpoint_files),
        versions=build.versions,
        sizes=checked["sizes"],
        vocabulary=Vocabulary.from_dict(checked["vocabulary"]),
        limits=Limits.from_dict(needed_record(build, limits_by).facts["limits"]),
        files=files,
        gpu=gpu,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return {}


CPU_STAGES = (
    Stage(1, "check checkpoint", _check, reads=(LANGUAGE_MODEL, SPEECH_TOKENIZER, AUDIO_DECODER)),
    Stage(2, "speech tokenizer", speech_tokenizer_graph, reads=(SPEECH_TOKENIZER,)),
    Stage(3, "language model", _language_model, reads=(LANGUAGE_MODEL,)),
    Stage(4, "flow", flow_graphs, reads=(AUDIO_DECODER,)),
    Stage(5, "vocoder", vocoder_graphs, reads=(AUDIO_DECODER,)),
    Stage(
        6,
        "tokenizer and limits",
        tokenizer_and_limits,
        reads=(TOKENIZER_FILE, GENERATION_CONFIG_FILE),
        needs=(1,),
        options=("context_tokens", "max_tokens"),
    ),
    Stage(
        7,
        "manifest",
        partial(write_manifest, checked_by=1, limits_by=6, made_by=range(1, 7)),
        reads=(".",),
        needs=(1, 2, 3, 4, 5, 6),
    ),
)

TARGETS = ("cpu", "gpu")


def stages_of(build: Build) -> Sequence[Stage]:
    """The stages of a build's target. Raises EngineError for an unknown one, or options that do not belong to it."""
    if build.target not in TARGETS:
        raise EngineError(f"--target: {build.target!r} is not valid: choose one of {', '.join(TARGETS)}")
    if build.target == "gpu":
        from build_engines.gpu.stages import gpu_stages

        return gpu_stages(build.gpu)
    if build.gpu != GpuOptions():
        default = GpuOptions()
        given = next(f.name for f in fields(GpuOptions) if getattr(build.gpu, f.name) != getattr(default, f.name))
        raise EngineError(f"--{given.replace('_', '-')}: belongs to --target gpu, not to --target cpu; leave it out")
    return CPU_STAGES


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
