"""A little speech of our own for the training tests: letters are resonances of a voice, no synthesiser needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from training.run import Run, RunSettings

RATE_HZ = 16_000
LETTER_SAMPLES = 1_600  # 0.1 s
TEXTS = (
    "abba cad bad cab dab",
    "dab",
    "cab a bad cab",
    "add a dab",
    "bad dad",
    "a cab add dada abba",
    "dada",
    "abc abc abc",
)
VOICES = {"slt": 200.0, "rms": 110.0}  # f0 in Hz


def say(text: str, f0_hz: float) -> NDArray[np.float32]:
    """Letters a to d as two resonances over a harmonic voice, spaces as near silence: [0.1 s per letter]."""
    rng = np.random.default_rng(0)
    time_s = np.arange(LETTER_SAMPLES * len(text)) / RATE_HZ
    wave = 0.0005 * rng.standard_normal(len(time_s))
    for position, letter in enumerate(text):
        if letter == " ":
            continue
        part = slice(position * LETTER_SAMPLES, (position + 1) * LETTER_SAMPLES)
        number = ord(letter) - ord("a")
        for harmonic in range(1, int(4000 / f0_hz)):
            hz = harmonic * f0_hz
            gain = sum(np.exp(-(((hz - centre) / 200) ** 2)) for centre in (400 + 200 * number, 2600 - 400 * number))
            wave[part] += 0.1 * (gain + 0.05) * np.sin(2 * np.pi * hz * time_s[part])
    return wave.astype(np.float32)


def write_clips(folder: Path, copies: int = 2) -> Path:
    """`folder/speech.jsonl` with all texts in both voices; the last text is the test split."""
    (folder / "audio").mkdir(parents=True)
    lines = []
    for copy in range(copies):
        for number, text in enumerate(TEXTS):
            for voice, f0_hz in VOICES.items():
                name = f"{voice}_{number}_{copy}"
                soundfile.write(folder / "audio" / f"{name}.wav", say(text, f0_hz * (1 + 0.05 * copy)), RATE_HZ)
                split = "test" if number == len(TEXTS) - 1 else "train"
                lines.append({"id": name, "audio": f"audio/{name}.wav", "text": text, "voice": voice, "split": split})
    (folder / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def quick_run(steps: int, save_every: int | None = None) -> RunSettings:
    """A short run at a high rate."""
    return RunSettings(
        steps=steps, learning_rate=2e-3, log_every=2, save_every=save_every or steps, evaluate_every=steps, seed=7
    )


class Killed(Exception):
    """What a run dies of in a test."""


def kill_at(step: int) -> type[Run]:
    """A `Run` that dies in the middle of a step, after the gradients but before anything of the step is saved."""

    class DyingRun(Run):
        def log(self, **values: object) -> None:
            if self.step == step:
                raise Killed
            super().log(**values)  # type: ignore[arg-type]

    return DyingRun
