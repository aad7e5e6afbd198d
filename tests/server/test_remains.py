"""What a dead server left is removed at the next start; what a living one has is not touched."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import remains
from server.errors import CannotStart
from server.options import ROOT
from server.processes import is_alive
from server.remains import MARK, Belongings, kill_processes, remove_environments, sweep

OWNER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from server import remains
remains.SHARED_MEMORY = Path(sys.argv[1])
own = remains.Belongings()
(own.folder / "python").mkdir()
(own.folder / "admission").touch()
(remains.SHARED_MEMORY / f"{own.prefix}region").touch()
stopped = subprocess.Popen(["sleep", "1000"], env={remains.MARK: own.prefix}, start_new_session=True)
stopped.send_signal(signal.SIGSTOP)
print(own.prefix, stopped.pid, flush=True)
time.sleep(1000)
"""
CROWD = """
import os, random, sys
from pathlib import Path
from server import remains
remains.SHARED_MEMORY = Path(sys.argv[1])
for _ in range(60):
    own = remains.Belongings()
    (own.folder / "admission").touch()
    remains.sweep()
    assert (own.folder / "admission").exists()
    if random.random() < 0.5:
        own.remove()
        assert not own.folder.exists()
    else:
        os.close(own._lock)  # as if it had been killed
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/shm."""
    monkeypatch.setattr(remains, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def owner(place: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A launcher with all its belongings, its prefix, and a process of its server that it does not end."""
    command = [sys.executable, "-c", OWNER, str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        prefix, pid = launcher.stdout.readline().split()
        yield launcher, prefix, int(pid)
        launcher.kill()
        kill_processes(prefix)


def test_a_dead_server_is_swept_and_one_line_says_so(
    place: Path, owner: tuple[subprocess.Popen[str], str, int], caplog: pytest.LogCaptureFixture
) -> None:
    launcher, _, stopped = owner
    (place / "unrelated").touch()
    launcher.kill()
    launcher.wait()
    sweep()
    assert not is_alive(stopped)
    assert [path.name for path in place.iterdir()] == ["unrelated"]
    line = f"vita-audio server: removed from {place} what dead servers left (servers: 1, processes: 1, files: 2)"
    assert caplog.messages == [line]
    sweep()
    assert caplog.messages == [line]


def test_living_servers_are_not_touched(
    place: Path, owner: tuple[subprocess.Popen[str], str, int], caplog: pytest.LogCaptureFixture
) -> None:
    launcher, _, process = owner
    own = Belongings()
    before = sorted(place.rglob("*"))
    sweep()
    assert sorted(place.rglob("*")) == before
    assert is_alive(launcher.pid)
    assert is_alive(process)
    assert caplog.messages == []
    own.remove()
    assert not own.folder.exists()


def test_concurrent_starts_do_not_hurt_each_other(place: Path) -> None:
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(place)], cwd=ROOT) for _ in range(4)]
    assert [process.wait(120) for process in crowd] == [0] * 4
    sweep()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file", "other name", "other user"])
def test_what_only_looks_like_a_server_stays(place: Path, kind: str) -> None:
    path = place / "vita_audio_1_0123abcd_server"
    if kind == "link":
        path.symlink_to(ROOT)
    elif kind == "file":
        path.touch()
    elif kind == "other name":
        path = place / "vita_audio_1_0123abcd_observer_server"
        path.mkdir()
    elif os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    else:
        path.mkdir()
        shutil.chown(path, 12345)
    sweep()
    assert path.is_symlink() or path.exists()
    assert (ROOT / "server").is_dir()


def test_what_cannot_be_removed_is_named_and_ends_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = Belongings()
    region = place / f"{own.prefix}region"
    region.touch()

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path / "admission"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    own.remove()
    assert not region.exists()
    assert caplog.messages == [
        f"vita-audio server: {own.folder}/admission could not be removed (Operation not permitted): "
        f"remove {own.folder} by hand"
    ]


def test_a_sweep_takes_bounded_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "SWEEP_S", 0.0)
    os.close(Belongings()._lock)
    time.sleep(0.01)
    sweep()
    assert len(list(place.iterdir())) == 1


def test_no_shared_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remains, "SHARED_MEMORY", tmp_path / "missing")
    sweep()
    with pytest.raises(CannotStart, match=r"missing.*No such file or directory"):
        Belongings()
    assert MARK not in os.environ


def test_no_descriptors_are_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CannotStart, match="Too many open files"):
        Belongings()


def test_only_empty_new_folders_of_environments_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "ENVIRONMENTS", tmp_path)
    (tmp_path / "python_env_used").mkdir()
    (tmp_path / "python_env_used" / "bin").mkdir()
    (tmp_path / "python_env_empty").mkdir()
    (tmp_path / "python_env_file").touch()
    (tmp_path / "another").mkdir()
    remove_environments(time.time() + 60)
    assert (tmp_path / "python_env_empty").exists(), "it is older than the start"
    remove_environments(time.time())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "python_env_file", "python_env_used"]


def test_what_a_server_has_goes_with_its_processes(place: Path) -> None:
    own = Belongings()
    (place / f"{own.prefix}region").touch()
    with subprocess.Popen(["sleep", "1000"], env={MARK: own.prefix}, start_new_session=True) as process:
        own.remove()
        try:
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()
    assert list(place.iterdir()) == []
