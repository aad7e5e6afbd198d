"""Tiny suites in the layouts of their publication; the sound is a short tone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.2 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)
    form = {".opus": ("OGG", "OPUS"), ".flac": ("FLAC", "PCM_16")}.get(path.suffix, ("WAV", "PCM_16"))
    soundfile.write(path, samples.astype(np.float32), RATE_HZ, format=form[0], subtype=form[1])


def write(path: Path, *text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")


def librispeech(folder: Path, texts: Sequence[str], part: str = "test-clean") -> None:
    chapter = folder / "LibriSpeech" / part / "1089" / "134686"
    names = [f"1089-134686-{number:04}" for number in range(len(texts))]
    lines = (f"{name} {text.upper()}" for name, text in zip(names, texts, strict=True))
    write(chapter / "1089-134686.trans.txt", *lines)
    for name in names:
        tone(chapter / f"{name}.flac")


def libritts(folder: Path, texts: Sequence[str]) -> None:
    chapter = folder / "LibriTTS" / "test-clean" / "1089" / "134686"
    for number, text in enumerate(texts):
        write(chapter / f"1089_134686_000001_{number:06}.original.txt", f"{text} (original)")
        write(chapter / f"1089_134686_000001_{number:06}.normalized.txt", text)


def aishell(folder: Path, texts: Sequence[str]) -> None:
    names = [f"BAC009S0764W{number:04}" for number in range(len(texts))]
    lines = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
    write(folder / "data_aishell/transcript/aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对", *lines)
    for name in names:
        tone(folder / "data_aishell/wav/test/S0764" / f"{name}.wav")


def wenetspeech(folder: Path, texts: Sequence[str]) -> None:
    segments = [
        {"sid": f"Y0_S{n:05}", "begin_time": 0.5 * n, "end_time": 0.5 * n + 0.4, "text": text, "subsets": ["TEST_NET"]}
        for n, text in enumerate(texts)
    ]
    segments.append({"sid": "X", "begin_time": 0, "end_time": 1, "text": "训练", "subsets": ["L", "M"]})
    recording = {"aid": "Y0", "path": "audio/test_net/B00000/Y0.opus", "segments": segments}
    write(folder / "WenetSpeech.json", json.dumps({"dataName": "WenetSpeech", "audios": [recording]}))
    tone(folder / "audio/test_net/B00000/Y0.opus", 0.5 * len(texts))


def fleurs(folder: Path, texts: Sequence[str]) -> None:
    root = folder / "data" / "en_us"
    rows = (f"{1600 + n}\t{n}.wav\t{text}\t{text.lower()}\t|\t{8000}\tMALE" for n, text in enumerate(texts))
    write(root / "test.tsv", *rows)
    for number in range(len(texts)):
        tone(root / "audio" / "test" / f"{number}.wav")


def seed_tts(folder: Path, texts: Sequence[str]) -> None:
    rows = (f"common_voice_en_{n}|A prompt.|prompt-wavs/{n}.wav|{text}" for n, text in enumerate(texts))
    write(folder / "seedtts_testset" / "en" / "meta.lst", *rows)


def _questions(folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    place = folder / "eval_datas" / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "audio_filename"])
        for number, row in enumerate(rows):
            writer.writerow([*row, f"{number}.wav"])
            tone(place / "audios" / f"{number}.wav")


def llama_questions(folder: Path, texts: Sequence[str]) -> None:
    _questions(folder, "llama_questions", ["Questions", "Answer"], [(f"What is {text}?", text) for text in texts])


def trivia_qa(folder: Path, texts: Sequence[str]) -> None:
    header = ["question", "answer_normalized_value", "answer_normalized_aliases"]
    _questions(folder, "trivia_qa", header, [(f"What is {text}?", text, f"{text},the other") for text in texts])


def web_questions(folder: Path, texts: Sequence[str]) -> None:
    _questions(folder, "web_questions", ["question", "answers"], [(f"Who is {t}?", f"{t}; the other") for t in texts])


def manifest(folder: Path, texts: Sequence[str]) -> None:
    rows = []
    for number, text in enumerate(texts):
        tone(folder / f"{number}.wav")
        rows.append({"kind": "asr", "audio": f"{number}.wav", "text": text})
    write(folder / "manifest.jsonl", *(json.dumps(row, ensure_ascii=False) for row in rows))


#: Name of the suite -> how its tiny twin is made: (folder, texts).
MAKERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "librispeech": librispeech,
    "libritts": libritts,
    "aishell": aishell,
    "wenetspeech": wenetspeech,
    "fleurs": fleurs,
    "seed-tts": seed_tts,
    "llama-questions": llama_questions,
    "trivia-qa": trivia_qa,
    "web-questions": web_questions,
    "manifest": manifest,
}
