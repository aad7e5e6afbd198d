"""Build engines from a checkpoint, or plan a GPU build.

python -m build_engines --checkpoint DIR --target cpu --out engines/cpu
python -m build_engines plan --checkpoint DIR --format fp8 --streams 64
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engines import options as flags
from build_engines.options import GpuOptions
from build_engines.pipeline import Build, Stage, StageRecord, is_done, load_record
from build_engines.stages import run_build, stages_of
from vita_audio.contract.errors import VitaError

_out, _error = Console(highlight=False), Console(stderr=True, highlight=False)


class _Progress:
    """One line for each stage, with a spinner while it runs."""

    def __init__(self, build: Build, stages: int) -> None:
        self._build, self._stages = build, stages
        self._status = _out.status("")
        self._start = 0.0

    def started(self, stage: Stage) -> None:
        self._start = time.monotonic()
        self._status.update(escape(self._label(stage)))
        self._status.start()

    def ended(self, stage: Stage, record: StageRecord | None) -> None:
        self._status.stop()
        words = "unchanged"
        if record is not None:
            made = _made(self._build, record)
            words = f"{time.monotonic() - self._start:.1f} s" + (f", {made}" if made else "")
        _out.print(f"{self._label(stage)}: {words}", markup=False, soft_wrap=True)

    def stop(self) -> None:
        self._status.stop()

    def _label(self, stage: Stage) -> str:
        return f"[{stage.number}/{self._stages}] {stage.name}"


def _made(build: Build, record: StageRecord) -> str:
    """Names and total size of the files of a stage."""
    size = sum((build.out / name).stat().st_size for name in record.files)
    return f"{', '.join(record.files)} ({size / 1e6:.1f} MB)" if record.files else ""


def _table(build: Build, stages: Sequence[Stage]) -> Table:
    """What is done and what is to do."""
    table = Table("stage", "name", "state", "files", title=f"{build.checkpoint} -> {build.out}")
    for stage in stages:
        record = load_record(build, stage.number) if is_done(build, stage) else None
        table.add_row(
            str(stage.number), stage.name, "done" if record else "to do", _made(build, record) if record else ""
        )
    return table


def main(
    checkpoint: Annotated[Path, typer.Option(help="Bundle with language_model/, speech_tokenizer/, audio_decoder/.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    target: Annotated[str, typer.Option(help="What will run them: cpu (ONNX Runtime) or gpu (docs/gpu.md).")] = "cpu",
    stage: Annotated[list[int] | None, typer.Option(help="Only this stage (may be repeated).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run stages again even if nothing changed.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the stages and what is done; build nothing.")] = False,
    context_tokens: flags.ContextTokens = 4096,
    max_tokens: Annotated[int, typer.Option(help="Most answer tokens a request may ask for.")] = 4096,
    engine: flags.Engine = "torch_cuda",
    format: flags.Format = "bf16",
    mctp_format: flags.MctpFormat = "",
    mctp_head_format: flags.MctpHeadFormat = "bf16",
    fp8_kv_cache: flags.Fp8KvCache = False,
    scales: Annotated[Path | None, typer.Option(help="Scales of fp8 and w4a16 layers (gpu).")] = None,
    tp: flags.Tp = 1,
    streams: flags.Streams = 64,
    step_tokens: flags.StepTokens = 2048,
    head: flags.Head = "auto",
    candidates: flags.Candidates = 64,
    audio_batch: flags.AudioBatch = 8,
) -> None:
    """Build engines from a checkpoint, stage by stage; what is done and unchanged is skipped.

    `python -m build_engines plan --help`: what a GPU build would take.
    """
    gpu = GpuOptions(
        engine,
        format,
        mctp_format,
        fp8_kv_cache,
        scales,
        tp,
        streams,
        step_tokens,
        head,
        candidates,
        audio_batch,
        mctp_head_format,
    )
    build = Build(checkpoint, out, target, context_tokens, max_tokens, gpu)
    progress: _Progress | None = None
    try:
        stages = stages_of(build)
        if list_only:
            _out.print(_table(build, stages))
            return
        progress = _Progress(build, len(stages))
        run_build(build, stage or (), force, progress.started, progress.ended)
    except (VitaError, OSError) as error:
        if progress is not None:
            progress.stop()
        _error.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def run() -> None:
    """The verb `plan`, or without a verb the build."""
    planning = sys.argv[1:2] == ["plan"]
    app = typer.Typer(add_completion=False)
    if planning:
        from build_engines.plan import main as plan  # loads PyTorch

        app.command()(plan)
    else:
        app.command()(main)
    app(args=sys.argv[2:] if planning else sys.argv[1:], prog_name="python -m build_engines" + " plan" * planning)


if __name__ == "__main__":
    run()
