"""Stage: manifest.json over the files of the stages before it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.checkpoint.file_records import FileRecord, combined_sha256
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.gpu_record import GpuRecord
from vita_audio.engines.manifest import MANIFEST, Manifest, schedule_fields
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Of engines for a CPU. Raises EngineError when a file is not as its stage made it."""
    write_manifest(build, folder, needed, None)
    return {}


def write_manifest(build: Build, folder: Path, needed: Needed, gpu: GpuRecord | None) -> None:
    """Raises EngineError when a file is not as its stage made it."""
    files = {}
    for number, record in needed.records.items():
        for name, sha256 in record.files.items():
            file = build.out / name
            if not file.is_file() or build.sha256(file) != sha256:
                raise EngineError(f"{file}: changed or gone since stage {number} made it: run --stage {number}")
            if not file.is_relative_to(build.graphs):
                files[name] = FileRecord(sha256, file.stat().st_size)
    made = make_manifest(build, needed.facts, files, combined_sha256(build.checkpoint_files), gpu)
    (folder / MANIFEST).write_text(made.to_json(), encoding="utf-8")


def make_manifest(
    build: Build, facts: Facts, files: dict[str, FileRecord], checkpoint_sha256: str, gpu: GpuRecord | None
) -> Manifest:
    """The manifest of a build.

    Args:
        facts: of the checkpoint and the limits.
        files: path -> record of all that is served.
        gpu: what engines for a GPU are built for.
    """
    return Manifest(
        target=build.target,
        checkpoint_name=build.checkpoint_name,
        checkpoint_sha256=checkpoint_sha256,
        versions=build.versions,
        speech_input=facts["speech_input"],
        sizes=facts["sizes"],
        vocabulary=Vocabulary.from_dict(facts["vocabulary"]),
        limits=Limits.from_dict(facts["limits"]),
        files=files,
        schedule=schedule_fields(DecoderConfig()),
        gpu=gpu,
    )
