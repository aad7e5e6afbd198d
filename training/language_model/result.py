"""Writes a fine-tuned checkpoint: the bundle it came from with new weights, in shards when they are large."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from training.files import whole_folder
from training.language_model.stages import stored_as
from vita_audio.checkpoint.weight_files import INDEX_NAME

LANGUAGE_MODEL, SPEECH_TOKENIZER = "language_model", "speech_tokenizer"
_SHARD_BYTES = 4_500_000_000


def write_result(
    source: Path,
    weights: Mapping[str, Tensor],
    pattern: Sequence[int],
    dtype: str | None,
    result: Path,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """The bundle `source` with new weights of its language model, whole or not there.

    Args:
        pattern: the mode it was trained for.
        dtype: of the weights; None keeps what config.json says.
        shard_bytes: size of a weights file, above which there are several and an index.

    Raises:
        TrainingError: it cannot be written, or weights overflow their precision; what was there before stays.
    """
    with whole_folder(result) as folder:
        without_weights = shutil.ignore_patterns("*.safetensors", INDEX_NAME, "*.bin", "*.bin.index.json")
        shutil.copytree(source / LANGUAGE_MODEL, folder / LANGUAGE_MODEL, ignore=without_weights)
        for part in source.iterdir():
            if part.is_dir() and part.name != LANGUAGE_MODEL and not part.name.startswith("."):
                shutil.copytree(part, folder / part.name)
        config_file = folder / LANGUAGE_MODEL / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["torch_dtype"] = dtype or config.get("torch_dtype", "bfloat16")
        _write_json(config_file, config)
        generation_file = folder / LANGUAGE_MODEL / "generation_config.json"
        generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
        if config.get("num_nextn_predict_layers"):
            generation["mtp_inference_mode"] = list(pattern)
        _write_json(generation_file, generation)
        stored = stored_as(weights, config["torch_dtype"])
        save_torch_state_dict(stored, folder / LANGUAGE_MODEL, max_shard_size=shard_bytes)
        for path in (folder / LANGUAGE_MODEL).glob("*.safetensors"):
            path.chmod(0o644)  # safetensors makes it private to this user; a server may be another


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
