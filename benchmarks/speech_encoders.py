"""How long the SenseVoice encoder of Plus takes at released size on a CPU, and how long the speech tokenizer.

    python -m benchmarks.speech_encoders --threads 1        (no server; 10 GB of memory, 2.3 GB of disk)

Random weights, float32, ONNX Runtime, one clip at a time, features included. CPU time of all threads, so that other
work on the machine changes it little; with one thread and a free core it is what a caller waits. "Goes on": all but the
last second of the clip was tokenized before; the encoder sees the whole clip at once and has to run all of it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import markdown_table, record_head
from build_engines.onnxruntime.sensevoice import export_sensevoice
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from vita_audio.checkpoint.configs import SenseVoiceConfig, SpeechTokenizerConfig
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.onnxruntime.sensevoice import OnnxSenseVoice
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.sensevoice_features import speech_embeddings
from vita_audio.speech_features import speech_tokens

Speech = NDArray[np.float32]
HEADER = "clip, s|SenseVoice, CPU ms|tokenizer, CPU ms|tokenizer, goes on, CPU ms"
#: Small networks, to try the command.
TINY = (
    SenseVoiceConfig(output_size=32, linear_units=64, num_blocks=3, tp_blocks=2, embedding_size=48),
    SpeechTokenizerConfig(d_model=32, encoder_attention_heads=2, encoder_ffn_dim=64, quantize_position=2),
)


def export(sensevoice: SenseVoiceConfig, tokenizer: SpeechTokenizerConfig, folder: Path) -> None:
    """Graphs with the layers' own random start."""
    torch.manual_seed(0)
    width = sensevoice.input_size
    export_sensevoice(SenseVoice(sensevoice), np.zeros(width, np.float32), np.ones(width, np.float32) / 5, folder)
    export_speech_tokenizer(SpeechTokenizer(tokenizer), folder)


def least_ms(run: Callable[[Speech], object], clips: list[Speech], before: int = 0) -> float:
    """Least over clips, after one that does not count; `before`: samples of each that were run before, 0 for none."""
    took = []
    for clip in (clips[0][::-1].copy(), *clips):
        if before:
            run(clip[:before])
        start = time.process_time()
        run(clip)
        took.append(1e3 * (time.process_time() - start))
    return min(took[1:])


def rows(folder: Path, threads: int, seconds: list[float], repeats: int) -> list[tuple[str, ...]]:
    """A line of the table for each length; every clip is another, so that no block is found by accident."""
    encoder, tokenizer = OnnxSenseVoice(folder, threads), OnnxSpeechTokenizer(folder, threads)
    random, made = np.random.default_rng(0), []
    for length in seconds:
        samples = int(length * INPUT_SAMPLE_RATE_HZ)
        clips = [[random.normal(0, 0.1, samples).astype(np.float32) for _ in range(repeats)] for _ in range(2)]
        times = (
            least_ms(lambda clip: speech_embeddings(encoder, clip), clips[0]),
            least_ms(lambda clip: speech_tokens(tokenizer, clip), clips[0]),
            least_ms(lambda clip: speech_tokens(tokenizer, clip), clips[1], samples - INPUT_SAMPLE_RATE_HZ),
        )
        made.append((f"{length:g}", *(f"{each:.0f}" for each in times)))
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0, 30.0], help="lengths of clips")
    parser.add_argument("--repeats", type=int, default=3, help="clips of each length")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.repeats < 1 or not all(1 < length <= 30 for length in options.seconds):
        parser.error("--threads, --repeats: at least 1; --seconds: more than 1, at most 30")
    with tempfile.TemporaryDirectory() as folder:
        export(*(TINY if options.tiny else (SenseVoiceConfig(), SpeechTokenizerConfig())), Path(folder))
        table = rows(Path(folder), options.threads, options.seconds, options.repeats)
    head = record_head("benchmarks.speech_encoders", arguments)
    print(f"`{head['command']}`, {head['machine']}, {head['date']}\n\n{markdown_table(HEADER, table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
