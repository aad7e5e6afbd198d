"""Small released checkpoints for the tests of the TensorRT-LLM conversion."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes

#: 4 query heads over 2 KV heads; 61 rows divide by neither 2 nor 4.
SMALL = LanguageModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2, num_nextn_predict_layers=3, max_position_embeddings=64,
)  # fmt: skip
#: Wide enough for groups of 128 on one GPU and of 64 on two.
WIDE = replace(SMALL, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_nextn_predict_layers=1)


def write_released(
    folder: Path,
    config: LanguageModelConfig = SMALL,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A checkpoint in the released layout with random weights; returns them."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in language_model_shapes(config).items():
        value = torch.randn(shape, generator=draw) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        tensors[key] = (value + 1.0 if "norm" in key else value).to(dtype)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_mtp", **asdict(config)}))
    write_shards(folder, tensors)
    return tensors


def write_shards(folder: Path, tensors: dict[str, Tensor], shards: int = 2) -> None:
    keys: list[str] = sorted(tensors)
    placed: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({key: tensors[key].contiguous() for key in keys[shard::shards]}, folder / name)
        placed |= dict.fromkeys(keys[shard::shards], name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def sequences(config: LanguageModelConfig, count: int = 3, length: int = 24) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, config.vocab_size, (count, length), generator=draw).tolist()
