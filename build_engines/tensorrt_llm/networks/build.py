"""TensorRT-LLM checkpoints `backbone/` and `mctp/` -> engines. Runs inside the pinned container, on the serving GPU.

**Not run on a GPU yet.** The networks themselves are defined by the dry run (docs/tensorrt_llm.md 8).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from build_engines.tensorrt_llm.networks.options import TOKENS_PER_BLOCK, NetworkOptions
from vita_audio.contract.errors import EngineError

#: The last stable release with this engine flow; its containers are 26.04 to 26.07.
TENSORRT_LLM_VERSION = "1.2.1"
BACKBONE, MCTP = "backbone", "mctp"


def build_engine(part: str, checkpoint: Path, out: Path, options: NetworkOptions, rank: int = 0) -> None:
    """Build one rank of one engine: `out`/config.json and `out`/rank{rank}.engine.

    Args:
        part: "backbone" or "mctp".
        checkpoint: folder with config.json and rank*.safetensors of that part.
        options: what to build for; the same for both parts.

    Raises:
        EngineError: TensorRT-LLM is missing or of another version, or the checkpoint does not fit the network.
    """
    try:
        import tensorrt_llm
    except ImportError as error:
        raise EngineError(
            f"tensorrt_llm {TENSORRT_LLM_VERSION} is not installed ({error}): build in the container that carries it"
        ) from error
    if tensorrt_llm.__version__ != TENSORRT_LLM_VERSION:
        raise EngineError(
            f"tensorrt_llm {tensorrt_llm.__version__} is installed, but the networks are written for "
            f"{TENSORRT_LLM_VERSION}: build in the container that carries it"
        )
    from tensorrt_llm.builder import build

    model = load_network(part, checkpoint, options, rank)
    build(model, build_config(part, options)).save(str(out))


def load_network(part: str, checkpoint: Path, options: NetworkOptions, rank: int = 0) -> Any:
    """The network of a part with the weights of one rank; the head is the one the checkpoint was converted with.

    Raises:
        EngineError: the checkpoint is not there or not readable, or has other tensors than the network.
    """
    from safetensors.torch import load_file
    from tensorrt_llm.models.modeling_utils import preprocess_weights

    try:
        fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        weights = load_file(checkpoint / f"rank{rank}.safetensors")
    except (OSError, ValueError) as error:
        raise EngineError(f"{checkpoint}: not a readable checkpoint ({error}); convert it again") from error
    model = network(part, fields, replace(options, head_first_id=fields.get("head_first_id", 0)), rank)
    weights = preprocess_weights(weights, model.config)
    wanted = {name for name, parameter in model.named_parameters() if not parameter.is_inited()}
    faults = [f"{name} is missing" for name in sorted(wanted - set(weights))]
    if model.config.quantization.quant_algo is None:  # a quantised one may carry scales that its build does not use
        faults += [f"{name} is unknown" for name in sorted(set(weights) - wanted)]
    if faults:
        raise EngineError(f"{checkpoint}: does not fit the network: {'; '.join(faults)}; convert it again")
    model.load(weights)
    return model


def network(part: str, fields: dict[str, Any], options: NetworkOptions, rank: int = 0) -> Any:
    """The network of a part without weights; `fields` are those of its checkpoint's config.json."""
    from tensorrt_llm.models.qwen.config import QWenConfig

    config = QWenConfig(**fields)
    config.set_rank(rank)
    if part == BACKBONE:
        from build_engines.tensorrt_llm.networks.backbone import VitaBackbone

        return VitaBackbone(config)
    if part == MCTP:
        from build_engines.tensorrt_llm.networks.mctp import VitaMctp

        return VitaMctp(config, options)
    raise EngineError(f"part: {part!r} is not valid: {BACKBONE} or {MCTP}")


def build_config(part: str, options: NetworkOptions, dry_run: bool = False) -> Any:
    """The builder's options: paged KV, context chunks with past KV (paged context FMHA), packed rows."""
    from tensorrt_llm.builder import BuildConfig
    from tensorrt_llm.models.modeling_utils import KVCacheType
    from tensorrt_llm.plugin import PluginConfig

    chunk = min(options.max_num_tokens, options.max_seq_len)
    config = BuildConfig(
        max_batch_size=options.max_batch_size,
        opt_batch_size=min(8, options.max_batch_size),
        max_input_len=chunk,  # of one context chunk: sizes the attention workspace
        max_seq_len=options.max_seq_len,
        max_num_tokens=options.max_num_tokens,
        max_prompt_embedding_table_size=options.prompt_table_rows if part == BACKBONE else 0,
        kv_cache_type=KVCacheType.PAGED,
        strongly_typed=True,
        dry_run=dry_run,
        plugin_config=PluginConfig(
            gpt_attention_plugin="auto",
            gemm_plugin="auto",  # rows of a step vary from 1 to max_num_tokens: cuBLASLt picks for each
            remove_input_padding=True,
            context_fmha=True,
            use_paged_context_fmha=True,
            paged_kv_cache=True,
            tokens_per_block=TOKENS_PER_BLOCK,
            use_fused_mlp=not dry_run,  # joins weights, which a network that is only defined does not have
        ),
    )
    config.output_timing_cache = None  # else a file in the current folder; its type says str, its code takes None
    return config
