"""Build engines from a checkpoint: python -m build_engines --checkpoint DIR --target cpu --out engines/cpu"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engines.manifest import file_records
from build_engines.pipeline import Build, Stage, StageRecord, build_lock, is_done, load_record, run_stage, select
from vita_audio.errors import EngineError, VitaError

_out, _error = Console(highlight=False), Console(stderr=True, highlight=False)


def stages_of(target: str) -> Sequence[Stage]:
    """The stages of a target. Raises EngineError for an unknown one."""
    from build_engines.stages import STAGES  # loads PyTorch: not for --help

    if target not in STAGES:
        raise EngineError(f"--target: {target!r} is not valid: choose one of {', '.join(STAGES)}")
    return STAGES[target]


def run_build(build: Build, numbers: Sequence[int] = (), force: bool = False) -> None:
    """Run the stages that are not done (or those named), and say so line by line.

    Raises:
        CheckpointError, EngineError: what is wrong, in one line; finished stages stay finished.
    """
    stages = stages_of(build.target)
    chosen = select(stages, numbers)
    with build_lock(build):
        for stage in chosen:
            label = f"[{stage.number}/{len(stages)}] {stage.name}"
            if not force and is_done(build, stage):
                _out.print(f"{label}: unchanged", markup=False)
                continue
            start = time.monotonic()
            with _out.status(escape(label)):
                record = run_stage(build, stage)
            _out.print(f"{label}: {time.monotonic() - start:.1f} s{_made(build, record)}", markup=False)


def list_stages(build: Build) -> None:
    """Print what is done and what is to do."""
    table = Table("stage", "name", "state", "files", title=f"{build.checkpoint} -> {build.out}")
    for stage in stages_of(build.target):
        record = load_record(build, stage.number) if is_done(build, stage) else None
        made = _made(build, record).removeprefix(", ") if record else ""
        table.add_row(str(stage.number), stage.name, "done" if record else "to do", made)
    _out.print(table)


def _made(build: Build, record: StageRecord) -> str:
    if not record.files:
        return ""
    size = sum(found.bytes for found in file_records(build.out, record.files).values())
    return f", {', '.join(record.files)} ({size / 1e6:.1f} MB)"


def main(
    checkpoint: Annotated[Path, typer.Option(help="Bundle with language_model/, speech_tokenizer/, audio_decoder/.")],
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    target: Annotated[str, typer.Option(help="What will run them: cpu (ONNX Runtime).")] = "cpu",
    stage: Annotated[list[int] | None, typer.Option(help="Only this stage (may be repeated).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run stages again even if nothing changed.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the stages and what is done; build nothing.")] = False,
    context_tokens: Annotated[int, typer.Option(help="Most tokens of prompt and answer together.")] = 4096,
    max_tokens: Annotated[int, typer.Option(help="Most answer tokens a request may ask for.")] = 4096,
) -> None:
    """Build engines from a checkpoint, stage by stage; what is done and unchanged is skipped."""
    build = Build(checkpoint, out, target, context_tokens, max_tokens)
    try:
        if list_only:
            list_stages(build)
        else:
            run_build(build, stage or (), force)
    except (VitaError, OSError) as error:
        _error.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
