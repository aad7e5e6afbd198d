"""Audio files to speech codes by a checkpoint's speech tokenizer, kept on disk: each file is tokenised once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console

from training.errors import TrainingError
from training.logs import duration
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.speech_features import SpeechPiece, speech_pieces, to_16_khz

WEIGHTS = "model.safetensors"
_BATCH_FRAMES = 8_000  # mel frames of one forward, padding included
_READ_AHEAD = 256
_SHOW_EVERY_S = 30.0


def fingerprint(tokenizer: Path) -> str:
    """Names the weights of a `speech_tokenizer` folder: other weights, other codes."""
    return hashlib.sha256((tokenizer / WEIGHTS).read_bytes()).hexdigest()[:12]


class SpeechCodes:
    """Codes of audio files, made by one tokenizer and cached in `folder/codes-<tokenizer>*.jsonl`.

    A file that was changed (size or time) is tokenised again. Several processes may share the folder: each appends to
    its own file and reads all of them.

    Args:
        tokenizer: a `speech_tokenizer` folder in the released layout.
        folder: the cache.
        rank: which process this is.
    """

    def __init__(self, tokenizer: Path, folder: Path, device: torch.device, rank: int = 0) -> None:
        self.config, tensors = load_speech_tokenizer(tokenizer)
        self._model = SpeechTokenizer(self.config).to(device).eval()
        self._model.load_state_dict(tensors)
        self._device = device
        self.fingerprint = fingerprint(tokenizer)
        self._folder, self._own = folder, folder / f"codes-{self.fingerprint}-{rank}.jsonl"
        self._known: dict[str, list[int]] = {}

    def load(self) -> None:
        """Read what any process has written; an unfinished last line is ignored."""
        for path in sorted(self._folder.glob(f"codes-{self.fingerprint}-*.jsonl")):
            with path.open(encoding="utf-8") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                        self._known[entry["audio"]] = entry["codes"]
                    except (ValueError, KeyError, TypeError):
                        continue

    def __getitem__(self, audio: Path) -> list[int]:
        """Codes of a file that `make` has seen."""
        return self._known[_key(audio)]

    def make(self, audios: Iterable[Path], threads: int = 2, console: Console | None = None) -> None:
        """Tokenise the files that are not known yet, a flush after each batch: an interrupted run goes on from there.

        Raises:
            TrainingError: a file cannot be read, or the disk is full.
        """
        self.load()
        missing = [audio for audio in dict.fromkeys(audios) if _key(audio) not in self._known]
        if not missing:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        started_s = shown_s = time.monotonic()
        done = 0
        try:
            with ThreadPoolExecutor(threads) as pool, self._own.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that an earlier run may have left unfinished
                for start in range(0, len(missing), _READ_AHEAD):
                    part = missing[start : start + _READ_AHEAD]
                    pieces = list(pool.map(self._pieces, part))
                    for audio, codes in zip(part, self._tokenise(pieces), strict=True):
                        self._known[_key(audio)] = codes
                        file.write(json.dumps({"audio": _key(audio), "codes": codes}) + "\n")
                    file.flush()
                    done += len(part)
                    now_s = time.monotonic()
                    if console and (now_s - shown_s > _SHOW_EVERY_S or done == len(missing)):
                        left = duration((now_s - started_s) / done * (len(missing) - done))
                        console.print(f"tokens {done}/{len(missing)} audios, {left} left", markup=False)
                        shown_s = now_s
        except OSError as error:
            raise TrainingError(
                f"{self._own}: cannot be written ({error}); free some space and run it again"
            ) from error

    def _pieces(self, audio: Path) -> list[SpeechPiece]:
        """Features of a file; of several channels only the first is used, as in the reference."""
        try:
            samples, rate_hz = soundfile.read(str(audio), dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            raise TrainingError(f"{audio}: cannot be read ({error})") from error
        if not len(samples):
            raise TrainingError(f"{audio}: is empty")
        return list(speech_pieces(to_16_khz(np.ascontiguousarray(samples[:, 0]), rate_hz), self.config.num_mel_bins))

    @torch.inference_mode()
    def _tokenise(self, files: Sequence[Sequence[SpeechPiece]]) -> list[list[int]]:
        """Codes of each file; pieces of like length share a forward."""
        pieces = [piece for file in files for piece in file]
        codes: dict[int, NDArray[np.int64]] = {}
        order = sorted(range(len(pieces)), key=lambda i: pieces[i].features.shape[1])
        while order:
            longest = pieces[order[-1]].features.shape[1]
            members = [order.pop() for _ in range(min(len(order), max(1, _BATCH_FRAMES // longest)))]
            features = np.zeros((len(members), self.config.num_mel_bins, longest), np.float32)
            for row, member in enumerate(members):
                features[row, :, : pieces[member].features.shape[1]] = pieces[member].features
            valid = torch.tensor([pieces[member].valid_frames for member in members])
            ids = self._model(torch.from_numpy(features).to(self._device), valid.to(self._device)).cpu().numpy()
            for row, member in enumerate(members):
                codes[member] = ids[row, : pieces[member].tokens]
        joined, first = [], 0
        for file in files:
            joined.append([int(code) for i in range(first, first + len(file)) for code in codes[i]])
            first += len(file)
        return joined


def _key(audio: Path) -> str:
    """Names a file as it is now: its path, size and time of change."""
    status = audio.stat()
    path = hashlib.sha1(str(audio.resolve()).encode()).hexdigest()[:16]
    return f"{audio.name}:{path}:{status.st_size}:{status.st_mtime_ns}"
