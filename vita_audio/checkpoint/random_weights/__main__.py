"""Write a checkpoint in the released layout, with seeded random weights.

    python -m vita_audio.checkpoint.random_weights --out checkpoints/random --seed 0
    python -m vita_audio.checkpoint.random_weights --out checkpoints/plus --speech-input sensevoice

It has the real architecture, keys and files, so everything that takes a released checkpoint takes it; it sounds like
noise. A trained checkpoint of the same layout replaces it without a change of code. The sizes small and tiny are for
serving on a CPU and for tests; 7b and 0.5b are as released, for measurements.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from vita_audio.checkpoint.audio_decoder import write_audio_decoder
from vita_audio.checkpoint.configs import SENSEVOICE, SPEECH_TOKENIZER
from vita_audio.checkpoint.file_records import whole_folder
from vita_audio.checkpoint.language_model import write_language_model_config
from vita_audio.checkpoint.random_weights.audio import (
    CPU,
    feature_tables,
    flow_weights,
    sensevoice_weights,
    speech_tokenizer_weights,
    vocoder_weights,
)
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel, drawing_device
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.checkpoint.sensevoice import write_sensevoice_files
from vita_audio.checkpoint.sizes import SIZES, SMALL, ModelSize, SizeName, SpeechInput
from vita_audio.checkpoint.speech_tokenizer import write_speech_tokenizer
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.contract.errors import CheckpointError, VitaError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.stopping import stop_on_signals
from vita_audio.text.vocabulary import Vocabulary


def write_random_checkpoint(
    folder: Path,
    size: ModelSize = SMALL,
    seed: int = 0,
    device: torch.device = CPU,
    speech_input: str = SPEECH_TOKENIZER,
) -> None:
    """Write the whole bundle; the same size, seed and kind of device give the same bytes.

    The bundle is complete or not there. Tensors are drawn on `device`; of the language model, one at a time is in
    memory.

    Args:
        speech_input: SPEECH_TOKENIZER, or SENSEVOICE for a Plus checkpoint.

    Raises:
        CheckpointError: there is already something in `folder`, or it cannot be written.
    """
    with whole_folder(folder, CheckpointError) as temporary:
        _write(temporary, size, seed, device, speech_input)


def _write(folder: Path, size: ModelSize, seed: int, device: torch.device, speech_input: str) -> None:
    _write_language_model(folder / "language_model", size, seed, device, speech_input)
    if speech_input == SPEECH_TOKENIZER:
        tokenizer = speech_tokenizer_weights(size.speech_tokenizer, seed, device)
        write_speech_tokenizer(folder / "speech_tokenizer", size.speech_tokenizer, tokenizer)
        del tokenizer
    flow, vocoder = (
        {key: tensor.cpu() for key, tensor in weights.items()}
        for weights in (flow_weights(size.flow, seed, device), vocoder_weights(size.vocoder, seed, device))
    )
    write_audio_decoder(folder / "audio_decoder", size.flow, flow, size.vocoder, vocoder)


def _write_language_model(folder: Path, size: ModelSize, seed: int, device: torch.device, speech_input: str) -> None:
    """With SenseVoice in its files, in a Plus checkpoint."""
    folder.mkdir(parents=True)
    plus = speech_input == SENSEVOICE
    tokens = write_tokenizer(folder, size.merges, size.audio_codes, seed, text_tokens=size.text_tokens, plus=plus)
    config = size.for_tokens(tokens).language_model
    vocabulary = Vocabulary.from_tokenizer(folder / "tokenizer.json")
    tensors = RandomLanguageModel(config, device, seed, getattr(torch, size.dtype), vocabulary, size.ends)
    mode = NAMED_MODES["boost" if config.mctp_modules else "vanilla"]
    write_language_model_config(folder, config, vocabulary, size.dtype, mode, speech_input=speech_input)
    encoder: dict[str, torch.Tensor] = {}
    if plus:
        drawn = sensevoice_weights(size.sensevoice, seed, device)
        encoder = {key: tensor.to(tensors.dtype) for key, tensor in drawn.items()}
        write_sensevoice_files(folder, size.sensevoice, *feature_tables(size.sensevoice, seed))
    outline = tensors.outline | {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in encoder.items()}
    write_tensors(folder / "model.safetensors", outline, chain(tensors.items(), encoder.items()))


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of all weights.")] = 0,
    size: Annotated[
        SizeName, typer.Option(help="small is served, tiny is for tests; 7b and 0.5b are for measurements.")
    ] = SizeName.small,
    device: Annotated[str, typer.Option(help="Where tensors are drawn: cpu, or cuda, which is faster.")] = "cpu",
    speech_input: Annotated[
        SpeechInput, typer.Option(help="What takes speech in; sensevoice is the Plus variant (docs/plus.md).")
    ] = SpeechInput.speech_tokenizer,
) -> None:
    """Write a checkpoint with seeded random weights in the released layout."""
    try:
        write_random_checkpoint(out, SIZES[size.value], seed, drawing_device(device), speech_input.value)
    except (VitaError, RuntimeError) as error:  # RuntimeError: of PyTorch, memory of the GPU above all
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console().print(f"wrote {out} ({sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    stop_on_signals()
    typer.run(main)
