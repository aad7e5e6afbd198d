"""How long a drain waits, without a server: what it is told of streams, look by look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.launch import TritonServer
from server.options import ServerOptions


def draining(
    monkeypatch: pytest.MonkeyPatch, looks: Iterator[int | OSError], exit_timeout_s: int
) -> Callable[[], bool]:
    """Drains a server that lives on and has so many streams at each look."""

    def live_streams(self: TritonServer) -> int:
        found = next(looks)
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(TritonServer, "wait", lambda self, timeout_s=None: False)
    monkeypatch.setattr(TritonServer, "live_streams", live_streams)
    return TritonServer(ServerOptions(exit_timeout_s=exit_timeout_s), Path("/dev/null")).drain


def test_two_looks_in_a_row_without_a_stream_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may fall between two stages; a server that does not answer may have streams."""
    looks = iter([2, 0, 1, 0, OSError(), 0, 0, 5])
    assert draining(monkeypatch, looks, 60)()
    assert list(looks) == [5]


def test_streams_that_are_left_when_its_time_is_up_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([1, 1])
    assert not draining(monkeypatch, looks, 0)()
    assert list(looks) == [1]


def test_a_server_that_ends_has_no_stream_left(monkeypatch: pytest.MonkeyPatch) -> None:
    drain = draining(monkeypatch, iter([]), 60)
    monkeypatch.setattr(TritonServer, "wait", lambda self, timeout_s=None: True)
    assert drain()
