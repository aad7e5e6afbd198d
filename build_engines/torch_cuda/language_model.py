"""Stage: the language model's weights for the torch_cuda engine, in bfloat16. Run on an H100."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.checkpoint.language_model import language_model_shapes, open_language_model
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.engines.torch.weights import WEIGHTS_FILE

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Tensor by tensor: never more than one in memory."""
    source = open_language_model(build.checkpoint / LANGUAGE_MODEL)
    shapes = language_model_shapes(source.config)
    path = folder / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    outline = {key: (shape, torch.bfloat16) for key, shape in shapes.items()}
    write_tensors(path, outline, ((key, source.read(key).to(torch.bfloat16)) for key in shapes))
    return {}
