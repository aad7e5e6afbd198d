"""Stage: the audio networks' weights for the torch_cuda engine, in float32 under the names of our modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.configs import AUDIO_DECODER, SPEECH_TOKENIZER
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.checkpoint.weight_files import save_tensors
from vita_audio.engines.torch.weights import AUDIO_FOLDER, FLOW_FILE, SPEECH_TOKENIZER_FILE, VOCODER_FILE

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    (folder / AUDIO_FOLDER).mkdir(parents=True)
    for name, tensors in (
        (SPEECH_TOKENIZER_FILE, load_speech_tokenizer(build.checkpoint / SPEECH_TOKENIZER)[1]),
        (FLOW_FILE, load_flow(build.checkpoint / AUDIO_DECODER)[1]),
        (VOCODER_FILE, load_vocoder(build.checkpoint / AUDIO_DECODER)[1]),
    ):
        save_tensors(tensors, folder / name)
    return {}
