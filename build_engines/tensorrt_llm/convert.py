"""Released language model -> TensorRT-LLM checkpoints, module by module; a part appears only when it is complete.

    python -m build_engines.tensorrt_llm.convert --checkpoint DIR --out DIR --tp 2 --backbone fp8 --scales FILE

The stages keep converted parts, which only the builder reads, in its hidden folder: a next build takes them up, and
they may be deleted.

Peak memory is a few copies of the largest tensor (embedding or head), whatever the size of the checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor

from build_engines.command import errors_reported
from build_engines.tensorrt_llm.config_file import check_part, config_fields, rank_file, write_config
from build_engines.tensorrt_llm.formats import FORMATS, Format, format_named
from build_engines.tensorrt_llm.layout import Part, part_named
from build_engines.tensorrt_llm.plan import Plan
from build_engines.tensorrt_llm.scales import load_scales
from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.checkpoint.file_records import file_sha256, write_atomically
from vita_audio.checkpoint.language_model import ReleasedCheckpoint, open_language_model
from vita_audio.checkpoint.tensor_file import RankFile
from vita_audio.contract.errors import EngineError, VitaError

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

RECORD = "conversion.json"
#: Raise it when the same input gives another output, so that old results are not taken for new ones.
_VERSION = 1
#: Room for headers and file system overhead.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What to convert to. `formats` of parts that are not named is `none`."""

    parts: tuple[Part, ...] = tuple(Part)
    dtype: str = "bfloat16"
    tp: int = 1
    formats: Mapping[Part, Format] = field(default_factory=dict)
    fp8_kv_cache: bool = False
    scales: Path | None = None
    head_first_id: int = 0  # of the MCTP part


@dataclass(frozen=True, slots=True)
class Converted:
    """A part in its place. `fresh` is False when it was there already, made from the same input."""

    plan: Plan
    folder: Path
    fresh: bool


def run_backbone(build: Build, folder: Path, needed: Needed) -> Facts:
    return {"config": config_fields(converted(build, Part.BACKBONE, needed.facts).plan)}


def run_mctp(build: Build, folder: Path, needed: Needed) -> Facts:
    return {"config": config_fields(converted(build, Part.MCTP, needed.facts).plan)}


def converted(build: Build, part: Part, facts: Facts) -> Converted:
    """A part as a TensorRT-LLM checkpoint; made if it is not there, or of another input."""
    gpu = build.gpu
    options = Options(
        (part,),
        tp=gpu.tp,
        formats={part: FORMATS[gpu.quantisations[part.value]]},
        fp8_kv_cache=gpu.fp8_kv_cache,
        scales=gpu.scales,
        head_first_id=gpu.head_first_id(facts["default_pattern"], facts["vocabulary"]["text_tokens"]),
    )
    (made,) = convert(build.checkpoint / LANGUAGE_MODEL, build.work / "tensorrt_llm", options)
    return made


def convert(
    checkpoint: Path,
    out: Path,
    options: Options,
    on_start: Callable[[Plan], object] = lambda plan: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> list[Converted]:
    """Write `out`/backbone and `out`/mctp; a part made from the same input before is kept.

    Args:
        checkpoint: Hugging Face folder of the language model.
        on_start: called before each part that is written.
        on_bytes: called with the bytes of each tensor written.

    Raises:
        CheckpointError: the released checkpoint is incomplete or contradicts itself.
        EngineError: options do not fit it, scales are missing, the disk is too small, or another conversion runs.
    """
    source = open_language_model(checkpoint)
    plans = plans_of(source, options)
    scales = load_scales(options.scales, plans)
    records = [_record(source, plan, options) for plan in plans]
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        fresh = [not _is_done(out / plan.part.value, record) for plan, record in zip(plans, records, strict=True)]
        todo = [plan for plan, is_fresh in zip(plans, fresh, strict=True) if is_fresh]
        for plan in todo:
            _check_replaceable(out / plan.part.value)
            shutil.rmtree(_temporary_path(out, plan), ignore_errors=True)  # of a conversion that was killed
        _check_disk(out, todo)
        for plan, record, is_fresh in zip(plans, records, fresh, strict=True):
            if is_fresh:
                on_start(plan)
                with _temporary_folder(out, plan) as folder:
                    _write_part(source, plan, scales, folder, record, on_bytes)
                    shutil.rmtree(out / plan.part.value, ignore_errors=True)
                    folder.rename(out / plan.part.value)
    return [Converted(plan, out / plan.part.value, is_fresh) for plan, is_fresh in zip(plans, fresh, strict=True)]


def plans_of(source: ReleasedCheckpoint, options: Options) -> list[Plan]:
    """One checked plan for each part."""
    plans = []
    for part in options.parts:
        form = options.formats.get(part, FORMATS["none"])
        first = options.head_first_id if part is Part.MCTP else 0
        plan = Plan(part, source.config, options.dtype, options.tp, form, options.fp8_kv_cache, first)
        plan.check()
        plans.append(plan)
    return plans


def _write_part(
    source: ReleasedCheckpoint,
    plan: Plan,
    scales: Mapping[str, Tensor],
    folder: Path,
    record: Mapping[str, Any],
    on_bytes: Callable[[int], None],
) -> None:
    write_config(folder, plan)
    with ExitStack() as stack, torch.inference_mode():
        files = [
            stack.enter_context(RankFile(folder / rank_file(rank), outline))
            for rank, outline in enumerate(plan.outline)
        ]
        for module in plan.modules:
            for file, tensors in zip(files, plan.encode(module, source.read, scales), strict=True):
                for name, tensor in tensors.items():
                    on_bytes(file.write(name, tensor))
    check_part(folder)
    write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _record(source: ReleasedCheckpoint, plan: Plan, options: Options) -> dict[str, Any]:
    """Everything that decides what a part holds."""
    scales = file_sha256(options.scales) if options.scales and plan.scale_shapes else None
    return {
        "version": _VERSION,
        "checkpoint": source.fingerprint(),
        "scales_sha256": scales,
        "config": config_fields(plan),
    }


def _is_done(folder: Path, record: Mapping[str, Any]) -> bool:
    try:
        if json.loads((folder / RECORD).read_text(encoding="utf-8")) != record:
            return False
        check_part(folder)
    except (OSError, ValueError, VitaError):
        return False
    return True


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / RECORD).is_file():
        raise EngineError(
            f"--out: {folder} is there and was not made by this converter; move it or name another folder"
        )


def _check_disk(out: Path, plans: list[Plan]) -> None:
    if not plans:
        return
    needed, free = sum(plan.bytes for plan in plans) + _SPARE_BYTES, shutil.disk_usage(out).free
    if free < needed:
        sizes = ", ".join(f"{plan.part.value} {plan.bytes / 1e9:.1f}" for plan in plans)
        raise EngineError(
            f"--out: {free / 1e9:.1f} GB are free at {out}, {needed / 1e9:.1f} GB are needed ({sizes}); "
            "free the space or name a folder on another disk"
        )


def _temporary_path(out: Path, plan: Plan) -> Path:
    return out / f".{plan.part.value}.tmp"


@contextmanager
def _temporary_folder(out: Path, plan: Plan) -> Iterator[Path]:
    """Where a part grows; gone afterwards, unless it was renamed."""
    folder = _temporary_path(out, plan)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EngineError(f"--out: another conversion is running in {out}; wait for it") from error
        yield


def main(
    checkpoint: Annotated[Path, typer.Option(help="Released language model: config.json and safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder for backbone/ and mctp/.")],
    tp: Annotated[int, typer.Option(help="GPUs that share the model (tensor parallel).")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
    backbone: Annotated[str, typer.Option(help="Linear layers of the backbone: none, fp8 or w4a16_awq.")] = "none",
    mctp: Annotated[str, typer.Option(help="Linear layers of the MCTP modules: none, fp8 or w4a16_awq.")] = "none",
    fp8_kv_cache: Annotated[bool, typer.Option("--fp8-kv-cache", help="8-bit KV cache; both parts fp8.")] = False,
    scales: Annotated[Path | None, typer.Option(help="Scales of quantised layers (see calibrate).")] = None,
    mctp_head_from: Annotated[int, typer.Option(help="First token id of the MCTP head; 0 keeps all.")] = 0,
    part: Annotated[list[str] | None, typer.Option(help="Only backbone or only mctp.")] = None,
) -> None:
    """Convert a released checkpoint to TensorRT-LLM checkpoints; complete parts made from the same input are kept."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(highlight=False)
    with errors_reported(), Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        formats = {Part.BACKBONE: format_named(backbone, "--backbone"), Part.MCTP: format_named(mctp, "--mctp")}
        parts = tuple(dict.fromkeys(part_named(name) for name in part)) if part else tuple(Part)
        made = convert(
            checkpoint,
            out,
            Options(parts, dtype, tp, formats, fp8_kv_cache, scales, mctp_head_from),
            lambda plan: progress.add_task(plan.part.value, total=plan.bytes),
            lambda count: progress.advance(progress.task_ids[-1], count),
        )
    for part_made in made:
        plan = part_made.plan
        words = f"{plan.bytes / 1e9:.2f} GB, {plan.tp} rank(s)" if part_made.fresh else "unchanged"
        console.print(f"{part_made.folder}: {words}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
