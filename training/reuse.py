"""Audio networks of a finished checkpoint instead of trained ones: what is left to train is the language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from training.audio import flow, speech_tokenizer, vocoder
from training.audio.checkpoint import write_whole_folder
from training.config import TrainingConfig
from training.errors import TrainingError
from training.snapshots import write_torch_file
from vita_audio.checkpoint import load_flow, load_speech_tokenizer, load_vocoder

PARTS = ("speech_tokenizer", "vocoder", "flow")
#: What every part of a training recorded, in the checkpoint it made.
RECORD = "training.json"


def take_audio_networks(config: TrainingConfig, checkpoint: Path, out: Path) -> None:
    """Put speech tokenizer, vocoder and flow of `checkpoint` into `out` as parts that are done, with their records.

    Parts that are done already stay as they are, so the same command goes on after a stop.

    Raises:
        CheckpointError: the checkpoint's networks cannot be read.
        TrainingError: they have other sizes than the configuration's, `out` holds begun trainings of them, the
            checkpoint has no records, or a file cannot be written.
    """
    wanted = [name for name in PARTS if not (out / name / "done.json").exists()]
    if begun := [name for name in wanted if (out / name).exists()]:
        raise TrainingError(
            f"--audio-from: {out} holds begun trainings of {', '.join(begun)}; delete these folders, or leave it out"
        )
    sizes: dict[str, object] = {}
    tensors: dict[str, Mapping[str, Tensor]] = {}
    sizes["speech_tokenizer"], _ = load_speech_tokenizer(checkpoint / "speech_tokenizer")
    sizes["vocoder"], tensors["vocoder"] = load_vocoder(checkpoint / "audio_decoder")
    sizes["flow"], tensors["flow"] = load_flow(checkpoint / "audio_decoder")
    asked = {name: getattr(config, name).model for name in PARTS}
    if faults := [f"{name}: {sizes[name]}, not {asked[name]}" for name in PARTS if sizes[name] != asked[name]]:
        raise TrainingError("\n".join([f"--audio-from: {checkpoint} has other sizes than the configuration", *faults]))
    records = _records(checkpoint)
    networks: dict[str, Callable[[Path], object]] = {
        "speech_tokenizer": lambda place: shutil.copytree(
            checkpoint / "speech_tokenizer", place / speech_tokenizer.EXPORT
        ),
        "vocoder": lambda place: _write(tensors["vocoder"], place / vocoder.EXPORT),
        "flow": lambda place: _write(tensors["flow"], place / flow.EXPORT),
    }
    for name in wanted:

        def fill(place: Path, name: str = name) -> None:
            networks[name](place)
            (place / "done.json").write_text(json.dumps(records[name], indent=2) + "\n", encoding="utf-8")

        write_whole_folder(out / name, fill)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    write_torch_file(path, {key: value.half() for key, value in tensors.items()})


def _records(checkpoint: Path) -> dict[str, object]:
    path = checkpoint / RECORD
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {name: records[name] for name in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"--audio-from: {path}: not the records of a training ({error!r}); take a checkpoint that this program made"
        ) from error
