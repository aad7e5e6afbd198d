"""Writes a fine-tuned checkpoint: the bundle it came from with new weights, in shards when they are large."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from training.errors import TrainingError
from training.language_model.stages import stored_as
from vita_audio.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME

LANGUAGE_MODEL, SPEECH_TOKENIZER = "language_model", "speech_tokenizer"
_SHARD_BYTES = 4_500_000_000


def write_result(
    source: Path, weights: Mapping[str, Tensor], pattern: Sequence[int], dtype: str | None, result: Path
) -> None:
    """The bundle `source` with new weights of its language model, whole or not there.

    Args:
        pattern: the mode it was trained for.
        dtype: of the weights; None keeps what config.json says.

    Raises:
        TrainingError: it cannot be written, or weights overflow their precision; what was there before stays.
    """
    temporary = result.with_name(f".{result.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        without_weights = shutil.ignore_patterns("*.safetensors", INDEX_NAME, "*.bin", "*.bin.index.json")
        shutil.copytree(source / LANGUAGE_MODEL, temporary / LANGUAGE_MODEL, ignore=without_weights)
        for part in source.iterdir():
            if part.is_dir() and part.name != LANGUAGE_MODEL and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        config_file = temporary / LANGUAGE_MODEL / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["torch_dtype"] = dtype or config.get("torch_dtype", "bfloat16")
        _write_json(config_file, config)
        generation_file = temporary / LANGUAGE_MODEL / "generation_config.json"
        generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
        if config.get("num_nextn_predict_layers"):
            generation["mtp_inference_mode"] = list(pattern)
        _write_json(generation_file, generation)
        save_shards(stored_as(weights, config["torch_dtype"]), temporary / LANGUAGE_MODEL)
        shutil.rmtree(result, ignore_errors=True)
        temporary.replace(result)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(f"{result}: cannot be written ({error}); free some space and run it again") from error


def save_shards(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
    """`model.safetensors`, or numbered shards with an index when they do not fit into one of `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, value in tensors.items():
        size = value.numel() * value.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = value.contiguous()
        room -= size
    if len(shards) == 1:
        _save(shards[0], folder / SINGLE_NAME)
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _save(shard, folder / name)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private to this user; a server may be another


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
