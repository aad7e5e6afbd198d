"""Train everything, or fine-tune a checkpoint: python -m training --config small; python -m training finetune --help"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.errors import Stopped
from vita_audio.errors import VitaError

_out = Console(highlight=False, soft_wrap=True)
_error = Console(stderr=True, highlight=False, soft_wrap=True)
app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="small, tiny, or a YAML file of your own.")] = "small",
    only: Annotated[str | None, typer.Option(help="Only this part; what it needs must be done.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the training [out/training-CONFIG].")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Result [checkpoints/CONFIG].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the parts and what is done; train nothing.")] = False,
) -> None:
    """Train every part in order: data, speech tokenizer, vocoder, flow, tokens, stages 1 to 4, checkpoint."""
    if context.invoked_subcommand is not None:
        return
    with_errors(lambda: _train(config, only, out, checkpoint, resume, list_only))


def _train(
    config: str, only: str | None, out: Path | None, checkpoint: Path | None, resume: bool, list_only: bool
) -> None:
    from training.config import load_config  # loads PyTorch: not for --help
    from training.errors import TrainingError
    from training.pipeline import parts_of, run_parts

    settings = load_config(config)
    name = Path(config).stem
    out = out or Path("out") / f"training-{name}"
    checkpoint = checkpoint or Path("checkpoints") / name
    command = shlex.join(["python", "-m", "training", "--config", config])
    parts = parts_of(settings, out, checkpoint, command)
    if list_only:
        for part in parts:
            _out.print(f"{part.name}: {'done' if part.done else 'to do'}", markup=False)
        return
    if out.exists() and any(out.iterdir()) and not resume and only is None:
        raise TrainingError(f"{out}: holds an earlier training; go on with --resume, or choose another --out")
    run_parts(parts, only, lambda line: _out.print(line, markup=False, style="bold"))


def with_errors(work) -> None:  # type: ignore[no-untyped-def]
    """Run `work`; an expected error becomes one message and exit status 1, a stop exit status 3."""
    try:
        work()
    except Stopped as stopped:
        _error.print(str(stopped), markup=False)
        raise typer.Exit(3) from stopped
    except (VitaError, OSError) as error:
        _error.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
