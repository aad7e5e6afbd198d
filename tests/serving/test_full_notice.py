"""The notice that a server is full: up, down, absent, unwritable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serving.full_notice import STALE_S, FullNotice
from vita_audio.contract.errors import ServerFull


def test_up_and_down(tmp_path: Path) -> None:
    shown, read = FullNotice(tmp_path / "full"), FullNotice(tmp_path / "full")
    read.check()
    shown.show((4, 1))
    with pytest.raises(ServerFull, match=r"server is full \(4 running, 1 waiting\)"):
        read.check()
    shown.show((5, 0))
    with pytest.raises(ServerFull, match=r"5 running, 0 waiting"):
        read.check()
    shown.show(None)
    read.check()
    shown.show(None)
    assert list(tmp_path.iterdir()) == []


def test_a_notice_that_nobody_refreshes_says_nothing(tmp_path: Path) -> None:
    notice = FullNotice(tmp_path / "full")
    notice.refresh()
    assert not (tmp_path / "full").exists()
    notice.show((4, 1))
    long_ago = time.time() - STALE_S - 1
    os.utime(tmp_path / "full", (long_ago, long_ago))
    notice.check()
    notice.refresh()
    with pytest.raises(ServerFull):
        notice.check()


def test_without_a_path_nobody_is_refused() -> None:
    notice = FullNotice(None)
    notice.show((4, 1))
    notice.refresh()
    notice.check()


def test_a_place_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notice = FullNotice(tmp_path / "gone" / "full")
    notice.show((4, 1))
    assert "cannot be written" in caplog.text
    notice.check()
