"""Name, type and shape of every tensor of a step (docs/tensorrt_llm.md 3.2): beam 1, paged KV, packed tokens.

Dimensions by name: `tokens` new tokens of the step, `streams` rows of the batch (context-phase rows first), `layers`
attention layers of the engine, `modules` K, `blocks` blocks of a slot's table, `context` tokens a slot holds, `sampled`
rows that sample (0 where all take their best id), `draws` tokens a row may sample (1 for the backbone, K for MCTP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError

Arrays = dict[str, NDArray]

CONTEXT, GENERATION = 0, 1  # host_request_types


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """`place`: where the reader wants it. `constant`: same content in every step, for however many streams."""

    dtype: str
    shape: tuple[str | int, ...]
    place: Literal["device", "host"] = "device"
    constant: bool = False


#: Inputs of both engines. In a context-phase row with C new tokens after P known ones, see `packer.py` for the values.
DECODER: dict[str, TensorSpec] = {
    "input_ids": TensorSpec("int32", ("tokens",)),
    "position_ids": TensorSpec("int32", ("tokens",)),
    "last_token_ids": TensorSpec("int32", ("streams",)),
    "context_lengths": TensorSpec("int32", ("streams",)),
    "sequence_length": TensorSpec("int32", ("streams",)),
    "kv_cache_block_offsets": TensorSpec("int32", (1, "streams", 2, "blocks")),
    "cache_indirection": TensorSpec("int32", ("streams", 1, "context"), constant=True),
    "host_request_types": TensorSpec("int32", ("streams",), "host"),
    "host_context_lengths": TensorSpec("int32", ("streams",), "host"),
    "host_past_key_value_lengths": TensorSpec("int32", ("streams",), "host"),
    "host_kv_cache_block_offsets": TensorSpec("int32", (1, "streams", 2, "blocks"), "host"),
    "host_kv_cache_pool_pointers": TensorSpec("int64", (1, 2), "host", constant=True),
    "host_kv_cache_pool_mapping": TensorSpec("int32", ("layers", 2), "host", constant=True),
    "host_max_attention_window_sizes": TensorSpec("int32", ("layers",), "host", constant=True),
    "host_sink_token_length": TensorSpec("int32", (1,), "host", constant=True),
    "host_runtime_perf_knobs": TensorSpec("int64", (16,), "host", constant=True),
    "host_context_progress": TensorSpec("int64", (1,), "host", constant=True),
}

#: Further inputs of a backbone that takes rows of embeddings (Plus): ids from vocab_size on are rows of a table, which
#: is on the device (`prompt_embedding_table`). TensorRT-LLM has a table ("task") for each token; here there is one.
PROMPT: dict[str, TensorSpec] = {
    "tasks": TensorSpec("int32", ("tokens",), constant=True),
    "prompt_vocab_size": TensorSpec("int32", (1,), constant=True),
}
PROMPT_TABLE = "prompt_embedding_table"

#: How each row samples; read by `engines.torch.sampler.draw_some` after the backbone and inside the MCTP engine. Batch
#: row b takes its best id (`token_rows[b]` is b), or what is drawn for `sampled_rows[i]` = b (it is streams + i).
SAMPLING: dict[str, TensorSpec] = {
    "penalty": TensorSpec("float32", ("streams",)),
    "token_rows": TensorSpec("int32", ("streams",)),
    "sampled_rows": TensorSpec("int32", ("sampled",)),
    "inv_temp": TensorSpec("float32", ("sampled",)),
    "top_k": TensorSpec("int32", ("sampled",)),
    "top_p": TensorSpec("float32", ("sampled",)),
    "uniform": TensorSpec("float32", ("sampled", "draws")),
}

#: Further packed inputs of the MCTP engine. It also reads `hidden_states_in` and `seen`, which are made on the device.
CASCADE: dict[str, TensorSpec] = {
    "shift_index": TensorSpec("int32", ("tokens",)),
    "forced_tokens": TensorSpec("int32", ("streams", "modules")),
}

#: What the steps around an engine call read: where hidden states are kept and which ids have been seen.
AROUND: dict[str, TensorSpec] = {
    "slots": TensorSpec("int64", ("streams",)),
    "hidden_rows": TensorSpec("int64", ("tokens",)),
    "seen_index": TensorSpec("int64", ("tokens",)),
}

BACKBONE_STEP: dict[str, TensorSpec] = {**DECODER, **SAMPLING, **AROUND}
MCTP_STEP: dict[str, TensorSpec] = {**DECODER, **CASCADE, **SAMPLING, **AROUND}

BACKBONE_INPUTS = frozenset(DECODER)
MCTP_INPUTS = frozenset(DECODER) | frozenset(CASCADE) | frozenset(SAMPLING) | {"hidden_states_in", "seen"}


def backbone_step(embedded: bool) -> dict[str, TensorSpec]:
    """Tensors of a backbone step."""
    return BACKBONE_STEP | PROMPT if embedded else BACKBONE_STEP


def backbone_inputs(embedded: bool) -> frozenset[str]:
    """Inputs of a backbone engine."""
    return BACKBONE_INPUTS | PROMPT.keys() | {PROMPT_TABLE} if embedded else BACKBONE_INPUTS


def check_arrays(arrays: Mapping[str, NDArray], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> None:
    """Raises EngineError unless `arrays` are exactly those of `specs`, each of its type and shape."""
    faults = [f"{name} is missing" for name in specs if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in specs]
    for name, array in arrays.items():
        spec = specs.get(name)
        if spec is None:
            continue
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        if array.shape != shape or array.dtype != np.dtype(spec.dtype):
            faults.append(f"{name} is {array.dtype} {list(array.shape)}, must be {spec.dtype} {list(shape)}")
    if faults:
        raise EngineError(f"packed step: {'; '.join(faults)}")
