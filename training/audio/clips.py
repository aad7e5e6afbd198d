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

from training.errors import TrainingError
from vita_audio.contract import INPUT_SAMPLE_RATE_HZ

MAX_CLIP_SECONDS = 30.0  # the tokenizer hears pieces of this length
_FAULTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance; its samples are [start, start + samples) of the packed file."""

    id: str
    text: str
    voice: str
    split: str
    start: int
    samples: int


class Clips(Sequence[Clip]):
    """Packed clips of one sample rate."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
        self.rate_hz: int = index["rate_hz"]
        self.fingerprint: str = index["fingerprint"]
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

    def of_split(self, split: str, voice: str | None = None) -> list[int]:
        """Indices of the clips of a split, of one voice if given.

        Raises:
            TrainingError: there are none.
        """
        found = [index for index, clip in enumerate(self.clips) if clip.split == split and voice in (None, clip.voice)]
        if not found:
            voice_text = f" of voice {voice!r}" if voice else ""
            raise TrainingError(f"speech.jsonl has no clip{voice_text} in split {split!r}; make more data")
        return found


def batch_of(waves: Sequence[NDArray[np.int16]], multiple: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Waves in [-1, 1] padded with zeros to a common multiple of `multiple`: [B, n] and their samples [B]."""
    lengths = np.array([len(wave) for wave in waves], np.int64)
    batch = np.zeros((len(waves), -(-int(lengths.max()) // multiple) * multiple), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    batch /= 32768.0
    return batch, lengths


def pack_clips(data: Path, folder: Path, rate_hz: int, voice: str | None = None) -> Clips:
    """Read the clips of `data/speech.jsonl` (16 kHz mono; of one voice if given) into `folder`; done once.

    Raises:
        TrainingError: a line or a file is faulty (missing, not 16 kHz mono, empty, above 30 s); names the first ones.
    """
    manifest = data / "speech.jsonl"
    try:
        text = manifest.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{manifest}: cannot be read ({error.strerror}); make the data first") from error
    fingerprint = hashlib.sha256(f"{rate_hz} {voice}\n{text}".encode()).hexdigest()[:16]
    if (folder / "clips.json").exists():
        packed = Clips(folder)
        if packed.fingerprint == fingerprint:
            return packed
    lines = _parse(manifest, text)
    chosen = [line for line in lines if voice is None or line["voice"] == voice]
    clips, faults, position = [], [], 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clips.json").unlink(missing_ok=True)  # the index comes last: without it the samples do not count
    try:
        with (folder / "samples.i16").open("wb") as file:
            for line in track(chosen, f"packing {len(chosen)} clips at {rate_hz} Hz", transient=True):
                try:
                    samples = _read(data / line["audio"], rate_hz)
                except TrainingError as error:
                    faults.append(f"{line['id']}: {error}")
                    continue
                file.write(samples.tobytes())
                clips.append(Clip(line["id"], line["text"], line["voice"], line["split"], position, len(samples)))
                position += len(samples)
        _raise(manifest, faults)
        index = {"rate_hz": rate_hz, "fingerprint": fingerprint, "clips": [asdict(clip) for clip in clips]}
        temporary = folder / ".clips.json.tmp"
        temporary.write_text(json.dumps(index), encoding="utf-8")
        temporary.replace(folder / "clips.json")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error}); free some space and run again") from error
    if not clips:
        raise TrainingError(f"{manifest}: has no clip" + (f" of voice {voice!r}" if voice else ""))
    return Clips(folder)


def _parse(manifest: Path, text: str) -> list[dict[str, str]]:
    lines, faults = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            fields = json.loads(line)
            lines.append({name: str(fields[name]) for name in ("id", "audio", "text", "voice", "split")})
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"line {number}: {type(error).__name__} {error}")
    _raise(manifest, faults)
    return lines


def _read(path: Path, rate_hz: int) -> NDArray[np.int16]:
    try:
        samples, stored_hz = soundfile.read(path, dtype="int16")
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"{path} cannot be read ({error})") from error
    if stored_hz != INPUT_SAMPLE_RATE_HZ or samples.ndim != 1:
        raise TrainingError(f"{path} has {stored_hz} Hz and shape {samples.shape}; 16 kHz mono is expected")
    if not 0 < len(samples) <= MAX_CLIP_SECONDS * stored_hz:
        raise TrainingError(f"{path} has {len(samples) / stored_hz:.2f} s; above 0 and at most {MAX_CLIP_SECONDS:g} s")
    return samples if rate_hz == stored_hz else soxr.resample(samples, stored_hz, rate_hz)


def _raise(manifest: Path, faults: list[str]) -> None:
    if faults:
        shown = "; ".join(faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise TrainingError(f"{manifest}: {len(faults)} faulty clips: {shown}{more}")
