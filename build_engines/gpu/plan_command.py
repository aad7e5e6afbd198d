"""python -m build_engines plan: what a GPU build would make, what it would take, how many streams would fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engines.gpu import flags
from build_engines.gpu.options import GpuOptions
from vita_audio.contract.errors import VitaError

if TYPE_CHECKING:
    from build_engines.gpu.plan import GpuPlan

GIB = 1 << 30
#: GiB of common GPUs (24, 48, 80, 141, 180 GB as sold), less what their drivers keep.
COMMON_GIB = (22.5, 44.5, 79.5, 139.5, 178.0)


def main(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Bundle, language model folder or config.json; no weights needed. Without it: the released 7B."
        ),
    ] = None,
    memory: Annotated[list[float] | None, typer.Option(help="GiB of one GPU (may be repeated).")] = None,
    context_tokens: flags.ContextTokens = 4096,
    engine: flags.Engine = "tensorrt_llm",
    format: flags.Format = "bf16",
    mctp_format: flags.MctpFormat = "",
    fp8_kv_cache: flags.Fp8KvCache = False,
    tp: flags.Tp = 1,
    streams: flags.Streams = 64,
    step_tokens: flags.StepTokens = 2048,
    head: flags.Head = "auto",
    candidates: flags.Candidates = 64,
    audio_batch: flags.AudioBatch = 8,
) -> None:
    """Print what a GPU build would make: files, memory of each GPU, and how many streams fit. Needs no GPU."""
    from build_engines.gpu.checks import check_mctp  # loads PyTorch: not for --help
    from build_engines.gpu.plan import plan_build
    from build_engines.gpu.sizes import read_sizes, released_sizes

    options = GpuOptions(
        engine, format, mctp_format, fp8_kv_cache, None, tp, streams, step_tokens, head, candidates, audio_batch
    )
    try:
        options.check()
        sizes = released_sizes() if checkpoint is None else read_sizes(checkpoint)
        check_mctp(sizes, options)
        plan = plan_build(sizes, options, context_tokens)
    except (VitaError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    formats = " + ".join(dict.fromkeys(options.formats))
    title = f"{sizes.source}: {engine}, {formats}, {tp} GPU(s), {streams} streams of {plan.context} tokens"
    first_id = options.head_first_id(sizes.pattern, sizes.text_tokens)
    notes = [
        f"MCTP head: {f'from id {first_id} on (audio only)' if first_id else 'full'}",
        f"one more stream: {plan.stream / GIB:.3f} GiB; decoder state of a stream on the host: "
        f"{plan.host_stream / 1024:.0f} KiB",
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
