"""Stage: the audio networks' weights for the torch_cuda engine, in float32 under the names of our modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.configs import AUDIO_DECODER, LANGUAGE_MODEL, SPEECH_TOKENIZER
from vita_audio.checkpoint.sensevoice import load_sensevoice
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.checkpoint.weight_files import save_tensors
from vita_audio.engines.torch.weights import (
    AUDIO_FOLDER,
    FLOW_FILE,
    SENSEVOICE_FILE,
    SPEECH_TOKENIZER_FILE,
    VOCODER_FILE,
)

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    return _write(build, folder, SPEECH_TOKENIZER_FILE, load_speech_tokenizer(build.checkpoint / SPEECH_TOKENIZER)[1])


def run_plus(build: Build, folder: Path, needed: Needed) -> Facts:
    """Of a Plus checkpoint: SenseVoice in place of the speech tokenizer, with shift and scale of its features."""
    parts = load_sensevoice(build.checkpoint / LANGUAGE_MODEL)
    tables = {"feature_shift": parts.feature_shift, "feature_scale": parts.feature_scale}
    tensors = parts.tensors | {name: torch.from_numpy(values) for name, values in tables.items()}
    return _write(build, folder, SENSEVOICE_FILE, tensors)


def _write(build: Build, folder: Path, speech_file: str, speech: dict[str, Tensor]) -> Facts:
    (folder / AUDIO_FOLDER).mkdir(parents=True)
    for name, tensors in (
        (speech_file, speech),
        (FLOW_FILE, load_flow(build.checkpoint / AUDIO_DECODER)[1]),
        (VOCODER_FILE, load_vocoder(build.checkpoint / AUDIO_DECODER)[1]),
    ):
        save_tensors(tensors, folder / name)
    return {}
