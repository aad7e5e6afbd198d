"""Device memory of a torch_cuda engine beside its weights: slots, and the programs that serve them."""

from __future__ import annotations

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch_cuda.shapes import Limits, most_rows, prepared_shapes

GIB = 1 << 30
#: Of what weights, programs and the other networks leave: the rest is for contexts and pools, which nothing counts.
SLOTS_SHARE = 0.9
#: Kernels of a call at most, those that run as their references included: of a backbone layer, of an MCTP module, and
#: around them (counted by dispatch; `expectations.LAUNCHES` of the benchmarks).
_LAYER_NODES, _MODULE_NODES, _OTHER_NODES = 23, 77, 48
#: Device memory of a captured kernel. From an H100: 191 programs of 131 000 kernels took 0.80 GiB, pool and workspaces
#: included.
NODE_BYTES = 4096
#: cuBLAS keeps one for every stream that it has seen (Hopper's size, the largest): that of the process, and the one
#: that captures.
_WORKSPACE_BYTES, _WORKSPACES = 32 << 20, 2
#: Float32 copies of a step's logits while tokens are drawn by the references, which sort keys of 64 bits.
_LOGIT_COPIES = 16
#: A split-K product of few rows: partial sums of so many rows and parts in float32.
_SPLIT_ROWS, _SPLIT_PARTS = 16, 16
#: The last two are of convolutions: where no algorithm finds room to work in, PyTorch says that there is none.
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)
REMEDY = "take fewer slots (--slots) or a smaller context (--context-tokens of the build)"


def slot_bytes(config: LanguageModelConfig, context: int, element_size: int) -> int:
    """Device memory of one slot: caches of all layers, H0 of every position, ids seen."""
    cache = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    return context * (cache + config.hidden_size) * element_size + config.vocab_size


def programs_bytes(config: LanguageModelConfig, limits: Limits, prefill_chunk: int, element_size: int) -> int:
    """Device memory of all prepared programs: their graphs, the pool that they share, and what products work in.

    An estimate from above: a program is counted as if all of its kernels ran as their references.
    """
    shapes = prepared_shapes(limits, prefill_chunk)
    nodes = {"extend": _LAYER_NODES * config.backbone_layers, "burst": _MODULE_NODES * config.mctp_modules}
    graphs = NODE_BYTES * sum(nodes[kind] + _OTHER_NODES for kind, _ in shapes)
    # Graphs share a pool, so the largest of them decides: gate, up and their product, q, k, v, and the residual stream.
    queries = config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    row = 3 * config.intermediate_size + 2 * queries + 4 * config.hidden_size
    pool = max(
        shape.rows * row * element_size + shape.streams * config.vocab_size * 4 * _LOGIT_COPIES for _, shape in shapes
    )
    split = 4 * _SPLIT_ROWS * _SPLIT_PARTS * 2 * config.intermediate_size
    return graphs + pool + split + _WORKSPACES * _WORKSPACE_BYTES


def prompt_rows_bytes(config: LanguageModelConfig, limits: Limits, prefill_chunk: int, element_size: int) -> int:
    """Device memory of the rows behind the embedding of a Plus checkpoint."""
    return most_rows(limits, prefill_chunk) * config.hidden_size * element_size


def slots_that_fit(free: int, each: int, programs: int) -> int:
    """Slots of `each` bytes beside `programs` bytes in `free` bytes of the GPU, a tenth left for other processes."""
    return max(0, int((free - programs) * SLOTS_SHARE)) // each


def check_memory(slots: int, context: int, each: int, programs: int, free: int) -> None:
    """Raises EngineError unless `slots` of `each` bytes, and their programs, fit `free` bytes of the GPU.

    All else that the server holds there is taken off `free` before (`gpu_room.py`).
    """
    fit = slots_that_fit(free, each, programs)
    if slots > fit:
        raise EngineError(
            f"slots: {slots} x {context} tokens need {slots * each / GIB:.1f} GiB, and {programs / GIB:.1f} GiB for "
            f"their programs, of {free / GIB:.1f} GiB free on the GPU beside all else: {fit} fit; {REMEDY}"
        )


def capture_error(
    slots: int, context: int, each: int, programs: int, free: int, number: int, count: int
) -> EngineError:
    """What to raise where the GPU's memory ended while programs were captured, though the estimate said it would not.

    Args:
        programs: estimated bytes of all of them.
        free: bytes beside the slots before the first one was captured: too few.
        number, count: the program that found no room, and how many there are.
    """
    fit = min(slots - 1, slots_that_fit(free + slots * each, each, 2 * max(programs, free)))
    return EngineError(
        f"slots: the GPU's memory ended at program {number} of {count} beside {slots} x {context} tokens "
        f"({free / GIB:.1f} GiB were free for programs): about {fit} fit; {REMEDY}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU had no room: PyTorch's allocator, CUDA, cuBLAS, cuDNN and Triton each say so in their own way."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
