"""The parts of a whole training in order; what is done is skipped, what was interrupted goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from training.audio import flow, speech_tokenizer, vocoder
from training.bundle import write_bundle
from training.card import is_current
from training.config import TrainingConfig
from training.data import generate
from training.data.manifest import CHAT, SPEECH
from training.errors import TrainingError
from training.files import whole_file
from training.init_from import CONTINUED, SCRATCH, InitFrom, init_folder, recode
from training.language_model import prepare, stages
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.file_records import file_sha256, visible_files

_SOURCES = "made_from.json"  # in a part's folder


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        made: what must all be there for the part to be done.
        needs: parts that must be done first, of those that this training has.
        again: quick; made again when it is asked for by name.
        current: whether what was made is that of this training.
        folder: where it is made; records what it is made from.
        sources: files and folders that it is made from; what was made from others is not done.
    """

    name: str
    made: tuple[Path, ...]
    needs: tuple[str, ...]
    make: Callable[[], object]
    again: bool = False
    current: Callable[[], bool] = lambda: True
    folder: Path | None = None
    sources: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.made) and self.current() and not self.changed

    @property
    def changed(self) -> list[str]:
        """Sources that are others than those it was made from, or is being made from. One that is gone is the same."""
        if self.folder is None or not (record := self.folder / _SOURCES).exists():
            return []
        before, now = json.loads(record.read_text(encoding="utf-8")), self._sources()
        return [path for path, sha256 in now.items() if before.get(path, sha256) != sha256]

    def begin(self) -> None:
        """Record the sources. Raises TrainingError when a training goes on that began with others."""
        if self.folder is None:
            return
        trained = any((self.folder / name).exists() for name in ("snapshots", "log.csv"))
        if trained and (changed := self.changed):
            raise TrainingError(
                f"{self.name}: was trained on another {', '.join(changed)} than is there now; delete {self.folder} to "
                "train it again"
            )
        with whole_file(self.folder / _SOURCES) as path:
            path.write_text(json.dumps(self._sources(), indent=1) + "\n", encoding="utf-8")

    def _sources(self) -> dict[str, str]:
        assert self.folder is not None
        found = {}
        for source in self.sources:
            for file in visible_files(source) if source.is_dir() else [source] if source.exists() else []:
                name, status = file.relative_to(self.folder.parent).as_posix(), file.stat()
                found[name] = _sha256(file, status.st_size, status.st_mtime_ns)
        return found


def parts_of(config: TrainingConfig, init: InitFrom, out: Path, checkpoint: Path, command: str) -> list[Part]:
    """All parts of a training whose intermediate files are in `out` and whose result is `checkpoint`.

    Args:
        init: what `init_training` returned. Parts that it leaves unchanged are not trained; a language model that is
            continued runs stage 4 once more.
        command: what was typed, for the checkpoint's card.
    """
    data, tokens, language_model = out / "data", out / "tokens", init.starts["language_model"]
    codec = out / "speech_tokenizer" / speech_tokenizer.EXPORT
    if not init.trains("speech_tokenizer"):
        codec = init_folder(out, "speech_tokenizer")

    def start(part: str) -> Path | None:
        return init_folder(out, part) if init.starts[part] == CONTINUED else None

    def train_flow() -> object:
        weights = load_flow(folder)[1] if (folder := start("flow")) else None
        return flow.train_flow(config.flow, data, codec, out / "flow", weights)

    def train_vocoder() -> object:
        weights = load_vocoder(folder)[1] if (folder := start("vocoder")) else None
        return vocoder.train_vocoder(config.vocoder, data, out / "vocoder", weights)

    audio: dict[str, tuple[str, tuple[str, ...], Callable[[], object]]] = {
        "speech_tokenizer": (
            speech_tokenizer.EXPORT,
            ("data",),
            lambda: speech_tokenizer.train_speech_tokenizer(
                config.speech_tokenizer, data, out / "speech_tokenizer", start("speech_tokenizer")
            ),
        ),
        "vocoder": (vocoder.EXPORT, ("data",), train_vocoder),
        "flow": (flow.EXPORT, ("data", "speech_tokenizer"), train_flow),
    }
    parts = [Part("data", (data / "speech.jsonl", data / "chat.jsonl"), (), lambda: generate.run(config.data, data))]
    for name, (export, needs, make) in audio.items():
        if init.trains(name):
            folder, sources = out / name, (data / SPEECH, *((codec,) if name == "flow" else ()))
            made = (folder / "done.json", folder / export)
            parts.append(Part(name, made, needs, make, folder=folder, sources=sources))
    if init.trains("language_model"):
        parts.append(
            Part(
                "tokens",
                tuple(tokens / name for name in (prepare.TRAIN, prepare.TEST, prepare.RECORD)),
                ("data", "speech_tokenizer"),
                lambda: prepare.prepare_tokens(config.language_model, data, codec, tokens, start("language_model")),
                current=lambda: prepare.is_coded_with(tokens, codec),
                folder=tokens,
                sources=(data / CHAT,),
            )
        )
    if init.recodes:
        parts.append(
            Part(
                "recode",
                (out / "recode" / stages.EXPORT,),
                ("tokens",),
                lambda: recode(
                    init_folder(out, "language_model"), init_folder(out, "speech_tokenizer"), codec, data,
                    out / "recode", config.language_model.device,
                ),
                folder=out / "recode",
                sources=(codec, data / CHAT),
            )
        )  # fmt: skip
    if language_model == CONTINUED:
        previous = out / "recode" / stages.EXPORT if init.recodes else init_folder(out, "language_model")
        parts.append(_stage(config, 4, out, parts[-1].name, previous))
    elif language_model == SCRATCH:
        for number in stages.STAGES:
            before = parts[-1].name
            parts.append(_stage(config, number, out, before, out / before / stages.EXPORT if number > 1 else None))
    parts.append(
        Part(
            "checkpoint",
            (checkpoint / "README.md",),
            tuple(part.name for part in parts if part.name != "data"),
            lambda: write_bundle(config, init, out, checkpoint, command),
            again=True,
            current=lambda: is_current(init, out, checkpoint),
        )
    )
    return parts


def _stage(config: TrainingConfig, number: int, out: Path, before: str, previous: Path | None) -> Part:
    folder, samples = out / f"stage{number}", out / "tokens" / prepare.TRAIN
    return Part(
        f"stage{number}",
        (folder / "done.json", folder / stages.EXPORT),
        (before,),
        lambda: stages.train_stage(config.language_model, number, out / "tokens", previous, folder),
        folder=folder,
        sources=(samples, *((previous,) if previous else ())),
    )


@lru_cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


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
        if missing := [name for name in part.needs if name in by_name and not by_name[name].done]:
            raise TrainingError(f"{part.name} needs {', '.join(missing)} first; leave --only out to run all in order")
        say(f"[{number}/{len(parts)}] {part.name}")
        part.begin()
        part.make()
