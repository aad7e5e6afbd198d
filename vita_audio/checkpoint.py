"""Released checkpoint layouts -> typed configs and tensors; one error names every fault of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vita_audio.configs import LanguageModelConfig
from vita_audio.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
LISTED = 8  # names an error shows for each kind of fault
#: Parts of Plus checkpoints that are not the language model (facts/audio.md 9), and buffers of old exporters.
NOT_LANGUAGE_MODEL = ("model.audio_model.", "model.audio_projection.")


def load_language_model(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[LanguageModelConfig, dict[str, Tensor]]:
    """Load `config.json` and `model.safetensors` (or the shards of its index) of a qwen2_mtp checkpoint.

    Args:
        folder: the Hugging Face folder.
        dtype: convert every tensor to it; None keeps what is stored.

    Returns:
        The sizes and the tensors under their released keys (facts/language_model.md); `lm_head.weight` is the
        embedding when the two are tied.

    Raises:
        CheckpointError: a file is missing or unreadable, or keys or shapes do not fit the config; names all of them.
    """
    folder = Path(folder)
    config = LanguageModelConfig.from_json(read_text(folder / "config.json"), str(folder / "config.json"))
    expected = language_model_shapes(config)
    files = _safetensors_files(folder)
    tensors = _load_safetensors(files, expected, str(folder), ignore=NOT_LANGUAGE_MODEL, dtype=dtype)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return config, tensors


def language_model_shapes(config: LanguageModelConfig) -> Shapes:
    """Key -> shape of every stored tensor of a language model of this size (facts/language_model.md)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv_size = config.num_key_value_heads * config.head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv_size), ("v", kv_size)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[layer + f"self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[layer + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)
    for index in range(config.mctp_modules):
        shapes[f"mtp_projs.{index}.weight"] = (hidden, 2 * hidden)
        shapes[f"mtp_embed_norms.{index}.weight"] = (hidden,)
        shapes[f"mtp_hidden_norms.{index}.weight"] = (hidden,)
    return shapes


def read_text(path: Path) -> str:
    """Raises CheckpointError when the file cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing; give the folder of a complete checkpoint") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the file again") from error


def _listing(names: Iterable[str]) -> str:
    items = sorted(names)
    shown = ", ".join(items[:LISTED])
    return shown if len(items) <= LISTED else f"{shown}, ... ({len(items)} in all)"


def _count(names: Iterable[str], what: str) -> str:
    items = list(names)
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}: {_listing(items)}"


def compare(found: Mapping[str, tuple[int, ...]], expected: Shapes) -> list[str]:
    """Faults (missing, unexpected and wrongly shaped tensors) between what a file holds and what its config wants."""
    faults = []
    if missing := expected.keys() - found.keys():
        faults.append(_count(missing, "missing tensor"))
    if extra := found.keys() - expected.keys():
        faults.append(_count(extra, "unexpected tensor"))
    if wrong := [
        f"{key} is {list(found[key])}, must be {list(expected[key])}"
        for key in expected.keys() & found.keys()
        if tuple(found[key]) != expected[key]
    ]:
        faults.append(_count(wrong, "wrong shape"))
    return faults


def raise_faults(source: str, faults: list[str]) -> None:
    """One CheckpointError for all faults of one source, if there are any."""
    if faults:
        raise CheckpointError(
            f"{source}: {'; '.join(faults)}; download the checkpoint again or use the config that came with it"
        )


def _safetensors_files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, each with the keys its index puts there (None: no index, whatever it holds)."""
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if not index.exists():
        if not single.exists():
            raise CheckpointError(
                f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there; give the folder of a complete checkpoint"
            )
        return {single: None}
    try:
        weight_map = json.loads(read_text(index))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for key, name in weight_map.items():
            if Path(name).name != name:
                raise ValueError(f"{key} is placed in {name!r}, which is not a file name")
            keys = files.setdefault(folder / name, set())
            assert keys is not None
            keys.add(key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a weight index ({error!r}); download the file again") from error
    return files


def _load_safetensors(
    files: Mapping[Path, set[str] | None],
    expected: Shapes,
    source: str,
    ignore: tuple[str, ...],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """All expected tensors of the files. Every header is checked before the first tensor is read."""
    faults: list[str] = []
    found: Shapes = {}
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        readers: dict[str, Any] = {}
        for path, listed in files.items():
            try:
                reader = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                faults.append(f"{path.name} is missing, truncated or not safetensors ({_one_line(error)})")
                for key in listed or ():
                    found[key] = expected.get(key, ())  # its file is the fault, not each of its tensors
                continue
            keys = set(reader.keys())
            if listed is not None and keys != listed:
                faults += [f"{path.name} does not hold what {INDEX_NAME} says: {_listing(keys ^ listed)}"]
            for key in keys:
                found[key] = tuple(reader.get_slice(key).get_shape())
                readers[key] = reader
        wanted = {key: shape for key, shape in found.items() if not key.startswith(ignore)} if ignore else found
        if found or not faults:
            faults += compare(wanted, expected)
        raise_faults(source, faults)
        for key in expected:
            tensor = readers[key].get_tensor(key)
            tensors[key] = tensor if dtype is None else tensor.to(dtype)
    return tensors


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
