"""What the config.json beside an engine says it was built for, held against the layout and against the other engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.layout import Layout

VERSION = "1.2.1"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One engine.

    Attributes:
        folder: where it lies.
        version: of the TensorRT-LLM that built it.
        kv_cache_quant_algo: None for keys and values in `dtype`, or "FP8".
        dtype: "bfloat16" and the like, the type of hidden states.
        max_prompt_embedding_table_size: rows of the prompt table; 0 where the engine takes ids only.
    """

    folder: Path
    version: str
    world_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_size: int
    dtype: str
    kv_cache_quant_algo: str | None
    tokens_per_block: int
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    max_prompt_embedding_table_size: int

    @property
    def hidden_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the pool; FP8 are bytes to us, only the attention plugin reads them."""
        return self.hidden_dtype if self.kv_cache_quant_algo is None else torch.int8

    def check(self, layout: Layout, layers: int, prompt_rows: int = 0) -> None:
        """Raises EngineError, naming every fault, unless the engine serves the layout, has this many layers and takes
        as many rows of embeddings in a step."""
        config = layout.config
        least = {
            "max_batch_size": layout.slots,
            "max_seq_len": layout.context,
            "max_num_tokens": layout.max_num_tokens,
            "max_prompt_embedding_table_size": prompt_rows,
        }
        exactly = {
            "version": VERSION,
            "num_hidden_layers": layers,
            "num_key_value_heads": config.num_key_value_heads,
            "head_size": config.head_dim,
            "world_size": 1,
            "tokens_per_block": layout.tokens_per_block,
        }
        faults = [
            f"{field} is {getattr(self, field)}, must be at least {needed}"
            for field, needed in least.items()
            if getattr(self, field) < needed
        ]
        faults += [
            f"{field} is {getattr(self, field)}, must be {needed}"
            for field, needed in exactly.items()
            if getattr(self, field) != needed
        ]
        if self.kv_cache_quant_algo not in (None, "FP8"):
            faults.append(f"kv_cache_quant_algo is {self.kv_cache_quant_algo}, must be null or FP8")
        if faults:
            raise EngineError(
                f"{self.folder}: built for something else: {'; '.join(faults)}; rebuild with --target gpu"
            )


def read_record(folder: Path) -> EngineRecord:
    """Raises EngineError when config.json is missing, not JSON or not of an engine."""
    path = folder / "config.json"
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        network, build = fields["pretrained_config"], fields["build_config"]
        return EngineRecord(
            folder=folder,
            version=fields["version"],
            world_size=network["mapping"]["world_size"],
            **{name: network[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_size", "dtype")},
            kv_cache_quant_algo=network["quantization"]["kv_cache_quant_algo"],
            tokens_per_block=build["plugin_config"]["tokens_per_block"],
            **{name: build[name] for name in ("max_batch_size", "max_seq_len", "max_num_tokens")},
            max_prompt_embedding_table_size=build.get("max_prompt_embedding_table_size", 0),
        )
    except KeyError as error:
        raise EngineError(f"{path}: {error} is missing; rebuild with --target gpu") from error
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{path}: not readable ({error}); rebuild with --target gpu") from error


def read_pair(folder: Path, layout: Layout) -> tuple[EngineRecord, EngineRecord | None]:
    """The records of backbone and MCTP (None where K = 0) below a folder.

    One pool holds the keys and values of both, and one hands its hidden states to the other: what either was built for
    has to fit the layout, and each other.

    Raises:
        EngineError: a record cannot be read or does not fit; names the field, both values and what to do.
    """
    backbone = read_record(folder / "backbone")
    backbone.check(layout, layout.config.backbone_layers, layout.prompt_rows)
    if not layout.config.mctp_modules:
        return backbone, None
    mctp = read_record(folder / "mctp")
    mctp.check(layout, layout.config.mctp_modules)
    for field, shared in (("kv_cache_quant_algo", "one pool of keys and values"), ("dtype", "hidden states")):
        values = getattr(backbone, field), getattr(mctp, field)
        if values[0] != values[1]:
            raise EngineError(
                f"{mctp.folder}: {field} is {values[1]}, but {values[0]} in {backbone.folder}, and the two share "
                f"{shared}; build both in one go: --target gpu, with or without --fp8-kv-cache"
            )
    return backbone, mctp
