"""Stage: the tokenizer's file, and what the engines will serve."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.checkpoint.configs import TOKENIZER_FILE
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

#: Answer tokens when a request names no MAX_TOKENS: about 45 s of speech in the boost mode.
DEFAULT_MAX_TOKENS = 1024


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    shutil.copyfile(build.checkpoint / TOKENIZER_FILE, folder / "tokenizer.json")
    return {"limits": make_limits(build, needed.facts).to_dict()}


def make_limits(build: Build, checked: Facts) -> Limits:
    """What the engines will serve of a checked bundle. Raises EngineError for options out of range."""
    sizes = checked["sizes"]["language_model"]
    for option in ("context_tokens", "max_tokens"):
        if getattr(build, option) < 1:
            raise EngineError(f"--{option.replace('_', '-')}: {getattr(build, option)} is not valid: at least 1")
    context = min(build.context_tokens, sizes["max_position_embeddings"])
    most = min(build.max_tokens, context)
    return Limits(
        context_tokens=context,
        max_tokens=most,
        default_max_tokens=min(DEFAULT_MAX_TOKENS, most),
        mctp_modules=sizes["num_nextn_predict_layers"],
        default_pattern=tuple(checked["default_pattern"]),
        tts_samples=checked["samples"],
        repetition_penalty=checked["repetition_penalty"],
        text_normalization=checked["text_normalization"],
    )
