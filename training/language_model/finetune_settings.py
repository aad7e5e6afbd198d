"""Settings of a fine-tuning, the options of its command; defaults as in the paper's stage 4 (docs/audio.md 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """One fine-tuning; what each field means is its help. Imports no PyTorch: not for --help."""

    checkpoint: Annotated[Path, Option(help="Bundle with language_model/ and speech_tokenizer/, released layout.")]
    data: Annotated[Path, Option(help="JSON lines with messages and audios; docs/training.md.")]
    out: Annotated[Path, Option(help="Folder for snapshots, logs and the result OUT/checkpoint.")]
    mode: Annotated[
        str | None, Option(help="boost or balance: how answers are interleaved; default: the checkpoint's.")
    ] = None
    epochs: Annotated[float, Option(min=0.0, help="How often to see the data.")] = 1.0
    steps: Annotated[int | None, Option(min=1, help="Steps, instead of epochs.")] = None
    learning_rate: Annotated[float, Option(help="Highest rate of the backbone.")] = 5e-5
    mctp_rate: Annotated[float, Option(help="MCTP modules learn this many times as fast.")] = 10.0
    weight_decay: Annotated[float, Option(min=0.0)] = 0.1
    length: Annotated[int, Option(min=16, help="Tokens of a pack, and most tokens of a sample.")] = 2048
    accumulation: Annotated[int, Option(min=1, help="Packs of one step and process.")] = 16
    held_out: Annotated[
        int, Option(min=0, help='Samples that are scored (at most a tenth) when no line says "split": "test".')
    ] = 64
    skip_long: Annotated[bool, Option("--skip-long", help="Leave samples longer than a pack out.")] = False
    max_audio_s: Annotated[float, Option(help="Longest audio, in seconds.")] = 300.0
    recompute: Annotated[
        bool, Option("--recompute", help="Compute activations twice: less memory, a third slower.")
    ] = False
    float32: Annotated[
        bool, Option("--float32", help="No bfloat16 products: slower, hardly dependent on the number of processes.")
    ] = False
    save_every: Annotated[int, Option(min=1, help="Steps between snapshots.")] = 200
    evaluate_every: Annotated[int, Option(min=1, help="Steps between held-out scores.")] = 200
    log_every: Annotated[int, Option(min=1, help="Steps between log rows.")] = 10
    seed: Annotated[int, Option(min=0)] = 42
    dtype: Annotated[str | None, Option(help="Of the result: float16, bfloat16, float32; default: as it was.")] = None
