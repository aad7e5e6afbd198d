"""Networks of a finished checkpoint, put where trained ones would be, or where their trainings start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from training.audio import flow, speech_tokenizer, vocoder
from training.audio.checkpoint import write_whole_folder
from training.config import TrainingConfig
from training.errors import TrainingError
from training.language_model import stages
from training.snapshots import write_torch_file
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer

PARTS = ("speech_tokenizer", "vocoder", "flow")
#: What every part of a training recorded, in the checkpoint it made.
RECORD = "training.json"
#: The samples the language model was last trained on, in the same file.
SAMPLES = "tokens"
#: Folder of a language model that stage 4 goes on with, and the records of the stages that made it.
START, START_RECORDS = "start", "records.json"
#: Folder of a language model that stays as it is, with the records of the stages and samples that made it.
KEPT = "kept"
#: Folder of an audio network that is trained on, and of the speech tokenizer that the start's codes are from.
AUDIO_START = "start-{}"
STAGE_PARTS = tuple(f"stage{number}" for number in stages.STAGES)


def take_audio_networks(config: TrainingConfig, checkpoint: Path, out: Path, names: Sequence[str] = PARTS) -> None:
    """Put speech tokenizer, vocoder and flow of `checkpoint` into `out` as parts that are done, with their records.

    Args:
        names: which of them.

    Parts that are done already stay as they are, so the same command goes on after a stop.

    Raises:
        CheckpointError: the checkpoint's networks cannot be read.
        TrainingError: they have other sizes than the configuration's, `out` holds begun trainings of them, the
            checkpoint has no records, or a file cannot be written.
    """
    wanted = [name for name in names if not (out / name / "done.json").exists()]
    if begun := [name for name in wanted if (out / name).exists()]:
        raise TrainingError(
            f"--audio-from: {out} holds begun trainings of {', '.join(begun)}; delete these folders, or leave it out"
        )
    _take(config, checkpoint, wanted, lambda name: out / name, "done.json")


def _take(
    config: TrainingConfig, checkpoint: Path, names: Sequence[str], folder_of: Callable[[str], Path], record: str
) -> None:
    """Write networks of a checkpoint, as their trainings would have, and their records, each folder whole or not."""
    sizes: dict[str, object] = {}
    tensors: dict[str, Mapping[str, Tensor]] = {}
    sizes["speech_tokenizer"], _ = load_speech_tokenizer(checkpoint / "speech_tokenizer")
    sizes["vocoder"], tensors["vocoder"] = load_vocoder(checkpoint / "audio_decoder")
    sizes["flow"], tensors["flow"] = load_flow(checkpoint / "audio_decoder")
    asked = {name: getattr(config, name).model for name in PARTS}
    if faults := [f"{name}: {sizes[name]}, not {asked[name]}" for name in PARTS if sizes[name] != asked[name]]:
        raise TrainingError("\n".join([f"{checkpoint} has other sizes than the configuration", *faults]))
    records = _records(checkpoint, PARTS)
    networks: dict[str, Callable[[Path], object]] = {
        "speech_tokenizer": lambda place: shutil.copytree(
            checkpoint / "speech_tokenizer", place / speech_tokenizer.EXPORT
        ),
        "vocoder": lambda place: _write(tensors["vocoder"], place / vocoder.EXPORT),
        "flow": lambda place: _write(tensors["flow"], place / flow.EXPORT),
    }
    for name in names:

        def fill(place: Path, name: str = name) -> None:
            networks[name](place)
            (place / record).write_text(json.dumps(records[name], indent=2) + "\n", encoding="utf-8")

        write_whole_folder(folder_of(name), fill)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    write_torch_file(path, {key: value.half() for key, value in tensors.items()})


def continue_audio_networks(config: TrainingConfig, checkpoint: Path, out: Path, names: Sequence[str]) -> None:
    """Put audio networks of `checkpoint` into `out/start-NAME` for their trainings to go on with.

    Starts that are there already stay as they are, so the same command goes on after a stop.

    Raises:
        CheckpointError: a network cannot be read.
        TrainingError: one has other sizes than the configuration's, the checkpoint has no records, or a file cannot be
            written.
    """
    wanted = [name for name in names if not (out / AUDIO_START.format(name) / START_RECORDS).exists()]
    if wanted:
        _take(config, checkpoint, wanted, lambda name: out / AUDIO_START.format(name), START_RECORDS)


def take_language_model(config: TrainingConfig, checkpoint: Path, out: Path) -> None:
    """Put the language model and the tokenizer of `checkpoint` into `out/start`: what is left to train is stage 4.

    A start that is there already stays as it is, so the same command goes on after a stop.

    Raises:
        CheckpointError: the language model cannot be read.
        TrainingError: it has other sizes than the configuration's, `out` holds begun stages, tokens of another
            tokenizer or a language model to keep, the checkpoint has no records, or a file cannot be written.
    """
    _take_language_model(config, checkpoint, out, START, STAGE_PARTS, (KEPT, "tokens", *STAGE_PARTS))


def keep_language_model(config: TrainingConfig, checkpoint: Path, out: Path) -> None:
    """Put the language model and the tokenizer of `checkpoint` into `out/kept`: its stages are done.

    One that is there already stays as it is, so the same command goes on after a stop.

    Raises:
        CheckpointError: the language model cannot be read.
        TrainingError: it has other sizes than the configuration's, `out` holds a language model's training, the
            checkpoint has no records, or a file cannot be written.
    """
    _take_language_model(config, checkpoint, out, KEPT, (*STAGE_PARTS, SAMPLES), (START, "tokens", *STAGE_PARTS))


def _take_language_model(
    config: TrainingConfig,
    checkpoint: Path,
    out: Path,
    folder: str,
    recorded: Sequence[str],
    others: Sequence[str],
) -> None:
    """Write the language model and the records `recorded`, the folder whole or not; `others` must not be there."""
    if (out / folder / START_RECORDS).exists():
        return
    if begun := [name for name in others if (out / name).exists()]:
        raise TrainingError(
            f"--continue-from: {out} holds {', '.join(begun)} already; delete these, or choose another --out"
        )
    found, _ = load_language_model(checkpoint / stages.EXPORT)
    if faults := _other_sizes(config, found):
        raise TrainingError(
            "\n".join([f"--continue-from: {checkpoint} has other sizes than the configuration", *faults])
        )
    records = _records(checkpoint, recorded)

    def fill(place: Path) -> None:
        shutil.copytree(checkpoint / stages.EXPORT, place / stages.EXPORT)
        (place / START_RECORDS).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")

    write_whole_folder(out / folder, fill)


def _other_sizes(config: TrainingConfig, found: LanguageModelConfig) -> list[str]:
    asked = stages.with_modules(config.language_model.model.backbone(found.vocab_size), found.mctp_modules)
    faults = [] if found == asked else [f"language_model: {found}, not {asked}"]
    if found.mctp_modules != config.language_model.model.mctp_modules:
        faults.append(f"MCTP modules: {found.mctp_modules}, not {config.language_model.model.mctp_modules}")
    return faults


def _records(checkpoint: Path, names: Sequence[str]) -> dict[str, object]:
    path = checkpoint / RECORD
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {name: records[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: not the records of a training ({error!r}); take a checkpoint that this program made"
        ) from error
