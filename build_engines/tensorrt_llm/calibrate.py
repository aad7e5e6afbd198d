"""Measure the scales of a quantised conversion.

python -m build_engines.tensorrt_llm.calibrate --checkpoint DIR --tokens FILE --backbone fp8 --out scales.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vita_audio.contract.errors import EngineError, VitaError

_out, _error = Console(highlight=False), Console(stderr=True, highlight=False)


def main(
    checkpoint: Annotated[Path, typer.Option(help="Released language model: config.json and safetensors.")],
    tokens: Annotated[Path, typer.Option(help="Sequences to run: a JSON list of token ids on each line.")],
    out: Annotated[Path, typer.Option(help="Scales file to write: .safetensors or .json.")],
    backbone: Annotated[str, typer.Option(help="What the backbone will be: none, fp8 or w4a16_awq.")] = "none",
    mctp: Annotated[str, typer.Option(help="What the MCTP modules will be: none, fp8 or w4a16_awq.")] = "none",
) -> None:
    """Measure the scales a quantised conversion needs, on the CPU, one decoder layer in memory at a time."""
    from build_engines.tensorrt_llm.calibration import calibrate  # loads PyTorch: not for --help
    from build_engines.tensorrt_llm.formats import format_named
    from build_engines.tensorrt_llm.layout import Part
    from build_engines.tensorrt_llm.scales import save_scales
    from vita_audio.checkpoint.language_model import open_language_model

    try:
        formats = {
            Part.BACKBONE: format_named(backbone, "--backbone"),
            Part.MCTP: format_named(mctp, "--mctp"),
        }
        source, sequences = open_language_model(checkpoint), read_sequences(tokens)
        columns = (TextColumn("decoder layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_out) as progress:
            task = progress.add_task("", total=source.config.num_hidden_layers)
            scales = calibrate(source, sequences, formats, lambda: progress.advance(task))
        if not scales:
            raise EngineError("--backbone, --mctp: both are none: there is nothing to calibrate")
        save_scales(out, scales)
    except (VitaError, OSError) as error:
        _error.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _out.print(f"{out}: {len(scales)} scales", markup=False, soft_wrap=True)


def read_sequences(path: Path) -> list[list[int]]:
    """Token ids, one JSON list on each line. Raises EngineError naming the first line that is none."""
    sequences = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            ids = json.loads(line)
        except ValueError:
            ids = None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise EngineError(f"{path}: line {number} is not a JSON list of token ids")
        sequences.append(ids)
    return sequences


if __name__ == "__main__":
    typer.run(main)
