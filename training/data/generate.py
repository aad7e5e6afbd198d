"""Makes a data folder: plans the samples, lets flite speak what is missing, writes manifests and split lists.

    DATA/config.json speech.jsonl chat.jsonl summary.json lexicon.txt splits/{train,test}.txt audio/VOICE/xx/*.flac

Clips are files named by their content, so an interrupted run goes on where it stopped, and a larger config reuses the
sounds of a smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from training.data.answers import words_of
from training.data.manifest import CHAT, SPEECH, SpeechClip, write_lines
from training.data.plan import PlannedSample, plan
from training.data.settings import DataConfig
from training.data.teacher import Clip, find_flite, write_clip
from vita_audio.contract.rates import TOKENS_PER_SECOND

_BATCH = 32  # clips a synthesiser process takes at once


def run(config: DataConfig, folder: Path, console: Console | None = None) -> None:
    """Make the data folder, or finish it; returns at once when it is complete and of this config.

    Raises:
        TrainingError: flite is missing or failed, or a file could not be written.
    """
    console = console or Console()
    settings = json.dumps(asdict(config), indent=1) + "\n"
    done = folder / "config.json"
    if done.is_file() and done.read_text() == settings:
        console.print(f"data: complete in {folder}")
        return
    find_flite()
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    samples = plan(config)
    clips = _clips(samples)
    seconds = _speak(list(clips), config, folder, console)
    spoken = [
        SpeechClip(clip.id(config), clip.path(config), clip.text, clip.voice, split, round(length, 4))
        for (clip, split), length in zip(clips.items(), seconds, strict=True)
    ]
    write_lines(folder / SPEECH, spoken)
    write_lines(folder / CHAT, (planned.sample for planned in samples))
    _write_lists(samples, folder)
    length_of = dict(zip(clips, seconds, strict=True))
    summary = summarise(samples, length_of)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    done.write_text(settings)
    hours = sum(seconds) / 3600
    console.print(f"data: {len(samples)} samples, {len(clips)} clips, {hours:.2f} hours of sound in {folder}")


def summarise(samples: Iterable[PlannedSample], seconds_of: dict[Clip, float]) -> dict[str, dict[str, float]]:
    """Per split and task: samples, seconds of sound, audio tokens and words (the prompt's wording counted)."""
    rows: dict[str, dict[str, float]] = {}
    for planned in samples:
        sample = planned.sample
        spoken = "spoken " if sample.task == "chat" and sample.voice else "typed " if sample.task == "chat" else ""
        name = f"{sample.split} {spoken}{sample.task}"
        row = rows.setdefault(name, dict.fromkeys(("samples", "seconds", "audio_tokens", "words"), 0))
        seconds = [seconds_of[clip] for clip in planned.clips]
        row["samples"] += 1
        row["seconds"] += sum(seconds)
        row["audio_tokens"] += sum(-int(-length * TOKENS_PER_SECOND // 1) for length in seconds)
        row["words"] += sum(len(words_of(message["content"])) for message in sample.messages)
    return {name: {key: round(value, 1) for key, value in row.items()} for name, row in rows.items()}


def _clips(samples: Sequence[PlannedSample]) -> dict[Clip, str]:
    """Every clip once, with its split: a sound that training uses is a training sound."""
    clips: dict[Clip, str] = {}
    for planned in samples:
        for clip in planned.clips:
            if clips.get(clip) != "train":
                clips[clip] = planned.sample.split
    return clips


def _speak(clips: Sequence[Clip], config: DataConfig, folder: Path, console: Console) -> list[float]:
    """Make what is missing; seconds of each clip."""
    batches = [(clips[start : start + _BATCH], config, folder) for start in range(0, len(clips), _BATCH)]
    with ProcessPoolExecutor(config.processes) as pool:
        made = (map if config.processes == 1 else pool.map)(_speak_batch, batches)
        try:
            shown = track(made, f"data: speaking {len(clips)} clips", len(batches), console=console)
            return [length for lengths in shown for length in lengths]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _speak_batch(batch: tuple[Sequence[Clip], DataConfig, Path]) -> list[float]:
    clips, config, folder = batch
    return [write_clip(clip, config, folder) for clip in clips]


def _write_lists(samples: Sequence[PlannedSample], folder: Path) -> None:
    """splits/{train,test}.txt: the content of each split; lexicon.txt: every word, sorted."""
    lines: dict[str, dict[str, None]] = {"train": {}, "test": {}}
    words: set[str] = set()
    for planned in samples:
        sample = planned.sample
        text = sample.question or sample.answer
        lines[sample.split][f"{sample.task}\t{sample.family}\t{sample.held_out or '-'}\t{text}"] = None
        words.update(words_of(f"{sample.question} {sample.answer}"))
    (folder / "splits").mkdir(exist_ok=True)
    for split, listed in lines.items():
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{line}\n" for line in listed), encoding="utf-8")
    (folder / "lexicon.txt").write_text("".join(f"{word}\n" for word in sorted(words)), encoding="utf-8")
