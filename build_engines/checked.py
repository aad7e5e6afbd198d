"""Stage: the checkpoint is complete and its parts fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.checkpoint.check import CheckpointSizes, check_checkpoint

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    return checked_facts(check_checkpoint(build.checkpoint))


def checked_facts(found: CheckpointSizes) -> Facts:
    """What later stages need to know of a checked bundle."""
    return {
        "speech_input": found.speech_input,
        "sizes": found.sizes(),
        "vocabulary": found.vocabulary.to_dict(),
        "default_pattern": list(found.default_pattern),
        "samples": found.samples,
        "repetition_penalty": found.repetition_penalty,
        "text_normalization": found.text_normalization,
    }
