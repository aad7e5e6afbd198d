"""The names table: which released tensors make which TensorRT-LLM module, and how ranks share it.

Source: docs/tensorrt_llm.md 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class Part(str, Enum):
    """The two checkpoints, named as their folders."""

    BACKBONE = "backbone"
    MCTP = "mctp"


def part_named(name: str) -> Part:
    """Raises EngineError for an unknown name."""
    try:
        return Part(name)
    except ValueError as error:
        known = " or ".join(part.value for part in Part)
        raise EngineError(f"--part: {name!r} is not valid: choose {known}") from error


class Split(Enum):
    """How the ranks of a tensor-parallel group share a weight [out, in]."""

    REPLICATED = "all of it on every rank"
    ROWS = "an equal run of rows each"
    COLUMNS = "an equal run of columns each; the ranks' outputs are summed"
    HEADS = "whole heads of q, then k, then v; k and v are repeated where there are more ranks than KV heads"
    VOCABULARY = "an equal run of rows each, after zero rows up to a multiple of the ranks"


@dataclass(frozen=True, slots=True)
class Module:
    """One module that holds weights.

    `name`: in TensorRT-LLM. `sources`: released modules, stacked along the rows in this order. `linear`: can be
    quantised. `shares`: released modules that read the same input and therefore share their scales.
    """

    name: str
    sources: tuple[str, ...]
    split: Split = Split.REPLICATED
    linear: bool = False
    bias: bool = False
    shares: tuple[str, ...] = field(default=())


def modules(part: Part, config: LanguageModelConfig) -> list[Module]:
    """Everything a part holds, in the order it is written."""
    return list(_backbone(config) if part is Part.BACKBONE else _mctp(config))


def _backbone(config: LanguageModelConfig) -> Iterator[Module]:
    yield Module("transformer.vocab_embedding", (EMBEDDING,))
    for index in range(config.backbone_layers):
        yield from _decoder_layer(f"transformer.layers.{index}", index)
    yield Module("transformer.ln_f", ("model.norm",))
    yield _head(config)


def _mctp(config: LanguageModelConfig) -> Iterator[Module]:
    yield Module("vocab_embedding", (EMBEDDING,))
    for k in range(config.mctp_modules):
        yield Module(f"mctp.{k}.embed_norm", (f"mtp_embed_norms.{k}",))
        yield Module(f"mctp.{k}.hidden_norm", (f"mtp_hidden_norms.{k}",))
        yield _linear(f"mctp.{k}.proj", f"mtp_projs.{k}", Split.ROWS)
        yield from _decoder_layer(f"mctp.{k}.layer", config.backbone_layers + k)
    yield Module("ln_f", ("model.norm",))
    yield _head(config)


def _decoder_layer(name: str, index: int) -> Iterator[Module]:
    layer = f"model.layers.{index}"
    qkv = tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")
    gate, up = f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"
    yield Module(f"{name}.input_layernorm", (f"{layer}.input_layernorm",))
    yield Module(f"{name}.attention.qkv", qkv, Split.HEADS, linear=True, bias=True, shares=qkv)
    yield _linear(f"{name}.attention.dense", f"{layer}.self_attn.o_proj", Split.COLUMNS)
    yield Module(f"{name}.post_layernorm", (f"{layer}.post_attention_layernorm",))
    # TensorRT-LLM activates `fc` and multiplies by `gate`: its `gate` is the released up_proj.
    yield Module(f"{name}.mlp.fc", (gate,), Split.ROWS, linear=True, shares=(gate, up))
    yield Module(f"{name}.mlp.gate", (up,), Split.ROWS, linear=True, shares=(gate, up))
    yield _linear(f"{name}.mlp.proj", f"{layer}.mlp.down_proj", Split.COLUMNS)


def _linear(name: str, source: str, split: Split) -> Module:
    return Module(name, (source,), split, linear=True, shares=(source,))


def _head(config: LanguageModelConfig) -> Module:
    """Never quantised: it decides every token, and the audio-only head is a slice of it."""
    return Module("lm_head", (EMBEDDING if config.tie_word_embeddings else HEAD,), Split.VOCABULARY)
