"""Train everything, or fine-tune a checkpoint: python -m training --config small; python -m training finetune --help"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from training.errors import Stopped
from training.language_model.finetune_settings import FinetuneSettings
from vita_audio.contract.errors import VitaError

# Before PyTorch loads: threads that wait for each other by spinning bring a training on shared cores to a halt.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_out = Console(highlight=False, soft_wrap=True)
_error = Console(stderr=True, highlight=False, soft_wrap=True)
app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="small, tiny, or a YAML file of your own.")] = "small",
    only: Annotated[str | None, typer.Option(help="Only this part; what it needs must be done.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the training; default: out/training-CONFIG.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Result; default: OUT/checkpoint.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the parts and what is done; train nothing.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="Finished checkpoint to start from; needs --train.")] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="What is trained from --init-from: all, or language_model, speech_tokenizer, flow, vocoder joined by "
            "commas (NAME:scratch: from random weights). All other parts are taken unchanged.",
        ),
    ] = None,
) -> None:
    """Train every part in order: data, speech tokenizer, vocoder, flow, tokens, stages 1 to 4, checkpoint."""
    if context.invoked_subcommand is not None:
        return

    def work() -> None:
        from training.errors import TrainingError
        from training.files import one_training
        from training.init_from import InitFrom, init_training  # loads PyTorch: not for --help
        from training.kept import keep_config, load_kept
        from training.pipeline import parts_of, run_parts

        asked = InitFrom.parse(init_from, parts)
        folder = out or Path("out") / f"training-{Path(config).stem}"
        if not list_only and not resume and only is None and folder.exists() and any(folder.iterdir()):
            raise TrainingError(f"{folder}: holds an earlier training; go on with --resume, or choose another --out")
        settings, all_changes = load_kept(config, changes or [], folder)
        typed = ["python", "-m", "training", "--config", config, *(f"--set={change}" for change in all_changes)]
        init = asked or InitFrom.read(folder) if list_only else init_training(asked, settings, folder)
        if init_from is not None and parts is not None:
            typed += ["--init-from", init_from.as_posix(), "--train", parts]
        result = checkpoint or folder / "checkpoint"
        planned = parts_of(settings, init, folder, result, shlex.join(typed))
        if list_only:
            for part in planned:
                _out.print(f"{part.name}: {'done' if part.done else 'to do'}", markup=False)
            return
        with one_training(folder):
            keep_config(config, all_changes, settings, folder)
            run_parts(planned, only, lambda line: _out.print(line, markup=False, style="bold"))

    raise typer.Exit(with_errors(work))


def finetune(device: str, **options: Any) -> None:
    """Fine-tune a checkpoint on your own data; the same command goes on after a stop. Several GPUs: torchrun."""

    def work() -> None:
        from training.files import one_training
        from training.language_model.distributed import processes  # loads PyTorch: not for --help
        from training.language_model.finetune import finetune as run

        settings = FinetuneSettings(**options)
        with processes(device) as place, one_training(settings.out) if place.rank == 0 else nullcontext():
            run(settings, place)

    code = with_errors(work)
    if "WORLD_SIZE" in os.environ:
        # Threads of the process groups may abort an interpreter that is shutting down (seen with gloo): leave at once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the settings' fields as options: typer reads a function's signature and annotations."""
    hints = get_type_hints(FinetuneSettings, include_extras=True)
    hints["device"] = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
    defaults = {field.name: field.default for field in fields(FinetuneSettings)} | {"device": "auto"}
    empty, kind = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, kind, default=empty if default is MISSING else default, annotation=hints[name])
        for name, default in defaults.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


app.command()(_with_options(finetune))


def with_errors(work: Callable[[], None]) -> int:
    """Run `work`; the exit status: an expected error becomes one message and 1, a stop 3."""
    try:
        work()
    except Stopped as stopped:
        _error.print(str(stopped), markup=False)
        return 3
    except (VitaError, OSError) as error:
        _error.print(f"error: {error}", style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    app()
