"""Device memory of the slots of a torch_cuda engine."""

from __future__ import annotations

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError


def slot_bytes(config: LanguageModelConfig, context: int, element_size: int) -> int:
    """Device memory of one slot: caches of all layers, H0 of every position, ids seen."""
    cache = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    return context * (cache + config.hidden_size) * element_size + config.vocab_size


def check_memory(slots: int, context: int, each: int, free: int) -> None:
    """Raises EngineError unless `slots` of `each` bytes fit `free` bytes of the GPU, with a tenth left for graphs."""
    fit = int(free * 0.9) // each
    if slots > fit:
        raise EngineError(
            f"slots: {slots} x {context} tokens need {slots * each / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free on "
            f"the GPU: {fit} fit; take fewer slots or a smaller context"
        )
