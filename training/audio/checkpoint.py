"""Puts trained audio networks into a checkpoint bundle of the released layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from training.errors import TrainingError
from vita_audio.checkpoint.audio_decoder import write_audio_decoder
from vita_audio.checkpoint.configs import FlowConfig, VocoderConfig


def write_audio_checkpoint(
    checkpoint: Path, speech_tokenizer: Path, flow: tuple[FlowConfig, Path], vocoder: tuple[VocoderConfig, Path]
) -> None:
    """Write `checkpoint/speech_tokenizer` and `checkpoint/audio_decoder`, in the precision of the trained files.

    Args:
        speech_tokenizer: what `train_speech_tokenizer` returned.
        flow, vocoder: sizes, and what `train_flow` and `train_vocoder` returned.

    Raises:
        TrainingError: a file is missing or the disk is full.
    """
    try:
        shutil.copytree(speech_tokenizer, checkpoint / "speech_tokenizer", dirs_exist_ok=True)
        write_audio_decoder(checkpoint / "audio_decoder", flow[0], _tensors(flow[1]), vocoder[0], _tensors(vocoder[1]))
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise TrainingError(f"{checkpoint}: the audio networks cannot be written ({error})") from error


def write_whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside its place, then put it there: it is complete or as it was before.

    Raises:
        TrainingError: it could not be written (disk full, permissions).
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a failed write as RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(f"{folder}: cannot be written ({error}); free some space and run again") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)
