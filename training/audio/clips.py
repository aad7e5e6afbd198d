"""Clips of `speech.jsonl` at one sample rate, packed into one file of 16-bit samples for quick random access."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from rich.progress import track

from training.ahead import in_threads
from training.data.manifest import CHAT, SPEECH, SpeechClip, read_speech
from training.errors import TrainingError
from training.files import whole_file
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.text.chat_template import AUDIO_PLACEHOLDER

MAX_CLIP_SECONDS = 30.0  # the tokenizer takes pieces of this length
_FAULTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance; its samples are [start, start + samples) of the packed file.

    `audio`: its file, below the data folder. `output`: whether it is clean speech of the output voice (the assistant).
    """

    id: str
    audio: str
    text: str
    split: str
    output: bool
    start: int
    samples: int


class Clips(Sequence[Clip]):
    """Packed clips of one sample rate."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
        self.rate_hz: int = index["rate_hz"]
        self.fingerprint = folder.name
        self.clips = [Clip(**clip) for clip in index["clips"]]
        self._samples = np.memmap(folder / "samples.i16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Any) -> Any:
        return self.clips[index]

    def samples(self, index: int) -> NDArray[np.int16]:
        """All samples of a clip, int16 [n]."""
        clip = self.clips[index]
        return self._samples[clip.start : clip.start + clip.samples]

    def of_split(self, split: str) -> list[int]:
        """Indices of the clips of a split. Raises TrainingError when there are none."""
        found = [index for index, clip in enumerate(self.clips) if clip.split == split]
        if not found:
            raise TrainingError(f"speech.jsonl has no clip in split {split!r} to use here; make more data")
        return found


def batch_of(waves: Sequence[NDArray[np.int16]], multiple: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Waves in [-1, 1] padded with zeros to a common multiple of `multiple`: [B, n] and their samples [B]."""
    lengths = np.array([len(wave) for wave in waves], np.int64)
    batch = np.zeros((len(waves), -(-int(lengths.max()) // multiple) * multiple), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    batch /= 32768.0
    return batch, lengths


def pack_clips(data: Path, rate_hz: int, output_voice: str, outputs_only: bool = False) -> Clips:
    """The clips of `data/speech.jsonl` (16 kHz mono), packed once into `data/packed` and shared by all trainings.

    Output clips are those of the output voice that the assistant speaks in `data/chat.jsonl`: clean, unlike the same
    voice as a user's. Without `chat.jsonl` all clips of that voice are.

    Raises:
        TrainingError: a line or a file is faulty (missing, not 16 kHz mono, empty, above 30 s); names the first ones.
    """
    lines, spoken = read_speech(data), _assistant_audios(data / CHAT)
    outputs = {line.audio for line in lines if line.voice == output_voice and (spoken is None or line.audio in spoken)}
    key = json.dumps([rate_hz, outputs_only, sorted(outputs), [asdict(line) for line in lines]])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = data / "packed" / fingerprint
    if not (folder / "clips.json").exists():
        _pack(data, lines, outputs, rate_hz, outputs_only, folder)
    return Clips(folder)


def _pack(
    data: Path, lines: list[SpeechClip], outputs: set[str], rate_hz: int, outputs_only: bool, folder: Path
) -> None:
    chosen = [line for line in lines if not outputs_only or line.audio in outputs]
    clips, faults, position = [], [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "samples.i16").open("wb") as file:
            read = in_threads(lambda line: _read(data / line.audio, rate_hz), chosen)
            shown = track(read, f"packing {len(chosen)} clips at {rate_hz} Hz", len(chosen), transient=True)
            for line, samples in zip(chosen, shown, strict=True):
                if isinstance(samples, str):
                    faults.append(f"{line.id}: {samples}")
                    continue
                file.write(samples.tobytes())
                output = line.audio in outputs
                clips.append(Clip(line.id, line.audio, line.text, line.split, output, position, len(samples)))
                position += len(samples)
        _raise(data / SPEECH, faults)
        if not clips:
            raise TrainingError(f"{data / 'speech.jsonl'}: has no clip" + (" of the output voice" * outputs_only))
        # The index comes last: without it the samples do not count.
        with whole_file(folder / "clips.json") as index:
            index.write_text(json.dumps({"rate_hz": rate_hz, "clips": [asdict(clip) for clip in clips]}))
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error}); free some space and run again") from error


def _assistant_audios(chat: Path) -> set[str] | None:
    """Audio paths that assistant messages speak; None when there is no such file."""
    if not chat.exists():
        return None
    spoken: set[str] = set()
    for number, line in enumerate(chat.read_text(encoding="utf-8").splitlines(), 1):
        try:
            sample = json.loads(line)
            audios = iter(sample.get("audios", ()))
            for message in sample["messages"]:
                paths = [next(audios) for _ in range(message["content"].count(AUDIO_PLACEHOLDER))]
                spoken.update(paths if message["role"] == "assistant" else ())
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise TrainingError(
                f"{chat}: line {number}: {type(error).__name__} {error}; make the data again"
            ) from error
    return spoken


def _read(path: Path, rate_hz: int) -> NDArray[np.int16] | str:
    """Samples of a file, or what is wrong with it."""
    try:
        samples, stored_hz = soundfile.read(path, dtype="int16")
    except (OSError, RuntimeError) as error:
        return f"{path} cannot be read ({error})"
    if stored_hz != INPUT_SAMPLE_RATE_HZ or samples.ndim != 1:
        return f"{path} has {stored_hz} Hz and shape {samples.shape}; 16 kHz mono is expected"
    if not 0 < len(samples) <= MAX_CLIP_SECONDS * stored_hz:
        return f"{path} has {len(samples) / stored_hz:.2f} s; above 0 and at most {MAX_CLIP_SECONDS:g} s"
    return samples if rate_hz == stored_hz else soxr.resample(samples, stored_hz, rate_hz)


def _raise(manifest: Path, faults: list[str]) -> None:
    if faults:
        shown = "; ".join(faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise TrainingError(f"{manifest}: {len(faults)} faulty clips: {shown}{more}")
