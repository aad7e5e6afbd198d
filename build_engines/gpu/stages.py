"""The stages of `--target gpu`: TensorRT-LLM engines and TensorRT audio engines, or weights for the torch_cuda engine.

Converted checkpoints, which only the builder reads, stay in the builder's hidden folder: a next build takes them up,
and they may be deleted. The stages of torch_cuda were run on an H100, those of TensorRT **not run on a GPU yet**.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from build_engines.gpu.checks import check_gpu, check_gpu_memory, check_host, check_mctp, check_packages
from build_engines.gpu.options import FORMATS, GpuOptions
from build_engines.gpu.plan import language_model_plans, plan_build
from build_engines.gpu.sizes import read_sizes
from build_engines.pipeline import Build, Facts, Stage, load_record, needed_record
from build_engines.stages import (
    checked_facts,
    flow_graphs,
    speech_tokenizer_graph,
    tokenizer_and_limits,
    vocoder_graphs,
    write_manifest,
)
from build_engines.tensorrt_llm.config_file import config_fields
from build_engines.tensorrt_llm.conversion import Converted, Options, convert
from build_engines.tensorrt_llm.formats import FORMATS as LINEAR_FORMATS
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.networks.build import build_engine
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from build_engines.tensorrt_llm.scales import load_scales
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.check import (
    AUDIO_DECODER,
    GENERATION_CONFIG_FILE,
    LANGUAGE_MODEL,
    SPEECH_TOKENIZER,
    TOKENIZER_FILE,
    check_checkpoint,
)
from vita_audio.checkpoint.language_model import language_model_shapes, open_released
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.checkpoint.tensor_file import RankFile
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.gpu_machine import NONE
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA, GpuRecord
from vita_audio.engines.torch.weights import AUDIO_FOLDER, FLOW_FILE, SPEECH_TOKENIZER_FILE, VOCODER_FILE, WEIGHTS_FILE
from vita_audio.text.vocabulary import Vocabulary

MACHINE, CHECK, LIMITS = 1, 2, 3
GRAPHS, CONVERTED = "graphs", "tensorrt_llm"
#: Options that the memory of the GPU depends on.
_MEMORY = ("context_tokens", "gpu.streams", "gpu.step_tokens", "gpu.audio_batch")
_FORMAT = ("gpu.format", "gpu.mctp_format", "gpu.fp8_kv_cache", "gpu.tp", "gpu.head", "scales_sha256")


def gpu_stages(options: GpuOptions) -> tuple[Stage, ...]:
    """The stages that options ask for. Raises EngineError for options that are not valid."""
    options.check()
    first = (
        Stage(MACHINE, "check machine", _check_machine, options=("gpu.engine", *_MEMORY, *_FORMAT), always=True),
        Stage(
            CHECK,
            "check checkpoint",
            _check_checkpoint,
            reads=(LANGUAGE_MODEL, SPEECH_TOKENIZER, AUDIO_DECODER),
        ),
        Stage(
            LIMITS,
            "tokenizer and limits",
            partial(tokenizer_and_limits, checked_by=CHECK),
            reads=(TOKENIZER_FILE, GENERATION_CONFIG_FILE),
            needs=(CHECK,),
            options=("context_tokens", "max_tokens"),
        ),
    )
    middle = _tensorrt_llm_stages() if options.engine == TENSORRT_LLM else _torch_cuda_stages()
    stages = (*first, *middle)
    served = tuple(stage.number for stage in stages if stage.run not in _NOT_SERVED)
    manifest = Stage(
        len(stages) + 1,
        "manifest",
        partial(_manifest, made_by=served),
        reads=(".",),
        needs=tuple(stage.number for stage in stages),
        options=("gpu.engine", "gpu.candidates", *_MEMORY, *_FORMAT),
    )
    return (*stages, manifest)


def _tensorrt_llm_stages() -> Sequence[Stage]:
    limits, model, before = ("gpu.streams", "gpu.step_tokens", "gpu.candidates"), (LANGUAGE_MODEL,), (MACHINE, LIMITS)
    return (
        Stage(4, "convert backbone", _convert_backbone, reads=model, needs=(CHECK,), options=_FORMAT),
        Stage(5, "convert MCTP", _convert_mctp, reads=model, needs=(CHECK,), options=_FORMAT),
        Stage(6, "backbone engine", partial(_engine, part=Part.BACKBONE), model, (*before, 4), limits),
        Stage(7, "MCTP engine", partial(_engine, part=Part.MCTP), model, (*before, 5), limits),
        Stage(8, "speech tokenizer graph", _speech_tokenizer, reads=(SPEECH_TOKENIZER,)),
        Stage(9, "flow graphs", _flow, reads=(AUDIO_DECODER,)),
        Stage(10, "vocoder graphs", _vocoder, reads=(AUDIO_DECODER,)),
        Stage(11, "audio engines", _audio_engines, needs=(MACHINE, 8, 9, 10), options=("gpu.audio_batch",)),
    )


def _torch_cuda_stages() -> Sequence[Stage]:
    return (
        Stage(4, "language model weights", _language_model_weights, reads=(LANGUAGE_MODEL,), needs=(CHECK,)),
        Stage(5, "audio weights", _audio_weights, reads=(SPEECH_TOKENIZER, AUDIO_DECODER), needs=(CHECK,)),
    )


def _check_machine(build: Build, folder: Path) -> Facts:
    """Nothing here is slow: it comes before everything else and runs each time."""
    options, machine = build.gpu, build.machine
    check_packages(options, machine)
    check_gpu(options, machine)
    sizes = read_sizes(build.checkpoint)
    check_mctp(sizes, options)
    network_options(build, sizes.language_model.max_position_embeddings)
    plan = plan_build(sizes, options, build.context_tokens)
    check_gpu_memory(plan, machine)
    if options.engine == TENSORRT_LLM:
        load_scales(options.scales, language_model_plans(sizes, options).values())  # there, and complete
    made = {name for number, name in _made(options) if load_record(build, number) is not None}
    check_host(plan, build.out, made)
    gpu = machine.gpus[0]
    facts = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "container": machine.container}
    if options.engine == TENSORRT_LLM:
        facts |= {"tensorrt": machine.tensorrt, "tensorrt_llm": machine.tensorrt_llm}
    return facts


def _made(options: GpuOptions) -> Sequence[tuple[int, str]]:
    """Number of a stage, and what it writes in the plan's words."""
    if options.engine == TORCH_CUDA:
        return ((4, "language_model/weights.safetensors"),)
    return (
        (4, "converted backbone"),
        (5, "converted mctp"),
        (6, "language_model/backbone"),
        (7, "language_model/mctp"),
    )


def _check_checkpoint(build: Build, folder: Path) -> Facts:
    return checked_facts(check_checkpoint(build.checkpoint, lambda path: open_released(path).config))


def converted(build: Build, part: Part) -> Converted:
    """A part as a TensorRT-LLM checkpoint; made if it is not there, or of another input."""
    checked = needed_record(build, CHECK).facts
    pattern, text_tokens = checked["default_pattern"], checked["vocabulary"]["text_tokens"]
    formats = {part: LINEAR_FORMATS[FORMATS[name]] for part, name in zip(Part, build.gpu.formats, strict=True)}
    options = Options(
        (part,),
        tp=build.gpu.tp,
        formats=formats,
        fp8_kv_cache=build.gpu.fp8_kv_cache,
        scales=build.gpu.scales,
        head_first_id=build.gpu.head_first_id(pattern, text_tokens),
    )
    (made,) = convert(build.checkpoint / LANGUAGE_MODEL, build.work / CONVERTED, options)
    return made


def _convert_backbone(build: Build, folder: Path) -> Facts:
    return {"config": config_fields(converted(build, Part.BACKBONE).plan)}


def _convert_mctp(build: Build, folder: Path) -> Facts:
    return {"config": config_fields(converted(build, Part.MCTP).plan)}


def _engine(build: Build, folder: Path, part: Part) -> Facts:
    """One TensorRT-LLM engine: all ranks, one after the other."""
    made = converted(build, part)
    limits = needed_record(build, LIMITS).facts["limits"]
    options = network_options(build, limits["context_tokens"], banned_ids(build))
    out = folder / LANGUAGE_MODEL / part.value
    out.mkdir(parents=True)
    for rank in range(build.gpu.tp):
        build_engine(part.value, made.folder, out, options, rank)
    return {}


def network_options(build: Build, positions: int, banned: tuple[int, ...] = ()) -> NetworkOptions:
    """What both engines are built for; `positions` bounds a stream. Raises EngineError for values out of range."""
    return NetworkOptions(
        max_batch_size=build.gpu.streams,
        max_seq_len=min(build.context_tokens, positions),
        max_num_tokens=build.gpu.step_tokens,
        candidates=build.gpu.candidates,
        banned_ids=banned,
    )


def _speech_tokenizer(build: Build, folder: Path) -> Facts:
    return speech_tokenizer_graph(build, folder / GRAPHS)


def _flow(build: Build, folder: Path) -> Facts:
    return flow_graphs(build, folder / GRAPHS)


def _vocoder(build: Build, folder: Path) -> Facts:
    return vocoder_graphs(build, folder / GRAPHS)


def _audio_engines(build: Build, folder: Path) -> Facts:
    from build_engines.tensorrt_audio.build import (
        build_audio_engines,  # needs onnx, which torch_cuda engines do without
    )

    build_audio_engines(build.out / GRAPHS, folder / AUDIO_FOLDER, DecoderConfig(), build.gpu.audio_batch)
    return {}


def _language_model_weights(build: Build, folder: Path) -> Facts:
    """bfloat16, tensor by tensor: never more than one in memory."""
    source = open_released(build.checkpoint / LANGUAGE_MODEL)
    shapes = language_model_shapes(source.config)
    path = folder / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    with RankFile(path, {key: (shape, torch.bfloat16) for key, shape in shapes.items()}) as file:
        for key in shapes:
            file.write(key, source.read(key).to(torch.bfloat16))
    return {}


def _audio_weights(build: Build, folder: Path) -> Facts:
    """float32, under the names of our modules."""
    (folder / AUDIO_FOLDER).mkdir(parents=True)
    for name, tensors in (
        (SPEECH_TOKENIZER_FILE, load_speech_tokenizer(build.checkpoint / SPEECH_TOKENIZER)[1]),
        (FLOW_FILE, load_flow(build.checkpoint / AUDIO_DECODER)[1]),
        (VOCODER_FILE, load_vocoder(build.checkpoint / AUDIO_DECODER)[1]),
    ):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        (folder / name).chmod(0o644)  # safetensors makes it private to this user; a server may be another
    return {}


def banned_ids(build: Build) -> tuple[int, ...]:
    """Ids that must never come out."""
    return _banned_ids(needed_record(build, CHECK).facts)


def _banned_ids(checked: Facts) -> tuple[int, ...]:
    vocabulary = Vocabulary.from_dict(checked["vocabulary"])
    return tuple(vocabulary.banned_ids(checked["sizes"]["language_model"]["vocab_size"]))


def _manifest(build: Build, folder: Path, made_by: Sequence[int]) -> Facts:
    record = make_record(build, needed_record(build, MACHINE).facts, needed_record(build, CHECK).facts)
    return write_manifest(build, folder, CHECK, LIMITS, made_by, record)


def make_record(build: Build, machine: Facts, checked: Facts) -> GpuRecord:
    """What the engines are built for: facts of the machine and of the checked bundle, and options."""
    options = build.gpu
    first_id = options.head_first_id(checked["default_pattern"], checked["vocabulary"]["text_tokens"])
    rows = checked["sizes"]["language_model"]["vocab_size"] - first_id
    return GpuRecord(
        engine=options.engine,
        gpu=machine["gpu"],
        compute_capability=machine["compute_capability"],
        tensorrt=machine.get("tensorrt", NONE),
        tensorrt_llm=machine.get("tensorrt_llm", NONE),
        container=machine["container"],
        options={"format": options.formats[0], "mctp_format": options.formats[1]}
        | {name: asdict(options)[name] for name in ("fp8_kv_cache", "head")}
        | {"scales_sha256": build.scales_sha256},
        tp=options.tp,
        max_streams=options.streams,
        max_num_tokens=options.step_tokens,
        audio_max_batch=options.audio_batch,
        candidates=min(options.candidates, rows),
        head_first_id=first_id,
        banned_ids=_banned_ids(checked),
    )


#: Stages whose files, if any, only the builder reads.
_NOT_SERVED = (_check_machine, _check_checkpoint, _convert_backbone, _convert_mctp, _speech_tokenizer, _flow, _vocoder)
