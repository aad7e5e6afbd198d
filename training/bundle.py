"""The last part of a training: all networks as one checkpoint in the released layout, with its card."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.audio import flow, speech_tokenizer, vocoder
from training.audio.checkpoint import write_audio_checkpoint
from training.card import write_card
from training.config import TrainingConfig
from training.errors import TrainingError
from training.language_model import stages
from training.reuse import KEPT
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.text.vocabulary import Vocabulary


def write_bundle(config: TrainingConfig, out: Path, checkpoint: Path, command: str) -> None:
    """Write `checkpoint` from the parts in `out`; it is complete or not touched.

    An earlier checkpoint with a card is replaced; any other folder that is not empty is left alone.

    Raises:
        TrainingError: parts are missing or do not fit together, the folder holds something else, or the disk is full.
    """
    if checkpoint.exists() and any(checkpoint.iterdir()) and not (checkpoint / "README.md").exists():
        raise TrainingError(f"{checkpoint}: holds something that is not a trained checkpoint; choose another folder")
    temporary = checkpoint.with_name(f".{checkpoint.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_language_model(config, out, temporary / "language_model")
        write_audio_checkpoint(
            temporary,
            out / "speech_tokenizer" / speech_tokenizer.EXPORT,
            (config.flow.model, out / "flow" / flow.EXPORT),
            (config.vocoder.model, out / "vocoder" / vocoder.EXPORT),
        )
        sizes = check_checkpoint(temporary)
        write_card(config, out, temporary, sizes, command)
        shutil.rmtree(checkpoint, ignore_errors=True)
        temporary.replace(checkpoint)
    except OSError as error:
        raise TrainingError(f"{checkpoint}: cannot be written ({error}); free some space and run it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_language_model(config: TrainingConfig, out: Path, folder: Path) -> None:
    kept = out / KEPT / stages.EXPORT
    trained = kept if kept.exists() else out / "stage4" / stages.EXPORT
    sizes, tensors = load_language_model(trained)
    vocabulary = Vocabulary.from_tokenizer(trained / "tokenizer.json")
    stored = stages.stored_as(tensors, config.language_model.dtype)
    pattern = config.language_model.trained_mode.pattern
    # A small model that samples its text says other words than those it was given, and a penalty on what was said
    # before makes it leave out words and sounds that come twice.
    stages.write_released(folder, sizes, vocabulary, stored, pattern, trained, samples=False, repetition_penalty=1.0)
