"""config.json of a TensorRT-LLM checkpoint: written from a plan, read back into one, and checked against the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from build_engines.tensorrt_llm.formats import FORMATS, Awq, Format
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.plan import Plan
from vita_audio.checkpoint.configs import ConfigFields, LanguageModelConfig
from vita_audio.checkpoint.tensor_file import DTYPE_NAMES
from vita_audio.checkpoint.weight_files import compare, read_text
from vita_audio.contract.errors import EngineError

CONFIG = "config.json"
#: Names TensorRT-LLM looks the model class up by: its own Qwen2, and the class of our network definition.
ARCHITECTURES = {Part.BACKBONE: "Qwen2ForCausalLM", Part.MCTP: "VitaMctpForCausalLM"}


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def config_fields(plan: Plan) -> dict[str, Any]:
    """config.json of a part (docs/tensorrt_llm.md 5.1); `backbone_layers` and `head_first_id` are our own fields."""
    config = plan.config
    return {
        "architecture": ARCHITECTURES[plan.part],
        "dtype": plan.dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "seq_length": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": plan.layers,
        "backbone_layers": config.backbone_layers,
        "head_first_id": plan.head_first_id,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": config.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": config.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": config.rope_theta,
        "rotary_scaling": None,
        "qwen_type": "qwen2",
        "attn_bias": True,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": plan.tp, "tp_size": plan.tp, "pp_size": 1},
        "quantization": {
            "quant_algo": plan.linear_format.algorithm,
            "kv_cache_quant_algo": "FP8" if plan.fp8_kv_cache else None,
            "exclude_modules": ["lm_head"],
            **plan.linear_format.config(),
        },
    }


def read_plan(folder: Path) -> Plan:
    """The plan a converted part was made by.

    Raises:
        CheckpointError: config.json is missing, or fields are missing, of another type or not supported.
        EngineError: its sizes contradict each other.
    """
    path = folder / CONFIG
    fields = ConfigFields.from_json(read_text(path), str(path))
    parts = {architecture: part for part, architecture in ARCHITECTURES.items()}
    part = parts.get(str(fields.values.get("architecture")))
    fields.check(part is not None, f"architecture must be one of {', '.join(parts)}")
    for name, value in (("position_embedding_type", "rope_gpt_neox"), ("qwen_type", "qwen2"), ("attn_bias", True)):
        fields.only(name, value)
    layers, backbone_layers = fields.integer("num_hidden_layers"), fields.integer("backbone_layers")
    modules = 0 if part is Part.BACKBONE else layers
    config = LanguageModelConfig(
        vocab_size=fields.integer("vocab_size", minimum=2),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=backbone_layers + modules,
        num_attention_heads=fields.integer("num_attention_heads"),
        num_key_value_heads=fields.integer("num_key_value_heads"),
        num_nextn_predict_layers=modules,
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("norm_epsilon"),
        rope_theta=fields.number("rotary_base"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
    mapping = ConfigFields(fields.values.get("mapping") or {}, f"{path}: mapping")
    tp = mapping.integer("tp_size")
    mapping.only("world_size", tp)
    mapping.only("pp_size", 1)
    quantization = ConfigFields(fields.values.get("quantization") or {}, f"{path}: quantization")
    linear_format = _format(quantization)
    fields.faults += [f"mapping.{fault}" for fault in mapping.faults]
    fields.faults += [f"quantization.{fault}" for fault in quantization.faults]
    head_first_id = fields.integer("head_first_id", minimum=0)
    fields.finish()
    assert part is not None
    fp8_kv_cache = quantization.values.get("kv_cache_quant_algo") == "FP8"
    plan = Plan(part, config, str(fields.values.get("dtype")), tp, linear_format, fp8_kv_cache, head_first_id)
    plan.check()
    return plan


def check_part(folder: Path) -> Plan:
    """Check that a converted part is complete: config.json, and in the file of each rank every tensor it promises.

    Returns:
        The plan it was made by.

    Raises:
        CheckpointError, EngineError: naming what is wrong.
    """
    plan = read_plan(folder)
    for rank, outline in enumerate(plan.outline):
        path = folder / rank_file(rank)
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                found = {name: tuple(part.get_shape()) for name, part in slices.items()}
                kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"{path}: missing, truncated or not safetensors ({reason}); convert again") from error
        faults = compare(found, {name: shape for name, (shape, _) in outline.items()})
        faults += [
            f"{name} is {kinds[name]}, must be {DTYPE_NAMES[dtype]}"
            for name, (_, dtype) in outline.items()
            if name in kinds and kinds[name] != DTYPE_NAMES[dtype]
        ]
        if faults:
            raise EngineError(f"{path}: {'; '.join(faults)}; convert again")
    return plan


def write_config(folder: Path, plan: Plan) -> None:
    (folder / CONFIG).write_text(json.dumps(config_fields(plan), indent=2) + "\n", encoding="utf-8")


def _format(quantization: ConfigFields) -> Format:
    algorithm = quantization.values.get("quant_algo")
    quantization.only("exclude_modules", ["lm_head"])
    for known in FORMATS.values():
        if known.algorithm == algorithm:
            return Awq(group=quantization.integer("group_size")) if isinstance(known, Awq) else known
    quantization.faults.append(f"quant_algo is {algorithm!r}, must be null, FP8 or W4A16_AWQ")
    return FORMATS["none"]
