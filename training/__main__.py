"""Train everything, or fine-tune a checkpoint: python -m training --config small; python -m training finetune --help"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.errors import Stopped
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
    out: Annotated[Path | None, typer.Option(help="Folder of the training [out/training-CONFIG].")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Result [checkpoints/CONFIG].")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the parts and what is done; train nothing.")] = False,
    audio_from: Annotated[
        Path | None, typer.Option(help="Checkpoint whose audio networks are kept as they are.")
    ] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="Checkpoint that is trained on: stage 4 starts from its language model.")
    ] = None,
    continue_audio: Annotated[
        list[str] | None,
        typer.Option(
            help="With --continue-from: speech_tokenizer, vocoder or flow is trained on as well; may be repeated."
        ),
    ] = None,
    keep_language_model: Annotated[
        bool, typer.Option("--keep-language-model", help="With --continue-audio: train these alone, no stage 4.")
    ] = False,
) -> None:
    """Train every part in order: data, speech tokenizer, vocoder, flow, tokens, stages 1 to 4, checkpoint."""
    if context.invoked_subcommand is not None:
        return

    def work() -> None:
        from training.config import load_config  # loads PyTorch: not for --help
        from training.errors import TrainingError
        from training.origin import Origin
        from training.pipeline import parts_of, run_parts

        origin = Origin(audio_from, continue_from, tuple(continue_audio or ()), keep_language_model)
        settings = load_config(config, changes or [])
        name = Path(config).stem
        folder = out or Path("out") / f"training-{name}"
        typed = ["python", "-m", "training", "--config", config, *(f"--set={change}" for change in changes or [])]
        if not list_only:
            if folder.exists() and any(folder.iterdir()) and not resume and only is None:
                raise TrainingError(
                    f"{folder}: holds an earlier training; go on with --resume, or choose another --out"
                )
            origin.take(settings, folder)
        command = f"{shlex.join(typed)} {origin.options()}".rstrip()
        parts = parts_of(settings, folder, checkpoint or Path("checkpoints") / name, command)
        if list_only:
            for part in parts:
                _out.print(f"{part.name}: {'done' if part.done else 'to do'}", markup=False)
            return
        run_parts(parts, only, lambda line: _out.print(line, markup=False, style="bold"))

    raise typer.Exit(with_errors(work))


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Option(help="Bundle with language_model/ and speech_tokenizer/.")],
    data: Annotated[Path, typer.Option(help="JSON lines with messages and audios; docs/training.md.")],
    out: Annotated[Path, typer.Option(help="Folder for snapshots, logs and the result OUT/checkpoint.")],
    mode: Annotated[str | None, typer.Option(help="boost or balance [the checkpoint's own].")] = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="How often to see the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Highest rate of the backbone.")] = 5e-5,
    mctp_rate: Annotated[float, typer.Option(help="MCTP modules learn this many times as fast.")] = 10.0,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = 0.1,
    length: Annotated[int, typer.Option(min=16, help="Tokens of a pack, and most tokens of a sample.")] = 2048,
    accumulation: Annotated[int, typer.Option(min=1, help="Packs of one step and process.")] = 16,
    held_out: Annotated[int, typer.Option(min=0, help='Samples to score when no line says "split": "test".')] = 64,
    skip_long: Annotated[bool, typer.Option("--skip-long", help="Leave samples longer than a pack out.")] = False,
    max_audio_s: Annotated[float, typer.Option(help="Longest audio, in seconds.")] = 300.0,
    recompute: Annotated[bool, typer.Option("--recompute", help="Less memory, a third slower.")] = False,
    float32: Annotated[bool, typer.Option("--float32", help="No bfloat16 products: slower, more exact.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between snapshots.")] = 200,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between held-out scores.")] = 200,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log rows.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 42,
    dtype: Annotated[str | None, typer.Option(help="Of the result: float16, bfloat16, float32 [as it was].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Fine-tune a checkpoint on your own data; the same command goes on after a stop. Several GPUs: torchrun."""

    def work() -> None:
        from training.language_model.distributed import processes  # loads PyTorch: not for --help
        from training.language_model.finetune import FinetuneSettings
        from training.language_model.finetune import finetune as run

        settings = FinetuneSettings(
            checkpoint=checkpoint,
            data=data,
            out=out,
            mode=mode,
            epochs=epochs,
            steps=steps,
            learning_rate=learning_rate,
            mctp_rate=mctp_rate,
            weight_decay=weight_decay,
            length=length,
            accumulation=accumulation,
            held_out=held_out,
            skip_long=skip_long,
            max_audio_s=max_audio_s,
            recompute=recompute,
            float32=float32,
            save_every=save_every,
            evaluate_every=evaluate_every,
            log_every=log_every,
            seed=seed,
            dtype=dtype,
        )
        with processes(device) as place:
            run(settings, place)

    code = with_errors(work)
    if "WORLD_SIZE" in os.environ:
        # Threads of the process groups may abort an interpreter that is shutting down (seen with gloo): leave at once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


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
