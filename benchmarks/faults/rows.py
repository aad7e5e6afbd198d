"""A row of the campaign's table, and the rules by which it is right or wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.driver import CANCELLED, DONE
from vita_client.errors import UNAVAILABLE

#: The code of a stream that its caller's own deadline ended: it would have waited for ever.
HUNG = "deadline_exceeded"
#: How a stream may end when a part of the server has died: the caller is to ask again, here or elsewhere.
FAIR = frozenset(UNAVAILABLE) - {"server_full"} | {DONE, CANCELLED}
#: What no text for callers may hold: traces, places in sources, names of shared memory.
_SECRET = ("Traceback", 'File "', "/dev/shm", "vita_audio_", "0x")
_LONGEST_ERROR = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds from the fault in which readiness turns false, the streams in flight end, the service is back, and
    nothing of a dead server is left."""

    not_ready_s: float = 2.0
    ended_s: float = 2.0
    back_s: float = 15.0
    gone_s: float = 5.0

    def times(self, patience: float) -> Limits:
        """For a machine that is busy with other things."""
        return Limits(*(patience * getattr(self, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. Seconds count from it; None where it did not happen.

    Args:
        callers: what callers saw, in words.
        failed: streams that ended with an error.
        left: what was left behind when all should be gone, in words; empty: nothing.
        wrong: each rule that does not hold, in words; empty: the row is right.
        figures: numbers of this part alone.
    """

    part: str
    fault: str
    callers: str
    not_ready_s: float | None = None
    ended_s: float | None = None
    back_s: float | None = None
    failed: int = 0
    left: str = ""
    wrong: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def beyond(what: str, value_s: float | None, limit_s: float) -> list[str]:
    """The complaint about a time that never came or came too late."""
    if value_s is None:
        return [f"{what}: never"]
    return [f"{what}: {value_s:.1f} s, at most {limit_s:g}"] if value_s > limit_s else []


def counted(codes: Iterable[str]) -> str:
    """ "3 done, 1 stream_broken": the most frequent first."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common()) or "none"


def unfair(codes: Iterable[str], fair: frozenset[str] = FAIR) -> list[str]:
    """The complaint about ends that callers cannot make sense of."""
    others = [code for code in codes if code not in fair]
    return [f"callers saw {counted(others)}"] if others else []


def telling(texts: Iterable[str]) -> list[str]:
    """The complaint about an error text that is no single short line, or shows keys, paths or a traceback."""
    for text in texts:
        if "\n" in text or len(text) > _LONGEST_ERROR or any(word in text for word in _SECRET):
            return [f"an error text of the server: {text[:120]!r}"]
    return []


def words(left: Mapping[str, Iterable[str]]) -> str:
    """What was left behind, by kind; empty when nothing was."""
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(sorted(set(names))[:3])})"
        for kind, each in left.items()
        if (names := [*each])
    )
