"""Arithmetic of a GPU build: files it writes, memory of each GPU and how many streams fit, from sizes alone.

    python -m build_engines plan --checkpoint DIR --format fp8 --streams 64

Weights are counted tensor by tensor, as they are written; keys, values and buffers of streams as the engines allocate
them (`vita_audio/engines/tensorrt_llm/memory.py`). The rest, which only a GPU can tell, is one stated reserve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engines import options as flags
from build_engines.audio_memory import (
    audio_buffers,
    audio_weights,
    captured_bytes,
    decoder_bytes_per_stream,
    decoder_streams_bytes,
    encoder_bytes,
    longest_clip,
)
from build_engines.command import errors_reported
from build_engines.options import GpuOptions
from build_engines.sizes import Sizes, read_sizes, released_sizes
from build_engines.tensorrt_llm.formats import FORMATS
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.networks.options import TOKENS_PER_BLOCK
from build_engines.tensorrt_llm.plan import Plan
from build_engines.torch_cuda.formats import Fp8Parts, outline
from vita_audio.checkpoint.sizes import SpeechInput
from vita_audio.checkpoint.tensor_file import Outline
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA
from vita_audio.engines.source import GPU_PREFILL_CHUNK
from vita_audio.engines.tensorrt_llm.memory import PoolSizes
from vita_audio.engines.torch_cuda.memory import SLOTS_SHARE, programs_bytes, prompt_rows_bytes, slot_bytes
from vita_audio.engines.torch_cuda.shapes import Limits

GIB = 1 << 30
#: GiB of common GPUs (24, 48, 80, 141, 180 GB as sold), less what their drivers keep.
COMMON_GIB = (22.5, 44.5, 79.5, 139.5, 178.0)
#: TensorRT-LLM: assumed, not measured: contexts of three processes (about 0.5 GiB each), kernels, workspaces, graphs of
#: the audio.
RESERVE_BYTES = 3 * GIB
#: torch_cuda, beyond all that is counted: three contexts, pools of the audio graphs, workspaces. Measured with a 7B and
#: 64 slots on an H100, before speech had states: 7.2 GiB with 0.8 of programs and what `audio_buffers` counts, of which
#: `SLOTS_SHARE` leaves 2.3.
TORCH_CUDA_RESERVE_BYTES = 2 * GIB
#: Assumed: a TensorRT build holds the weights it read, the network's copy and the serialised engine.
BUILD_COPIES = 3
_PROGRAMS = "programs"


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What a build makes and what serving it takes. All in bytes.

    Attributes:
        files: what lies in the engines folder, in the order it is written.
        scratch: what the build keeps beside it for a next run, and may be deleted.
        weights: in the memory of each GPU.
        buffers: of steps and of captured audio calls, in the memory of each GPU, for `streams`.
        stream_buffers: what one more stream adds to `buffers`; programs, which grow in steps, left out.
        reserve: assumed for all that cannot be computed.
        stream: of one stream of `context` tokens, on each GPU.
        stream_share: of the memory that weights, buffers and reserve leave, for streams.
        host_build: memory of this machine that the build takes at most.
    """

    streams: int
    context: int
    files: dict[str, int]
    scratch: dict[str, int]
    weights: dict[str, int]
    buffers: dict[str, int]
    stream_buffers: int
    reserve: int
    stream: int
    stream_share: float
    host_build: int

    @property
    def beside_slots(self) -> int:
        """Memory of each GPU for networks and buffers, without the programs, which a language model counts itself.

        With the reserve, where streams may have all that is left.
        """
        reserve = self.reserve if self.stream_share == 1.0 else 0
        return sum(self.weights.values()) + sum(self.buffers.values()) - self.buffers.get(_PROGRAMS, 0) + reserve

    @property
    def fixed(self) -> int:
        """Memory of each GPU before the first stream."""
        return sum(self.weights.values()) + sum(self.buffers.values()) + self.reserve

    @property
    def total(self) -> int:
        """Memory of each GPU with all streams."""
        return self.fixed + int(self.streams * self.stream / self.stream_share)

    @property
    def disk(self) -> int:
        return sum(self.files.values()) + sum(self.scratch.values())

    def streams_that_fit(self, memory: int) -> int:
        """Streams of `context` tokens on GPUs of `memory` bytes; 0 when not even the weights and one stream fit."""
        room = memory - self.fixed + self.streams * self.stream_buffers
        return int(max(0, room) / (self.stream / self.stream_share + self.stream_buffers))

    def check_fit(self, memory: int, where: str) -> None:
        """Raises EngineError, with the number of streams that do fit, when the asked ones do not."""
        fit = self.streams_that_fit(memory)
        if fit < self.streams:
            remedy = "ask for fewer or shorter ones" if fit else "weights and buffers alone are too large"
            raise EngineError(
                f"--streams: {self.streams} streams of {self.context} tokens need {_gib(self.total)} "
                f"({_gib(sum(self.weights.values()))} of them weights), {where} has {_gib(memory)}; {fit} fit: "
                f"{remedy} (--streams, --context-tokens), or take a smaller --format or a larger GPU"
            )


def plan_build(sizes: Sizes, options: GpuOptions, context: int) -> GpuPlan:
    """Files and memory of a build.

    Args:
        sizes: of the checkpoint.
        options: checked ones.
        context: tokens of a stream; more than the model has positions are cut.

    Raises:
        EngineError, CheckpointError: the options do not fit the sizes.
    """
    context = min(context, sizes.language_model.max_position_embeddings)
    if options.engine == TENSORRT_LLM:
        return _plan_tensorrt_llm(sizes, options, context)
    return _plan_torch_cuda(sizes, options, context)


def check_mctp(sizes: Sizes, options: GpuOptions) -> None:
    """Do the options fit the model's K MCTP modules and its head?

    Raises:
        CheckpointError: an MCTP engine is asked for and K = 0.
        EngineError: a step takes fewer tokens than one burst begins with, or the head is too small.
    """
    rows = sizes.language_model.mctp_modules + 1  # that the scheduler needs of a prompt to begin a cascade
    if options.step_tokens < rows:
        raise EngineError(f"--step-tokens: {options.step_tokens} is not valid: at least K + 1 = {rows}")
    if options.engine == TENSORRT_LLM and not sizes.language_model.mctp_modules:
        raise CheckpointError(
            f"{sizes.source}: num_nextn_predict_layers is 0: there are no MCTP modules for an MCTP engine; "
            f"--engine {TORCH_CUDA} serves it (mode vanilla)"
        )
    rows = sizes.language_model.vocab_size - options.head_first_id(sizes.pattern, sizes.text_tokens)
    if options.engine == TENSORRT_LLM and rows < options.candidates:
        raise EngineError(f"--candidates: {options.candidates} is not valid: the MCTP head has {rows} rows")


def _check_figures(context_tokens: int, memory: Iterable[float]) -> None:
    """Raises EngineError for a length that no build takes, or a size that no GPU has."""
    if context_tokens < TOKENS_PER_BLOCK:
        raise EngineError(f"--context-tokens: {context_tokens} is not valid: at least {TOKENS_PER_BLOCK}")
    for gib in memory:
        if not 0 < gib < inf:
            raise EngineError(f"--memory: {gib:g} is not valid: a finite number of GiB above 0")


def language_model_plans(sizes: Sizes, options: GpuOptions) -> dict[Part, Plan]:
    """What the conversion will write, checked."""
    plans = {}
    first = options.head_first_id(sizes.pattern, sizes.text_tokens)
    for part in Part:
        form = FORMATS[options.quantisations[part.value]]
        head = first if part is Part.MCTP else 0
        plans[part] = Plan(part, sizes.language_model, "bfloat16", options.tp, form, options.fp8_kv_cache, head)
        plans[part].check()
    return plans


def _plan_tensorrt_llm(sizes: Sizes, options: GpuOptions, context: int) -> GpuPlan:
    config = sizes.language_model
    plans = language_model_plans(sizes, options)
    ranks = {part: max(map(_outline_bytes, plan.outline)) for part, plan in plans.items()}
    converted = {part: plan.bytes for part, plan in plans.items()}
    audio = audio_weights(sizes)
    kv_bytes = 1 if options.fp8_kv_cache else 2
    pool = PoolSizes(config, kv_bytes=kv_bytes, tensor_parallel=options.tp)
    rows = options.step_tokens
    logits = 4 * (config.vocab_size - plans[Part.MCTP].head_first_id)
    return GpuPlan(
        streams=options.streams,
        context=context,
        files={f"language_model/{part.value}": count for part, count in converted.items()}
        | {f"graphs ({name})": count for name, count in audio.items()}
        | {f"audio engine ({name})": count for name, count in audio.items()},
        scratch={f"converted {part.value}": count for part, count in converted.items()},
        weights={part.value: count for part, count in ranks.items()} | audio,
        buffers={
            "hidden states of a step": 2 * rows * config.hidden_size,
            **({"prompt table": 2 * rows * config.hidden_size} if sizes.sensevoice else {}),
            "activations of a step": 2 * rows * _widest_row(sizes, options),  # of a layer and of the one before it
            "MCTP logits": options.streams * logits,
            "decoder streams": decoder_streams_bytes(sizes, options.streams),
            "captured audio calls": captured_bytes(sizes, options.audio_batch),
            **encoder_bytes(sizes, longest_clip(context)),
        },
        stream_buffers=decoder_bytes_per_stream(sizes) + logits,
        reserve=RESERVE_BYTES,
        stream=pool.bytes_per_stream(context),
        stream_share=1.0,
        host_build=BUILD_COPIES * max(ranks.values()),
    )


def _plan_torch_cuda(sizes: Sizes, options: GpuOptions, context: int) -> GpuPlan:
    config = sizes.language_model
    parts = Fp8Parts.of(options, options.head_first_id(sizes.pattern, sizes.text_tokens))
    tensors = outline(config, parts)
    stored = _outline_bytes(tensors)
    audio = audio_weights(sizes)
    # FP8 is computed in float32.
    largest = max(prod(shape) * (2 if dtype == torch.bfloat16 else 4) for shape, dtype in tensors.values())
    limits = Limits(options.streams, config.mctp_modules, context)
    chunk = min(GPU_PREFILL_CHUNK, options.step_tokens)
    return GpuPlan(
        streams=options.streams,
        context=context,
        files={"language_model/weights.safetensors": stored}
        | {f"audio/{name}": count for name, count in audio.items()},
        scratch={},
        weights={"language model": stored} | audio,
        buffers={
            "padding rows": slot_bytes(config, 1, 2),
            _PROGRAMS: programs_bytes(config, limits, chunk, 2),
            **({"prompt rows": prompt_rows_bytes(config, limits, chunk, 2)} if sizes.sensevoice else {}),
            **audio_buffers(sizes, options.streams, options.audio_batch, context),
        },
        stream_buffers=decoder_bytes_per_stream(sizes),
        reserve=TORCH_CUDA_RESERVE_BYTES,
        stream=slot_bytes(config, context, 2),
        stream_share=SLOTS_SHARE,
        host_build=BUILD_COPIES * max(largest, *audio.values()),
    )


def _widest_row(sizes: Sizes, options: GpuOptions) -> int:
    """Bytes of a row where a decoder layer is widest: residual, norm, both halves of the MLP; two bytes each."""
    config = sizes.language_model
    return 2 * (2 * config.hidden_size + 2 * -(-config.intermediate_size // options.tp))


def _outline_bytes(tensors: Outline) -> int:
    return sum(prod(shape) * dtype.itemsize for shape, dtype in tensors.values())


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def main(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Bundle, language model folder or config.json; no weights needed. Without it: the released 7B."
        ),
    ] = None,
    speech_input: Annotated[
        SpeechInput, typer.Option(help="Of the released 7B, without --checkpoint; sensevoice is the Plus variant.")
    ] = SpeechInput.speech_tokenizer,
    memory: Annotated[list[float] | None, typer.Option(help="GiB of one GPU (may be repeated).")] = None,
    context_tokens: flags.ContextTokens = 4096,
    engine: flags.Engine = "torch_cuda",
    format: flags.Format = "bf16",
    mctp_format: flags.MctpFormat = "",
    mctp_head_format: flags.MctpHeadFormat = "bf16",
    fp8_kv_cache: flags.Fp8KvCache = False,
    tp: flags.Tp = 1,
    streams: flags.Streams = 64,
    step_tokens: flags.StepTokens = 2048,
    head: flags.Head = "auto",
    candidates: flags.Candidates = 64,
    audio_batch: flags.AudioBatch = 8,
) -> None:
    """Print what a GPU build would make: files, memory of each GPU, and how many streams fit. Needs no GPU."""
    options = GpuOptions(
        engine,
        format,
        mctp_format,
        fp8_kv_cache,
        None,
        tp,
        streams,
        step_tokens,
        head,
        candidates,
        audio_batch,
        mctp_head_format,
    )
    with errors_reported():
        options.check()
        _check_figures(context_tokens, memory or ())
        if checkpoint is not None and speech_input != SpeechInput.speech_tokenizer:
            raise EngineError("--speech-input: --checkpoint says it; leave it out")
        sizes = released_sizes(speech_input.value) if checkpoint is None else read_sizes(checkpoint)
        check_mctp(sizes, options)
        plan = plan_build(sizes, options, context_tokens)
    formats = " + ".join(dict.fromkeys(options.formats))
    if options.mctp_head_format != "bf16":
        formats += f", MCTP head {options.mctp_head_format}"
    title = f"{sizes.source}: {engine}, {formats}, {tp} GPU(s), {streams} streams of {plan.context} tokens"
    first_id = options.head_first_id(sizes.pattern, sizes.text_tokens)
    notes = [
        f"MCTP head: {f'from id {first_id} on (audio only)' if first_id else 'full'}",
        f"one more stream: {plan.stream / GIB:.3f} GiB",
        f"building: {plan.disk / GIB:.1f} GiB of disk, up to {plan.host_build / GIB:.0f} GiB of memory (assumed)",
    ]
    if tp > 1:
        notes.append("the server drives one GPU: engines for more are built, but not served (docs/gpu.md)")
    console = Console(highlight=False, soft_wrap=True)
    console.print(title, markup=False)
    console.print(_files(plan), _memory(plan), _fit(plan, memory or COMMON_GIB))
    for note in notes:
        console.print(note, markup=False)
    console.print("all from arithmetic; not measured", markup=False)


def _files(plan: GpuPlan) -> Table:
    table = Table("written", "GiB")
    for name, count in (plan.files | plan.scratch).items():
        table.add_row(escape(name), f"{count / GIB:.2f}")
    return table


def _memory(plan: GpuPlan) -> Table:
    table = Table("memory of each GPU", "GiB")
    for name, count in plan.weights.items():
        table.add_row(f"weights: {name}", f"{count / GIB:.2f}")
    for name, count in plan.buffers.items():
        table.add_row(name, f"{count / GIB:.2f}")
    table.add_row("all else (assumed)", f"{plan.reserve / GIB:.2f}")
    table.add_row(f"{plan.streams} streams", f"{(plan.total - plan.fixed) / GIB:.2f}")
    table.add_row("sum", f"{plan.total / GIB:.2f}")
    return table


def _fit(plan: GpuPlan, memory: Iterable[float]) -> Table:
    table = Table("GPU of GiB", "streams that fit")
    for gib in memory:
        table.add_row(f"{gib:g}", str(plan.streams_that_fit(int(gib * GIB))))
    return table
