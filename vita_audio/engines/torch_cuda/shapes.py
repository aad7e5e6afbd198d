"""The sizes that programs are fixed to: how a call is padded up to one, and which of them a server prepares.

The set is closed on purpose. A capture takes as long as many steps, and every running stream would wait for it, so a
prepared engine captures nothing more: a call outside of the set runs eagerly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes one program is fixed to; a call is padded up to them.

    Attributes:
        rows: packed rows of all streams.
        streams: streams in the call.
        stream_rows: most rows of one stream.
        span: cache rows that are looked at (`attend_rectangle` only).
        draws: whether tokens are drawn; how is a slot's own, and read on the device.
    """

    rows: int
    streams: int
    stream_rows: int
    span: int
    draws: bool


#: Rows of one stream that a program takes at most; longer runs are cut.
MAX_STREAM_ROWS = 512
#: Streams whose prompts share a call at most.
GROUP_STREAMS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What decides the shapes of an engine.

    Attributes:
        slots: streams that may be open at once.
        modules: K, MCTP modules.
        span: cache rows that a decode step looks at.
    """

    slots: int
    modules: int
    span: int

    @property
    def extend_rows(self) -> int:
        """Most rows of a stream that extends together with others: what follows a burst, and one more."""
        return self.modules + 1

    @property
    def burst_rows(self) -> int:
        """Most rows of a stream whose burst runs together with others: boost's K + 4, as they are padded."""
        return round_stream_rows(self.modules + 4)


def prepared_shapes(limits: Limits, prefill_chunk: int) -> list[tuple[str, Shape]]:
    """("extend" or "burst", shape) of what streams usually run, the largest first, so that its memory serves the rest.

    Usual: any number of streams in every mode, however they sample, and prompts read by `prefill_chunk` tokens, one
    alone or several that together have no more.
    """
    counts = sorted({min(limits.slots, 1 << i) for i in range(limits.slots.bit_length() + 1)})
    steps = set()
    for fewer, count in pairwise([0, *counts]):  # from fewer + 1 to count streams run as count
        steps |= {("extend", count, round_rows(rows), 1) for rows in range(fewer + 1, count + 1)}
        for kind, most in (("extend", limits.extend_rows), ("burst", limits.burst_rows)):
            steps |= {(kind, count, round_rows(rows), most) for rows in range(max(2, fewer + 1), count * most + 1)}
    alone = range(2, prefill_chunk + limits.modules + 1)
    steps |= {(kind, 1, round_rows(rows), rows) for kind in ("extend", "burst") for rows in alone}
    if limits.slots > 1:
        together = range(2 * limits.extend_rows, prefill_chunk + 1)
        count = group_streams(limits.slots)
        steps |= {(kind, count, round_rows(rows), prefill_chunk) for kind in ("extend", "burst") for rows in together}
    made = {
        (kind, Shape(rows, count, round_stream_rows(most), limits.span, draws))
        for kind, count, rows, most in steps
        for draws in ((False, True) if count == 1 else (True,))
        if kind == "extend" or limits.modules
    }
    return sorted(made, key=lambda one: (one[1].rows, one[1].streams, one[1].draws, one[0]), reverse=True)


def most_rows(limits: Limits, prefill_chunk: int) -> int:
    """Rows that a call of streams has at most, padding left out."""
    return max(MAX_STREAM_ROWS, prefill_chunk, limits.slots * limits.extend_rows)


def group_streams(slots: int) -> int:
    """Streams that a call of several prompts is padded to: always the same, since empty ones cost next to nothing."""
    return min(slots, GROUP_STREAMS)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def round_stream_rows(count: int) -> int:
    """The smallest of 1, 16, 32, 64, ... that is at least `count`."""
    return 1 if count == 1 else max(16, power_of_two(count))


def round_rows(count: int) -> int:
    """The smallest of 1, 16, 32, 64, 96, 128, 192, 256, 384, ... that is at least `count`.

    Below 64 rows a GPU reads weights for as long as it computes: fewer shapes there cost nothing.
    """
    if count == 1:
        return 1
    power = max(16, power_of_two(count))
    return power * 3 // 4 if power >= 128 and count <= power * 3 // 4 else power
