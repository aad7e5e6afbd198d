"""A second of a long run, or a few: what began in it, what ended in it. Windows add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.histogram import Histogram

_COUNTS = ("sent", "over", "unreachable", "offered", "lost", "broken", "spoken")


@dataclass(slots=True)
class Window:
    """`sent`, `over`: streams sent and ended in this window. The rest belongs to the streams *meant to start* in it.

    `unreachable`: of those that ended here, how many found no server or lost it.
    """

    sent: int = 0
    over: int = 0
    unreachable: int = 0
    offered: int = 0
    lost: int = 0
    broken: int = 0
    spoken: int = 0
    ttfa: Histogram = field(default_factory=Histogram)

    def merge(self, other: Window) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ttfa.merge(other.ttfa)
