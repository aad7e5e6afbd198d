"""Start from a finished checkpoint: which of its parts are trained, from what, and which are taken unchanged.

`OUT/init/` holds a copy of the checkpoint's networks and records, so that a resumed training, or one whose result
replaces the checkpoint, still has them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from training.audio.speech_codes import SpeechCodes
from training.config import TrainingConfig
from training.device import pick_device
from training.errors import TrainingError
from training.files import whole_folder
from training.language_model.conversations import read_conversations
from training.language_model.initialise import with_modules
from training.language_model.prepare import CHAT
from training.language_model.stages import EXPORT, STAGES, write_released
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import CheckpointError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.tokenizer import TextTokenizer

AUDIO_PARTS = ("speech_tokenizer", "vocoder", "flow")
PARTS = (*AUDIO_PARTS, "language_model")
SCRATCH, CONTINUED, UNCHANGED = "scratch", "continued", "unchanged"
#: What every part of a training recorded, in the checkpoint it made; "tokens": the samples of the language model.
RECORDS = "training.json"
STAGE_PARTS = tuple(f"stage{number}" for number in STAGES)
_FOLDER, _SELECTION = "init", "init.json"
_FOLDERS = {"speech_tokenizer": "speech_tokenizer", "vocoder": "audio_decoder", "flow": "audio_decoder"}
_LOADERS = {"speech_tokenizer": load_speech_tokenizer, "vocoder": load_vocoder, "flow": load_flow}
#: Tables with a row for each token; the head may be the embedding itself.
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class InitFrom:
    """What each part of a training starts from.

    Attributes:
        checkpoint: as it was named; empty where everything is trained from random weights.
        starts: part -> "continued" (trained from the checkpoint's weights), "scratch" (trained from random ones) or
            "unchanged".
    """

    checkpoint: str
    starts: Mapping[str, str]

    @classmethod
    def parse(cls, checkpoint: Path | None, train: str | None) -> InitFrom | None:
        """The options --init-from and --train, None without them.

        Args:
            train: names of `PARTS` joined by commas, or all; NAME:scratch starts that part from random weights.

        Raises:
            TrainingError: one option without the other, an unknown part, or parts that must follow new speech codes.
        """
        if checkpoint is None or train is None:
            if checkpoint is not None or train is not None:
                raise TrainingError(f"--init-from CHECKPOINT and --train NAMES need each other; {_usage()}")
            return None
        starts, unknown = dict.fromkeys(PARTS, UNCHANGED), []
        for word in train.split(","):
            name, colon, how = word.strip().partition(":")
            if name not in (*PARTS, "all") or (colon and how != SCRATCH):
                unknown.append(word)
            starts |= dict.fromkeys(PARTS if name == "all" else (name,), SCRATCH if colon else CONTINUED)
        if unknown:
            raise TrainingError(f"--train: {', '.join(map(repr, unknown))} unknown; {_usage()}")
        followers = [name for name in ("flow", "language_model") if starts[name] == UNCHANGED]
        if starts["speech_tokenizer"] != UNCHANGED and followers:
            raise TrainingError(
                f"--train: a speech tokenizer that is trained has new codes, which {' and '.join(followers)} must "
                f"follow; add {','.join(followers)}"
            )
        return cls(checkpoint.as_posix(), starts)

    @classmethod
    def read(cls, out: Path) -> InitFrom:
        """What the training in `out` started from."""
        path = out / _FOLDER / _SELECTION
        if not path.exists():
            return cls("", dict.fromkeys(PARTS, SCRATCH))
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def trains(self, part: str) -> bool:
        return self.starts[part] != UNCHANGED

    @property
    def recodes(self) -> bool:
        """Whether a language model that goes on must learn the codes of another speech tokenizer."""
        return self.starts["language_model"] == CONTINUED and self.trains("speech_tokenizer")

    def records(self, out: Path) -> dict[str, Any]:
        """What the parts of the checkpoint recorded; empty without one."""
        path = out / _FOLDER / RECORDS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __str__(self) -> str:
        """For people: "checkpoints/small: flow continued, vocoder unchanged, ..."."""
        return f"{self.checkpoint}: " + ", ".join(f"{name} {how}" for name, how in self.starts.items())


def init_folder(out: Path, part: str) -> Path:
    """Folder of the released layout that holds a part of the checkpoint that the training in `out` started from."""
    return out / _FOLDER / _FOLDERS.get(part, part)


def init_training(asked: InitFrom | None, config: TrainingConfig, out: Path) -> InitFrom:
    """Copy what is needed of the checkpoint to `out/init`; what is there already stays, so a resume needs no options.

    Raises:
        TrainingError: parts missing in the checkpoint or of other sizes than the configuration's (all are named), a
            checkpoint without records, a folder that holds another training, or a file that cannot be written.
    """
    there = InitFrom.read(out)
    if asked is None or there == asked:
        return there
    if begun := [name for name in (_FOLDER, *AUDIO_PARTS, "tokens", *STAGE_PARTS) if (out / name).exists()]:
        now = f" started from {there}" if there.checkpoint else ""
        raise TrainingError(
            f"--init-from: {out} holds another training{now} ({', '.join(begun)}); choose another --out, or delete it"
        )
    checkpoint = Path(asked.checkpoint)
    needed = [name for name in PARTS if asked.starts[name] != SCRATCH or (name == "speech_tokenizer" and asked.recodes)]
    if faults := [fault for name in needed if (fault := _fault(checkpoint, name, config))]:
        raise TrainingError("\n  ".join([f"--init-from: {checkpoint} does not fit the configuration:", *faults]))
    path = checkpoint / RECORDS
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        wanted = [name for name in needed if name in AUDIO_PARTS]
        if "language_model" in needed:
            wanted += [*STAGE_PARTS, *(() if asked.trains("language_model") else ("tokens",))]
        if missing := [name for name in wanted if name not in records]:
            raise KeyError(", ".join(missing))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: not the records of a training ({error!r}); take a checkpoint that this program made"
        ) from error
    with whole_folder(out / _FOLDER) as folder:
        for name in dict.fromkeys(_FOLDERS.get(name, name) for name in needed):
            shutil.copytree(checkpoint / name, folder / name)
        shutil.copyfile(path, folder / RECORDS)
        selection = {"checkpoint": asked.checkpoint, "starts": dict(asked.starts)}
        (folder / _SELECTION).write_text(json.dumps(selection, indent=2) + "\n", encoding="utf-8")
    return asked


def _fault(checkpoint: Path, part: str, config: TrainingConfig) -> str | None:
    """Why a part cannot be taken: it is not there, not readable, or of another size."""
    try:
        if part in _LOADERS:
            found, wanted = _LOADERS[part](checkpoint / _FOLDERS[part])[0], getattr(config, part).model
        else:
            found, sizes = load_language_model(checkpoint / part)[0], config.language_model.model
            wanted = with_modules(sizes.backbone(found.vocab_size), sizes.mctp_modules)
    except CheckpointError as error:
        return f"{part}: {error}"
    return None if found == wanted else f"{part}: {found}, not {wanted}"


def _usage() -> str:
    return f"--train takes all, or any of {', '.join(PARTS)}, joined by commas; NAME:{SCRATCH}: from random weights"


def recode(
    language_model: Path,
    old_tokenizer: Path,
    new_tokenizer: Path,
    data: Path,
    folder: Path,
    device: str = "auto",
    clips: int = 4_000,
) -> Path:
    """Give the audio tokens of a language model new rows, for a speech tokenizer whose codes mean something else.

    The row of a new code is the mean of the old codes' rows, weighted by how often these stood at its place in the
    same sounds. It is a start for a training, not the end of one.

    Args:
        language_model, old_tokenizer: a model in the released layout and the tokenizer of its codes.
        new_tokenizer: of the codes that the result reads and writes.
        data: a data folder; its first `clips` sounds for training are coded by both tokenizers.

    Returns:
        `folder/language_model`.

    Raises:
        CheckpointError: a network cannot be read.
        TrainingError: the tokenizers differ in size, the data are faulty, or a file cannot be written.
    """
    console, place = Console(soft_wrap=True, highlight=False), pick_device(device)
    vocabulary = TextTokenizer(language_model / "tokenizer.json").vocabulary
    config, tensors = load_language_model(language_model)
    conversations = read_conversations(data / CHAT, "train")
    audios = list(dict.fromkeys(audio for c in conversations for audio in c.audios))[:clips]
    coded: list[list[list[int]]] = []
    for tokenizer in (old_tokenizer, new_tokenizer):
        codes = SpeechCodes(tokenizer, folder / "codes", place)
        if codes.config.quantize_vocab_size != vocabulary.audio_codes:
            raise TrainingError(
                f"{tokenizer}: has {codes.config.quantize_vocab_size} codes, the language model "
                f"{vocabulary.audio_codes}; take tokenizers of its size"
            )
        codes.make(audios, console=console)
        coded.append([codes[audio] for audio in audios])
    counts = code_pairs(coded[0], coded[1], vocabulary.audio_codes)
    rows = slice(vocabulary.audio_offset, vocabulary.audio_offset + vocabulary.audio_codes)
    for name in _TABLES:
        if name in tensors:
            tensors[name] = tensors[name].clone()
            tensors[name][rows] = mixed_rows(tensors[name][rows], counts)
    used = int((counts.sum(1) > 0).sum())
    console.print(f"recode: {used} of {vocabulary.audio_codes} new codes occur in {len(audios)} sounds", markup=False)
    write_released(folder / EXPORT, config, vocabulary, tensors, NAMED_MODES["vanilla"], language_model)
    return folder / EXPORT


def code_pairs(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]], codes: int) -> NDArray[np.int64]:
    """How often each new code (row) stood where each old code (column) did: int64 [codes, codes]."""
    counts = np.zeros((codes, codes), np.int64)
    for before, after in zip(old, new, strict=True):
        np.add.at(counts, (np.asarray(after, np.int64), np.asarray(before, np.int64)), 1)
    return counts


def mixed_rows(rows: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """Rows of the new codes from those of the old ones, [codes, width] each; a code that never occurs gets the mean."""
    shares = torch.from_numpy(counts).double()
    total = shares.sum(1, keepdim=True)
    mixed = shares @ rows.double() / total.clamp(min=1)
    return torch.where(total > 0, mixed, rows.double().mean(0)).to(rows.dtype)
