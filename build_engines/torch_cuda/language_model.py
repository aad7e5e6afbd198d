"""Stage: the language model's weights for the torch_cuda engine, in bfloat16 or FP8. bfloat16 was run on an H100."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from build_engines.torch_cuda.formats import Fp8Parts, encode, outline
from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.checkpoint.language_model import language_model_shapes, open_language_model
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.engines.torch.weights import WEIGHTS_FILE

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Tensor by tensor: never more than one in memory. Raises EngineError where a number has no FP8."""
    source = open_language_model(build.checkpoint / LANGUAGE_MODEL)
    first_id = build.gpu.head_first_id(needed.facts["default_pattern"], needed.facts["vocabulary"]["text_tokens"])
    parts = Fp8Parts.of(build.gpu, first_id)
    path = folder / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    tensors = ((key, source.read(key)) for key in language_model_shapes(source.config))
    write_tensors(path, outline(source.config, parts), encode(source.config, parts, tensors))
    return {}
