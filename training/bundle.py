"""The last part of a training: all networks as one checkpoint in the released layout, with its card."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from training.audio import flow, speech_tokenizer, vocoder
from training.card import write_card
from training.config import TrainingConfig
from training.errors import TrainingError
from training.files import whole_folder
from training.init_from import InitFrom, init_folder
from training.language_model import stages
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder, write_audio_decoder
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.text.normalization import WORDS
from vita_audio.text.vocabulary import Vocabulary


def write_bundle(config: TrainingConfig, init: InitFrom, out: Path, checkpoint: Path, command: str) -> None:
    """Write `checkpoint` from the parts in `out`, those that `init` leaves unchanged included; whole or not touched.

    An earlier checkpoint with a card is replaced; any other folder that is not empty is left alone.

    Raises:
        TrainingError: parts are missing or do not fit together, the folder holds something else, or the disk is full.
    """
    if checkpoint.exists() and any(checkpoint.iterdir()) and not (checkpoint / "README.md").exists():
        raise TrainingError(f"{checkpoint}: holds something that is not a trained checkpoint; choose another folder")
    codec = out / "speech_tokenizer" / speech_tokenizer.EXPORT
    with whole_folder(checkpoint) as folder:
        _write_language_model(config, init, out, folder / "language_model")
        shutil.copytree(
            codec if init.trains("speech_tokenizer") else init_folder(out, "speech_tokenizer"),
            folder / "speech_tokenizer",
        )
        write_audio_decoder(
            folder / "audio_decoder",
            config.flow.model,
            _trained(out / "flow" / flow.EXPORT)
            if init.trains("flow")
            else _half(load_flow(init_folder(out, "flow"))[1]),
            config.vocoder.model,
            _trained(out / "vocoder" / vocoder.EXPORT)
            if init.trains("vocoder")
            else _half(load_vocoder(init_folder(out, "vocoder"))[1]),
        )
        write_card(config, init, out, folder, check_checkpoint(folder), command)


def _trained(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() for key, value in weights.items()}


def _write_language_model(config: TrainingConfig, init: InitFrom, out: Path, folder: Path) -> None:
    trained = out / "stage4" / stages.EXPORT if init.trains("language_model") else init_folder(out, "language_model")
    sizes, tensors = load_language_model(trained)
    vocabulary = Vocabulary.from_tokenizer(trained / "tokenizer.json")
    stored = stages.stored_as(tensors, config.language_model.dtype)
    pattern = config.language_model.trained_mode.pattern
    # A small model that samples its text says other words than those it was given, and a penalty on what was said
    # before makes it leave out words and sounds that come twice. It has read plain sentences in words only.
    stages.write_released(
        folder, sizes, vocabulary, stored, pattern, trained, samples=False, repetition_penalty=1.0,
        text_normalization=WORDS,
    )  # fmt: skip
