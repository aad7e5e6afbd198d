"""A tiny checkpoint and a few conversations with sounds, for tests of the language model's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.text.chat_template import ASR_INSTRUCTION, SPOKEN_ANSWER_SYSTEM, TTS_INSTRUCTION

AUDIO = "<|audio|>"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_checkpoint(folder: Path) -> Path:
    """The tiny random-weight checkpoint (K = 10, 256 codes)."""
    write_random_checkpoint(folder, TINY)
    return folder


def write_sound(path: Path, seconds: float, pitch_hz: float) -> None:
    """A buzz of one pitch at 16 kHz."""
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    wave = sum(np.sin(2 * np.pi * pitch_hz * h * time_s) / h for h in range(1, 9))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * wave, 16_000)


def conversation_lines(folder: Path) -> list[dict[str, Any]]:
    """Twelve conversations of all tasks, two of them of the test split; writes their sounds."""
    lines = []
    for index in range(12):
        word, task = WORDS[index % 10], ("chat", "tts", "asr", "text")[index % 4]
        question, answer = f"audio/q{index}.wav", f"audio/a{index}.wav"
        write_sound(folder / question, 0.5 + 0.05 * index, 100 + 10 * index)
        write_sound(folder / answer, 0.8 + 0.1 * index, 200 + 10 * index)
        user, assistant = {
            "chat": (AUDIO, f"It is {word}.{AUDIO}"),
            "tts": (f"{TTS_INSTRUCTION}\n{word} and two", f"{word} and two{AUDIO}"),
            "asr": (f"{ASR_INSTRUCTION}\n{AUDIO}", f"{word} and {word}"),
            "text": (f"What comes after {word}?", "Who knows."),
        }[task]
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        if task == "chat":
            messages.insert(0, {"role": "system", "content": SPOKEN_ANSWER_SYSTEM})
        audios = {"chat": [question, answer], "tts": [answer], "asr": [question], "text": []}[task]
        split = "test" if index >= 8 and index % 4 in (0, 1) else "train"
        lines.append({"id": f"s{index}", "task": task, "split": split, "messages": messages, "audios": audios})
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_conversations(folder: Path) -> Path:
    """`folder/chat.jsonl` with its sounds."""
    return write_lines(folder / "chat.jsonl", conversation_lines(folder))
