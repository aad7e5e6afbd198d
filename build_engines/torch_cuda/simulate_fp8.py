"""Write a checkpoint whose weights went to FP8 and back, to hear on a CPU what FP8 costs in quality.

    python -m build_engines.torch_cuda.simulate_fp8 checkpoints/small --out out/fp8 --parts mctp-head,mctp,backbone

Everything else is copied. Its numbers are those that torch_cuda engines of that format multiply by. A checkpoint has
one head for backbone and MCTP modules, so that `mctp-head` rounds the backbone's too: more than an engine does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from build_engines.command import errors_reported
from build_engines.torch_cuda.formats import Fp8Parts, head_key
from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.checkpoint.file_records import whole_folder
from vita_audio.checkpoint.language_model import language_model_shapes, open_language_model
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch_cuda.fp8 import dequantise, quantise

PARTS = ("mctp-head", "mctp", "backbone")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def simulate_fp8(checkpoint: Path, out: Path, parts: Fp8Parts) -> None:
    """Write the bundle `out`, whole or not at all; weights are float32, one in memory at a time.

    Raises:
        CheckpointError: the checkpoint is incomplete.
        EngineError: `out` is not empty or lies in the checkpoint, or a weight is not finite, or the head is tied and
            shall be rounded alone.
    """
    if out.resolve().is_relative_to(checkpoint.resolve()):
        raise EngineError(f"--out: {out} lies in {checkpoint}, which would be copied into itself; take another folder")
    source = open_language_model(checkpoint / LANGUAGE_MODEL)
    config = source.config
    if parts.mctp_head and config.tie_word_embeddings:
        raise EngineError("--parts: mctp-head needs a head of its own, and this one is the embedding; leave it out")

    def rounded() -> Iterator[tuple[str, Tensor]]:
        for key in shapes:
            tensor = source.read(key).float()
            fp8 = parts.holds(key, config) or (parts.mctp_head and key == head_key(config))
            yield key, dequantise(quantise(tensor, key), torch.float32) if fp8 else tensor

    shapes = language_model_shapes(config)
    with whole_folder(out, EngineError) as folder:
        shutil.copytree(checkpoint, folder, ignore=_language_model_weights(checkpoint), dirs_exist_ok=True)
        file = folder / LANGUAGE_MODEL / "model.safetensors"
        write_tensors(file, {key: (shape, torch.float32) for key, shape in shapes.items()}, rounded())


def _language_model_weights(checkpoint: Path) -> Callable[[str, list[str]], set[str]]:
    """For `copytree`: the files that are written anew."""
    patterns = shutil.ignore_patterns(*_WEIGHTS)
    return lambda folder, names: patterns(folder, names) if Path(folder) == checkpoint / LANGUAGE_MODEL else set()


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Bundle with language_model/ and the audio networks.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    parts: Annotated[str, typer.Option(help=f"What is rounded, by commas: {', '.join(PARTS)}.")] = ",".join(PARTS),
) -> None:
    """Write a checkpoint whose weights were rounded to FP8."""
    with errors_reported():
        chosen = parts.split(",")
        for part in chosen:
            if part not in PARTS:
                raise EngineError(f"--parts: {part!r} is not valid: choose from {', '.join(PARTS)}")
        simulate_fp8(checkpoint, out, Fp8Parts("backbone" in chosen, "mctp" in chosen, "mctp-head" in chosen))


if __name__ == "__main__":
    typer.run(main)
