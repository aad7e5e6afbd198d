"""The parts of a whole training in order; what is done is skipped, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.audio import flow, speech_tokenizer, vocoder
from training.bundle import write_bundle
from training.card import is_current
from training.config import TrainingConfig
from training.data import generate
from training.errors import TrainingError
from training.language_model import prepare, recode, stages
from training.reuse import AUDIO_START, KEPT, START, START_RECORDS


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        made: what must all be there for the part to be done.
        needs: parts that must be done first.
        again: quick; made again when it is asked for by name.
        current: whether what was made is that of this training.
    """

    name: str
    made: tuple[Path, ...]
    needs: tuple[str, ...]
    make: Callable[[], object]
    again: bool = False
    current: Callable[[], bool] = lambda: True

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.made) and self.current()


def parts_of(config: TrainingConfig, out: Path, checkpoint: Path, command: str) -> list[Part]:
    """All parts of a training whose intermediate files are in `out` and whose result is `checkpoint`.

    What `reuse` has put into `out` is gone on with: a language model in `out/start` leaves stage 4 to do, one in
    `out/kept` no stage.

    Args:
        command: what was typed, for the checkpoint's card.
    """
    data, tokens = out / "data", out / "tokens"
    kept, continued = (out / KEPT).exists(), (out / START).exists()
    folders = {name: out / name for name in ("speech_tokenizer", "vocoder", "flow")}
    codec = folders["speech_tokenizer"] / speech_tokenizer.EXPORT
    flow_weights, vocoder_weights = folders["flow"] / flow.EXPORT, folders["vocoder"] / vocoder.EXPORT

    def trained(name: str, export: Path, needs: tuple[str, ...], make: Callable[[], object]) -> Part:
        return Part(name, (out / name / "done.json", export), needs, make)

    parts = [
        Part(
            "data",
            (data / "speech.jsonl", data / "chat.jsonl"),
            (),
            lambda: generate.run(config.data, data),
        ),
        trained(
            "speech_tokenizer",
            codec,
            ("data",),
            lambda: speech_tokenizer.train_speech_tokenizer(
                config.speech_tokenizer,
                data,
                folders["speech_tokenizer"],
                _start_of(out, "speech_tokenizer", speech_tokenizer.EXPORT),
            ),
        ),
        trained(
            "vocoder",
            vocoder_weights,
            ("data",),
            lambda: vocoder.train_vocoder(
                config.vocoder, data, folders["vocoder"], _weights(_start_of(out, "vocoder", vocoder.EXPORT))
            ),
        ),
        trained(
            "flow",
            flow_weights,
            ("data", "speech_tokenizer"),
            lambda: flow.train_flow(
                config.flow, data, codec, folders["flow"], _weights(_start_of(out, "flow", flow.EXPORT))
            ),
        ),
    ]
    if not kept:
        parts.append(
            Part(
                "tokens",
                tuple(tokens / name for name in (prepare.TRAIN, prepare.TEST, prepare.RECORD)),
                ("data", "speech_tokenizer"),
                lambda: prepare.prepare_tokens(
                    config.language_model, data, codec, tokens, out / START / stages.EXPORT if continued else None
                ),
            )
        )
    if continued:
        before, start = "tokens", out / START / stages.EXPORT
        if (old := _start_of(out, "speech_tokenizer", speech_tokenizer.EXPORT)) is not None:
            before, made = "recode", out / "recode" / stages.EXPORT
            parts.append(Part(before, (made,), ("tokens",), _recode(config, start, old, codec, data, out / "recode")))
            start = made
        parts.append(_stage(config, 4, out, before, start))
    elif not kept:
        for number in stages.STAGES:
            before = f"stage{number - 1}" if number > 1 else "tokens"
            parts.append(_stage(config, number, out, before, out / before / stages.EXPORT if number > 1 else None))
    parts.append(
        Part(
            "checkpoint",
            (checkpoint / "README.md",),
            ("speech_tokenizer", "vocoder", "flow", *(() if kept else ("stage4",))),
            lambda: write_bundle(config, out, checkpoint, command),
            again=True,
            current=lambda: is_current(out, checkpoint),
        )
    )
    return parts


def _start_of(out: Path, name: str, export: str) -> Path | None:
    """What an audio network's training goes on with."""
    folder = out / AUDIO_START.format(name)
    return folder / export if (folder / START_RECORDS).exists() else None


def _weights(path: Path | None) -> dict[str, Tensor] | None:
    return None if path is None else torch.load(path, weights_only=True)


def _recode(
    config: TrainingConfig, language_model: Path, old: Path, new: Path, data: Path, folder: Path
) -> Callable[[], object]:
    return lambda: recode.recode(language_model, old, new, data, folder, config.language_model.device)


def _stage(config: TrainingConfig, number: int, out: Path, before: str, previous: Path | None) -> Part:
    folder = out / f"stage{number}"
    return Part(
        f"stage{number}",
        (folder / "done.json", folder / stages.EXPORT),
        (before,),
        lambda: stages.train_stage(config.language_model, number, out / "tokens", previous, folder),
    )


def run_parts(parts: list[Part], only: str | None, say: Callable[[str], None]) -> None:
    """Run what is not done, or one part by its name.

    Raises:
        TrainingError: the part is unknown, or what it needs is not there.
        Stopped: asked to stop; everything is saved.
    """
    by_name = {part.name: part for part in parts}
    if only is not None and only not in by_name:
        raise TrainingError(f"--only: {only!r} is not a part; parts are {', '.join(by_name)}")
    for number, part in enumerate(parts, 1):
        if only not in (None, part.name):
            continue
        if part.done and not (only and part.again):
            say(f"[{number}/{len(parts)}] {part.name}: done")
            continue
        if missing := [name for name in part.needs if not by_name[name].done]:
            raise TrainingError(f"{part.name} needs {', '.join(missing)} first; leave --only out to run all in order")
        say(f"[{number}/{len(parts)}] {part.name}")
        part.make()
