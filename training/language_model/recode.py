"""A language model is told what new speech codes mean: their rows are made of the old codes' for the same sounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from training.device import pick_device
from training.errors import TrainingError
from training.language_model.conversations import read_conversations
from training.language_model.prepare import CHAT
from training.language_model.speech_codes import SpeechCodes
from training.language_model.stages import EXPORT, write_released
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.tokenizer import TextTokenizer

#: Tables with a row for each token; the head may be the embedding itself.
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def recode(
    language_model: Path,
    old_tokenizer: Path,
    new_tokenizer: Path,
    data: Path,
    folder: Path,
    device: str = "auto",
    clips: int = 4_000,
) -> Path:
    """Give the audio tokens of a language model new rows, for a speech tokenizer whose codes mean something else.

    The row of a new code is the mean of the old codes' rows, weighted by how often these stood at its place in the
    same sounds. It is a start for a training, not the end of one.

    Args:
        language_model, old_tokenizer: a model in the released layout and the tokenizer of its codes.
        new_tokenizer: what it shall hear and say from now on.
        data: a data folder; its first `clips` sounds for training are heard by both tokenizers.

    Returns:
        `folder/language_model`.

    Raises:
        CheckpointError: a network cannot be read.
        TrainingError: the tokenizers differ in size, the data are faulty, or a file cannot be written.
    """
    console, place = Console(soft_wrap=True, highlight=False), pick_device(device)
    vocabulary = TextTokenizer(language_model / "tokenizer.json").vocabulary
    config, tensors = load_language_model(language_model)
    conversations = read_conversations(data / CHAT, "train")
    audios = list(dict.fromkeys(audio for c in conversations for audio in c.audios))[:clips]
    heard: list[list[list[int]]] = []
    for tokenizer in (old_tokenizer, new_tokenizer):
        codes = SpeechCodes(tokenizer, folder / "codes", place)
        if codes.config.quantize_vocab_size != vocabulary.audio_codes:
            raise TrainingError(
                f"{tokenizer}: has {codes.config.quantize_vocab_size} codes, the language model "
                f"{vocabulary.audio_codes}; take tokenizers of its size"
            )
        codes.make(audios, console=console)
        heard.append([codes[audio] for audio in audios])
    counts = together(heard[0], heard[1], vocabulary.audio_codes)
    first = vocabulary.audio_offset
    for name in _TABLES:
        if name in tensors:
            rows = slice(first, first + vocabulary.audio_codes)
            tensors[name] = tensors[name].clone()
            tensors[name][rows] = mixed_rows(tensors[name][rows], counts)
    used = int((counts.sum(1) > 0).sum())
    console.print(f"recode: {used} of {vocabulary.audio_codes} new codes occur in {len(audios)} sounds", markup=False)
    write_released(folder / EXPORT, config, vocabulary, tensors, NAMED_MODES["vanilla"], language_model)
    return folder / EXPORT


def together(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]], codes: int) -> NDArray[np.int64]:
    """How often each new code (row) stood where each old code (column) did: int64 [codes, codes]."""
    counts = np.zeros((codes, codes), np.int64)
    for before, after in zip(old, new, strict=True):
        np.add.at(counts, (np.asarray(after, np.int64), np.asarray(before, np.int64)), 1)
    return counts


def mixed_rows(rows: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """Rows of the new codes from those of the old ones, [codes, width] each; a code that never occurs gets the mean."""
    shares = torch.from_numpy(counts).double()
    total = shares.sum(1, keepdim=True)
    mixed = shares @ rows.double() / total.clamp(min=1)
    return torch.where(total > 0, mixed, rows.double().mean(0)).to(rows.dtype)
