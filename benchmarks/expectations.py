"""What was expected before anything was measured, so that each measurement stands beside a prediction.

By arithmetic and CPU-side counts (docs/gpu.md), for one H100 SXM whose memory a copy moves at 3.0 TB/s, 7B, 1 stream
unless it says more. "engine" and "references": bfloat16, cuBLAS at 87 % of that bandwidth with one row and 84 % with
16, the head at 90 %, 2 us for each small kernel. "kernels": small kernels fused, products of few rows by a kernel of
our own where it is faster, the next weights fetched ahead: 85 % of the roofline. "fp8": all products in FP8.
"""

from __future__ import annotations

Speeds = dict[tuple[str, str], float]

_REFERENCES: Speeds = {
    ("vanilla", "full"): 141.0,
    ("boost", "full"): 386.0,
    ("boost", "audio-only"): 436.0,
    ("turbo", "full"): 714.0,
    ("turbo", "audio-only"): 976.0,
}
_KERNELS: Speeds = {
    ("vanilla", "full"): 178.0,
    ("boost", "full"): 481.0,
    ("boost", "audio-only"): 563.0,
    ("turbo", "full"): 890.0,
    ("turbo", "audio-only"): 1360.0,
}
_FP8: Speeds = {("vanilla", "full"): 260.0, ("turbo", "full"): 1350.0, ("turbo", "audio-only"): 1900.0}
#: Of 64 streams together.
_REFERENCES_64: Speeds = {
    ("vanilla", "full"): 5500.0,
    ("turbo", "full"): 13500.0,
    ("turbo", "audio-only"): 19000.0,
}
#: Variant -> streams -> (mode, head) -> tokens/s. "engine" is what a variant was called in records of 2026-11-27.
TOKENS_PER_S: dict[str, dict[int, Speeds]] = {
    "engine": {1: _REFERENCES, 64: _REFERENCES_64},
    "references": {1: _REFERENCES, 64: _REFERENCES_64},
    "kernels": {1: _KERNELS},
    "fp8": {1: _FP8},
}
#: Variant -> (mode, head) -> ms to the first audio chunk.
FIRST_CHUNK_MS: dict[str, Speeds] = {
    "engine": {("boost", "full"): 15.5, ("boost", "audio-only"): 11.4},
    "references": {("boost", "full"): 15.5, ("boost", "audio-only"): 11.4},
    "kernels": {("boost", "full"): 12.8, ("boost", "audio-only"): 8.8},
}


def _step_ms(speeds: Speeds) -> Speeds:
    """ms of one call, which the speeds imply: turbo is an extend of 11 rows and a burst."""
    extend = 1e3 / speeds["vanilla", "full"]
    bursts = {("burst", head): 11e3 / speeds["turbo", head] - extend for head in ("full", "audio-only")}
    return {("extend", "full"): extend, **bursts}


STEP_MS: dict[str, Speeds] = {
    "references": _step_ms(_REFERENCES),
    "kernels": _step_ms(_KERNELS),
    "fp8": _step_ms(_FP8),
}

#: Kernel launches of one call, counted by dispatch on a CPU.
LAUNCHES = {"references": {"extend": (670, 692), "burst": (549, 549), "burst, sampled": (769, 769)}}

#: `prepare` of 64 slots, prompts by 256: programs (counted: what `prepared_shapes` makes today); seconds, from 191
#: programs that took 16.9 s with the compiling of their kernels: captures alone, and with a cold cache of more kernels;
#: GiB of graphs, pool and workspaces (`torch_cuda/memory.py`).
PREPARE_PROGRAMS, PREPARE_S, PREPARE_GIB = 116, (6.0, 40.0), 1.2

#: First chunk of the audio decoder, 4 flow steps, ms at most (25.7 was measured with graphs in TF32 on 2026-11-27).
AUDIO_TF32_MS, AUDIO_HALF_MS = 15.0, 10.0
