"""Stages: the TensorRT-LLM engines of the backbone and of the MCTP modules. **Not run on a GPU yet.**"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from build_engines.tensorrt_llm.convert import converted
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.networks.build import build_engine
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from vita_audio.checkpoint.configs import LANGUAGE_MODEL, SENSEVOICE
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run_backbone(build: Build, folder: Path, needed: Needed) -> Facts:
    return _run(build, folder, needed.facts, Part.BACKBONE)


def run_mctp(build: Build, folder: Path, needed: Needed) -> Facts:
    return _run(build, folder, needed.facts, Part.MCTP)


def _run(build: Build, folder: Path, facts: Facts, part: Part) -> Facts:
    """All ranks, one after the other."""
    made = converted(build, part, facts)
    vocabulary = Vocabulary.from_dict(facts["vocabulary"])
    banned = tuple(vocabulary.banned_ids(facts["sizes"]["language_model"]["vocab_size"]))
    options = network_options(build, facts["limits"]["context_tokens"], banned)
    out = folder / LANGUAGE_MODEL / part.value
    out.mkdir(parents=True)
    for rank in range(build.gpu.tp):
        build_engine(part.value, made.folder, out, options, rank)
    return {}


def network_options(build: Build, positions: int, banned: tuple[int, ...] = ()) -> NetworkOptions:
    """What both engines are built for; `positions` bounds a stream. Raises EngineError for values out of range."""
    return NetworkOptions(
        max_batch_size=build.gpu.streams,
        max_seq_len=min(build.context_tokens, positions),
        max_num_tokens=build.gpu.step_tokens,
        candidates=build.gpu.candidates,
        banned_ids=banned,
        # Each token of a step may be of a clip, as the runtime has it (`Layout.prompt_rows`).
        prompt_table_rows=build.gpu.step_tokens if build.speech_input == SENSEVOICE else 0,
    )
