"""Memory of a GPU that the engines of several processes share."""

from __future__ import annotations


def room_bytes(free: int, total: int, beside: int) -> int:
    """Bytes for the slots of a language model and its programs.

    Not all that is free: engines of other processes are perhaps not loaded yet. Nor all that is left beside them:
    another program may use the GPU.

    Args:
        free, total: of the GPU.
        beside: bytes of all else that the server holds there (`GpuRecord.bytes_beside_slots`).
    """
    return max(0, min(free, total - beside))
