"""Released language model -> TensorRT-LLM checkpoints.

python -m build_engines.tensorrt_llm.convert --checkpoint DIR --out DIR --tp 2 --backbone fp8 --scales FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from vita_audio.contract.errors import VitaError

if TYPE_CHECKING:
    from build_engines.tensorrt_llm.plan import Plan

_out, _error = Console(highlight=False), Console(stderr=True, highlight=False)


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
    from build_engines.tensorrt_llm.conversion import Options, convert  # loads PyTorch: not for --help
    from build_engines.tensorrt_llm.formats import format_named
    from build_engines.tensorrt_llm.layout import Part, part_named

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        formats = {
            Part.BACKBONE: format_named(backbone, "--backbone"),
            Part.MCTP: format_named(mctp, "--mctp"),
        }
        parts = tuple(dict.fromkeys(part_named(name) for name in part)) if part else tuple(Part)
        options = Options(parts, dtype, tp, formats, fp8_kv_cache, scales, mctp_head_from)
        with Progress(*columns, TimeRemainingColumn(), console=_out) as progress:

            def start(plan: Plan) -> None:
                progress.add_task(plan.part.value, total=plan.bytes)

            converted = convert(
                checkpoint, out, options, start, lambda count: progress.advance(progress.task_ids[-1], count)
            )
    except (VitaError, OSError) as error:
        _error.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    for made in converted:
        words = f"{made.plan.bytes / 1e9:.2f} GB, {made.plan.tp} rank(s)" if made.fresh else "unchanged"
        _out.print(f"{made.folder}: {words}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
