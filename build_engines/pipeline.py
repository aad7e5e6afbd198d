"""Runs the numbered stages of a build: skips what is unchanged, resumes after a kill, never leaves half a file.

A stage writes into a temporary folder; its files are then moved to their places, and only then is the stage noted as
done, with the hashes of what went in and what came out. What goes in: the stage's code (`sources.py`), versions of
Python and of the packages it imports, files of the checkpoint, options, and what the stages it needs made.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from typing import Any

from build_engines.options import GpuOptions
from build_engines.sources import code_of, versions_of
from vita_audio.checkpoint.configs import LANGUAGE_MODEL, SPEECH_TOKENIZER
from vita_audio.checkpoint.file_records import combined_sha256, file_sha256, visible_files, write_atomically
from vita_audio.checkpoint.speech_input import speech_input_of
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.engines.gpu_machine import GpuMachine, find_machine
from vita_audio.engines.manifest import WORK_FOLDER, package_version

_PYTHON = ".".join(map(str, sys.version_info[:3]))
#: What the manifest states the versions of.
PACKAGES = ("torch", "onnx", "onnxruntime", "tokenizers")

#: Folder of audio graphs that are to become TensorRT engines.
GRAPHS = "graphs"

Facts = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """What is built, from what, where to.

    `context_tokens` and `max_tokens` bound what the engines will serve; `gpu` is for the target of that name alone.
    """

    checkpoint: Path
    out: Path
    target: str = "cpu"
    context_tokens: int = 4096
    max_tokens: int = 4096
    gpu: GpuOptions = field(default_factory=GpuOptions)

    @cached_property
    def _hashes(self) -> dict[tuple[int, ...], str]:
        return {}

    def sha256(self, path: Path) -> str:
        """Hash of a file, read once for as long as it does not change: engines have tens of gigabytes."""
        found = path.stat()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)  # the same after a move to its place
        if key not in self._hashes:
            self._hashes[key] = file_sha256(path)
        return self._hashes[key]

    @cached_property
    def checkpoint_files(self) -> dict[str, str]:
        """Path inside the checkpoint -> hash. Raises CheckpointError when there is nothing."""
        files = visible_files(self.checkpoint)
        if not files:
            raise CheckpointError(
                f"{self.checkpoint}: no checkpoint there; make one with python -m vita_audio.checkpoint.random_weights"
            )
        return {file.relative_to(self.checkpoint).as_posix(): file_sha256(file) for file in files}

    @cached_property
    def machine(self) -> GpuMachine:
        """What a GPU build depends on."""
        return find_machine()

    @cached_property
    def scales_sha256(self) -> str:
        """Hash of the scales of quantised layers, "" without them. Raises EngineError when the file is missing."""
        scales = self.gpu.scales
        if scales is None:
            return ""
        if not scales.is_file():
            raise EngineError(
                f"--scales: {scales} is not a file; make one with python -m build_engines.tensorrt_llm.calibrate"
            )
        return file_sha256(scales)

    @cached_property
    def speech_input(self) -> str:
        """How the checkpoint takes speech in; SPEECH_TOKENIZER where its config.json cannot be read."""
        try:
            return speech_input_of(self.checkpoint / LANGUAGE_MODEL / "config.json")
        except CheckpointError:  # the check of the checkpoint says why
            return SPEECH_TOKENIZER

    @property
    def checkpoint_name(self) -> str:
        return self.checkpoint.resolve().name

    @property
    def versions(self) -> dict[str, str]:
        """Python and the packages that the manifest names."""
        return {"python": _PYTHON, **{package: package_version(package) for package in PACKAGES}}

    @property
    def work(self) -> Path:
        return self.out / WORK_FOLDER

    @property
    def graphs(self) -> Path:
        """What lies there is on its way to engines and not served."""
        return self.out / GRAPHS

    def has_run(self, number: int) -> bool:
        """Whether a stage has finished, at least with other inputs."""
        return load_record(self, number) is not None


@dataclass(slots=True)
class StageRecord:
    """A finished stage: hash of its inputs, hashes of its files, and its facts."""

    inputs: str
    files: dict[str, str]
    facts: Facts = field(default_factory=dict)

    @property
    def result(self) -> str:
        """Hash of all that later stages see of it."""
        return combined_sha256({**self.files, "facts": json.dumps(self.facts, sort_keys=True)})


@dataclass(frozen=True, slots=True)
class Needed:
    """What the stages that a stage needs have made: number -> record."""

    records: Mapping[int, StageRecord]

    @property
    def facts(self) -> Facts:
        return {name: value for record in self.records.values() for name, value in record.facts.items()}


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a build.

    Attributes:
        number, name: as shown.
        run: "module:function", imported when it runs. `function(build, folder, needed)` writes files into `folder` and
            returns facts for later stages. The module and all it imports are inputs, and so are the packages' versions.
        reads: folders or files of the checkpoint it depends on ("." is all of it).
        needs: numbers of the stages whose facts and files it uses.
        options: properties of `Build` it depends on, dotted where they lie deeper.
        into: folder inside the engines for its files.
        always: runs each time, because it checks what may change behind the builder.
    """

    number: int
    name: str
    run: str
    reads: tuple[str, ...] = ()
    needs: tuple[int, ...] = ()
    options: tuple[str, ...] = ()
    into: str = ""
    always: bool = False


def load_record(build: Build, number: int) -> StageRecord | None:
    """What is noted of a stage, or None when it has not finished."""
    try:
        return StageRecord(**json.loads(_record_path(build, number).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def needed_record(build: Build, number: int) -> StageRecord:
    """The record of a stage another one needs. Raises EngineError when it has not run."""
    record = load_record(build, number)
    if record is None:
        raise EngineError(f"stage {number} has not run: run it first (--stage {number}), or all without --stage")
    return record


def stage_inputs(build: Build, stage: Stage) -> str:
    """Hash of everything that decides what a stage makes."""
    code = code_of(stage.run.partition(":")[0])
    parts = {**code.files, **versions_of(code.packages), "python": _PYTHON, "run": stage.run, "into": stage.into}
    for name, sha256 in build.checkpoint_files.items() if stage.reads else ():
        if any(PurePosixPath(name).is_relative_to(read) for read in stage.reads):
            parts[f"checkpoint/{name}"] = sha256
    for number in stage.needs:
        parts[f"stage {number}"] = needed_record(build, number).result
    parts |= {f"option {option}": str(attrgetter(option)(build)) for option in stage.options}
    return combined_sha256(parts)


def is_done(build: Build, stage: Stage) -> bool:
    """Whether a stage's inputs and files are those of its last run."""
    record = load_record(build, stage.number)
    if record is None or stage.always or any(load_record(build, number) is None for number in stage.needs):
        return False
    files = {name: build.out / name for name in record.files}
    return (
        record.inputs == stage_inputs(build, stage)
        and all(path.is_file() for path in files.values())
        and all(build.sha256(path) == record.files[name] for name, path in files.items())
    )


def run_stage(build: Build, stage: Stage) -> StageRecord:
    """Run one stage and note it as done."""
    inputs = stage_inputs(build, stage)
    before = load_record(build, stage.number)
    temporary = build.work / f"stage{stage.number}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / stage.into).mkdir(parents=True)
    run: Callable[[Build, Path, Needed], Facts] = resolve_name(stage.run)
    needed = Needed({number: needed_record(build, number) for number in stage.needs})
    facts = run(build, temporary / stage.into, needed)

    made = {file.relative_to(temporary).as_posix(): build.sha256(file) for file in visible_files(temporary)}
    _record_path(build, stage.number).unlink(missing_ok=True)  # from here to the end its files are not a set
    for name in made:
        (build.out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / name, build.out / name)
    # A build for another target numbers its stages otherwise: what another stage has made since is not this one's.
    for name in set(before.files if before else ()) - set(made) - _files_of_others(build):
        (build.out / name).unlink(missing_ok=True)
    shutil.rmtree(temporary)
    record = StageRecord(inputs, made, facts)
    write_atomically(_record_path(build, stage.number), json.dumps(asdict(record)) + "\n")
    return record


@contextmanager
def build_lock(build: Build) -> Iterator[None]:
    """One build at a time in a folder. Raises EngineError when another process holds it."""
    build.work.mkdir(parents=True, exist_ok=True)
    with (build.work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EngineError(f"{build.out}: another build is running there; wait for it") from error
        yield


def select(stages: Sequence[Stage], numbers: Sequence[int]) -> list[Stage]:
    """The stages with these numbers, in order; all when none is named. Raises EngineError for an unknown number."""
    known = {stage.number for stage in stages}
    unknown = sorted(set(numbers) - known)
    if unknown:
        raise EngineError(f"--stage: {unknown[0]} is not a stage: choose from {min(known)} to {max(known)}")
    return [stage for stage in stages if not numbers or stage.number in numbers]


def _files_of_others(build: Build) -> set[str]:
    """Files in the records there are; that of the stage that is running is not."""
    numbers = [int(path.stem.removeprefix("stage")) for path in build.work.glob("stage*.json")]
    return {name for number in numbers if (record := load_record(build, number)) for name in record.files}


def _record_path(build: Build, number: int) -> Path:
    return build.work / f"stage{number}.json"
