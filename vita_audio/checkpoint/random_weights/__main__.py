"""Write a checkpoint in the released layout, with seeded random weights.

    python -m vita_audio.checkpoint.random_weights --out checkpoints/random --seed 0

It has the real architecture, keys and files, so everything that takes a released checkpoint takes it; it sounds like
noise. A trained checkpoint of the same layout replaces it without a change of code. The sizes small and tiny are for
serving on a CPU and for tests; 7b and 0.5b are as released, for measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from vita_audio.checkpoint.audio_decoder import write_audio_decoder
from vita_audio.checkpoint.file_records import whole_folder
from vita_audio.checkpoint.language_model import write_language_model_config
from vita_audio.checkpoint.random_weights.audio import CPU, flow_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel, drawing_device
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.checkpoint.sizes import SIZES, SMALL, ModelSize, SizeName
from vita_audio.checkpoint.speech_tokenizer import write_speech_tokenizer
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.contract.errors import CheckpointError, VitaError
from vita_audio.stopping import stop_on_signals
from vita_audio.text.vocabulary import Vocabulary


def write_random_checkpoint(folder: Path, size: ModelSize = SMALL, seed: int = 0, device: torch.device = CPU) -> None:
    """Write the whole bundle; the same size, seed and kind of device give the same bytes.

    The bundle is complete or not there. Tensors are drawn on `device`; of the language model, one at a time is in
    memory.

    Raises:
        CheckpointError: there is already something in `folder`, or it cannot be written.
    """
    with whole_folder(folder, CheckpointError) as temporary:
        _write(temporary, size, seed, device)


def _write(folder: Path, size: ModelSize, seed: int, device: torch.device) -> None:
    _write_language_model(folder / "language_model", size, seed, device)
    tokenizer = speech_tokenizer_weights(size.speech_tokenizer, seed, device)
    write_speech_tokenizer(folder / "speech_tokenizer", size.speech_tokenizer, tokenizer)
    del tokenizer
    flow, vocoder = (
        {key: tensor.cpu() for key, tensor in weights.items()}
        for weights in (flow_weights(size.flow, seed, device), vocoder_weights(size.vocoder, seed, device))
    )
    write_audio_decoder(folder / "audio_decoder", size.flow, flow, size.vocoder, vocoder)


def _write_language_model(folder: Path, size: ModelSize, seed: int, device: torch.device) -> None:
    folder.mkdir(parents=True)
    tokens = write_tokenizer(folder, size.merges, size.audio_codes, seed, text_tokens=size.text_tokens)
    config = size.for_tokens(tokens).language_model
    vocabulary = Vocabulary.from_tokenizer(folder / "tokenizer.json")
    tensors = RandomLanguageModel(config, device, seed, getattr(torch, size.dtype), vocabulary, size.ends)
    write_language_model_config(folder, config, vocabulary, size.dtype)
    write_tensors(folder / "model.safetensors", tensors.outline, tensors.items())


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of all weights.")] = 0,
    size: Annotated[
        SizeName, typer.Option(help="small is served, tiny is for tests; 7b and 0.5b are for measurements.")
    ] = SizeName.small,
    device: Annotated[str, typer.Option(help="Where tensors are drawn: cpu, or cuda, which is faster.")] = "cpu",
) -> None:
    """Write a checkpoint with seeded random weights in the released layout."""
    try:
        write_random_checkpoint(out, SIZES[size.value], seed, drawing_device(device))
    except (VitaError, RuntimeError) as error:  # RuntimeError: of PyTorch, memory of the GPU above all
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console().print(f"wrote {out} ({sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    stop_on_signals()
    typer.run(main)
