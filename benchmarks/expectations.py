"""What was expected before anything was measured, so that each measurement stands beside a prediction.

By arithmetic and CPU-side counts (docs/gpu.md), for one H100 SXM whose memory a copy moves at 3.0 TB/s, 7B in bfloat16:
cuBLAS at 87 % of that with one row and 84 % with 16, the head at 90 %, 2 us for each small kernel.
"""

from __future__ import annotations

#: (mode, head) -> tokens/s, batch 1, and ms to the first audio chunk where it was computed.
TOKENS_PER_S = {
    ("vanilla", "full"): 141.0,
    ("boost", "full"): 386.0,
    ("boost", "audio-only"): 436.0,
    ("turbo", "full"): 714.0,
    ("turbo", "audio-only"): 976.0,
}
FIRST_CHUNK_MS = {("boost", "full"): 15.5, ("boost", "audio-only"): 11.4}
#: Tokens/s of 64 streams together.
TOKENS_PER_S_64 = {("vanilla", "full"): 5500.0, ("turbo", "full"): 13500.0, ("turbo", "audio-only"): 19000.0}

#: ms of one call, batch 1: what the speeds above imply (turbo is an extend of 11 rows and a burst).
_EXTEND_MS = 1e3 / TOKENS_PER_S["vanilla", "full"]
STEP_MS = {
    ("extend", "full"): _EXTEND_MS,
    ("burst", "full"): 11e3 / TOKENS_PER_S["turbo", "full"] - _EXTEND_MS,
    ("burst", "audio-only"): 11e3 / TOKENS_PER_S["turbo", "audio-only"] - _EXTEND_MS,
}

#: Kernel launches of one call, counted by dispatch on a CPU.
LAUNCHES = {"extend": (670, 692), "burst": (549, 549), "burst, sampled": (769, 769)}

#: `prepare` of 64 slots, prompts by 256: programs (counted: what `prepared_shapes` makes today), and, predicted when
#: there were 191: seconds with a cold kernel cache, GiB of graphs beyond slots.
PREPARE_PROGRAMS, PREPARE_S, PREPARE_GIB = 215, (32.0, 47.0), 3.5

#: First chunk of the audio decoder, 4 flow steps, ms: eager, and as CUDA graphs in float32.
AUDIO_EAGER_MS, AUDIO_GRAPH_MS = (40.0, 80.0), (15.0, 18.0)
