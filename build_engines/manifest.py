"""Stage: manifest.json over the files of the stages before it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from build_engines.plan import GpuPlan, plan_build
from build_engines.sizes import read_sizes
from vita_audio.checkpoint.file_records import FileRecord, combined_sha256
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.gpu_machine import NONE
from vita_audio.engines.gpu_record import TORCH_CUDA, GpuRecord
from vita_audio.engines.manifest import MANIFEST, Manifest, schedule_fields
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Raises EngineError when a file is not as its stage made it."""
    files = {}
    for number, record in needed.records.items():
        for name, sha256 in record.files.items():
            file = build.out / name
            if not file.is_file() or build.sha256(file) != sha256:
                raise EngineError(f"{file}: changed or gone since stage {number} made it: run --stage {number}")
            if not file.is_relative_to(build.graphs):
                files[name] = FileRecord(sha256, file.stat().st_size)
    plan = None
    if build.target == "gpu":
        plan = plan_build(read_sizes(build.checkpoint), build.gpu, build.context_tokens)
    made = make_manifest(build, needed.facts, files, combined_sha256(build.checkpoint_files), plan)
    (folder / MANIFEST).write_text(made.to_json(), encoding="utf-8")
    return {}


def make_manifest(
    build: Build, facts: Facts, files: dict[str, FileRecord], checkpoint_sha256: str, plan: GpuPlan | None
) -> Manifest:
    """The manifest of a build.

    Args:
        facts: of the checkpoint, the limits and, for a GPU, the machine.
        files: path -> record of all that is served.
        plan: of a build for a GPU.
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
        gpu=None if plan is None else _gpu_record(build, facts, plan),
    )


def _gpu_record(build: Build, facts: Facts, plan: GpuPlan) -> GpuRecord:
    """What GPU engines are built for."""
    options = build.gpu
    first_id = options.head_first_id(facts["default_pattern"], facts["vocabulary"]["text_tokens"])
    rows = facts["sizes"]["language_model"]["vocab_size"]
    return GpuRecord(
        engine=options.engine,
        gpu=facts["gpu"],
        compute_capability=facts["compute_capability"],
        tensorrt=facts.get("tensorrt", NONE),
        tensorrt_llm=facts.get("tensorrt_llm", NONE),
        container=facts["container"],
        options={"format": options.formats[0], "mctp_format": options.formats[1]}
        | {name: asdict(options)[name] for name in ("fp8_kv_cache", "head")}
        | {"scales_sha256": build.scales_sha256}
        | ({"mctp_head_format": options.mctp_head_format} if options.engine == TORCH_CUDA else {}),
        tp=options.tp,
        max_streams=options.streams,
        max_num_tokens=options.step_tokens,
        audio_max_batch=options.audio_batch,
        candidates=min(options.candidates, rows - first_id),
        head_first_id=first_id,
        banned_ids=tuple(Vocabulary.from_dict(facts["vocabulary"]).banned_ids(rows)),
        bytes_beside_slots=plan.beside_slots,
    )
