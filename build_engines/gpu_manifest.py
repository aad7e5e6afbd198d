"""Stage: manifest.json of engines for a GPU, with what they are built for and what else that GPU holds.

Apart from `manifest.py`, because the plan of a GPU's memory depends on the code of nearly every network.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from build_engines.manifest import write_manifest
from build_engines.plan import GpuPlan, plan_build
from build_engines.sizes import read_sizes
from vita_audio.engines.gpu_machine import NONE
from vita_audio.engines.gpu_record import TORCH_CUDA, GpuRecord
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Raises EngineError when a file is not as its stage made it."""
    plan = plan_build(read_sizes(build.checkpoint), build.gpu, build.context_tokens)
    write_manifest(build, folder, needed, gpu_record(build, needed.facts, plan))
    return {}


def gpu_record(build: Build, facts: Facts, plan: GpuPlan) -> GpuRecord:
    """What GPU engines are built for.

    Args:
        facts: of the checkpoint and the machine.
        plan: what the GPU's memory goes to.
    """
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
