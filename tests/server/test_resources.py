"""A machine that is short of something says so in one line, before Triton finds out."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from server import resources
from server.command import SHARED_MEMORY_BYTES
from server.errors import CannotStart
from server.launch import TritonServer
from server.options import ROOT, ServerOptions
from server.resources import check_log_file, check_resources, new_log_file

OPTIONS = ServerOptions(slots=10, queue=2)
Usage = namedtuple("Usage", "total used free")


def allow(monkeypatch: pytest.MonkeyPatch, files: int, free: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))


def test_open_files_for_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    for files in (60, 4096, resource.RLIM_INFINITY):
        allow(monkeypatch, files, 1 << 30)
        check_resources(OPTIONS)
    allow(monkeypatch, 59, 1 << 30)
    with pytest.raises(CannotStart, match=r"^only 59 open files .* 60 are needed for 12 streams: .*ulimit -n"):
        check_resources(OPTIONS)


def test_shared_memory_for_every_model_process(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 4096, 5 * SHARED_MEMORY_BYTES)
    check_resources(OPTIONS)
    allow(monkeypatch, 4096, 5 * SHARED_MEMORY_BYTES - 1)
    with pytest.raises(CannotStart, match=r"^/dev/shm has 39 MiB free and Triton needs 40: .*--shm-size"):
        check_resources(OPTIONS)
    monkeypatch.setattr(resources, "SHARED_MEMORY", Path("/no/such"))
    monkeypatch.undo()
    monkeypatch.setattr(resources, "SHARED_MEMORY", Path("/no/such"))
    with pytest.raises(CannotStart, match=r"^/no/such, which Triton needs: No such file"):
        check_resources(OPTIONS)


def test_a_log_that_can_be_written_keeps_what_it_has(tmp_path: Path) -> None:
    assert check_log_file(tmp_path / "new") == 0
    (tmp_path / "old").write_text("words")
    assert check_log_file(tmp_path / "old") == 5
    assert (tmp_path / "old").read_text() == "words"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none/log", "cannot be written (No such file or directory): choose another"),
        ("file/log", "cannot be written (Not a directory): choose another"),
        ("", "is not a file: give one"),
        ("/dev/full", "is not a file: give one"),
        ("x" * 300, "cannot be written (File name too long): choose another"),
    ],
)
def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart) as refused:
        check_log_file(tmp_path / name)
    assert str(refused.value).startswith(f"--log-file: {tmp_path / name} {problem}")


def test_a_log_on_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 4096, 1000)
    with pytest.raises(CannotStart, match=r"^--log-file: the disk of .* is full"):
        check_log_file(tmp_path / "log")


def test_a_machine_without_a_temporary_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = new_log_file()
    assert log.parent == tmp_path
    assert log.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(CannotStart, match=r"^no log can be written \(.*: set TMPDIR, or give --log-file$"):
        new_log_file()


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (
            PermissionError(13, "Permission denied", "/engines/vocoder.onnx"),
            "/engines/vocoder.onnx: Permission denied: ",
        ),
        (OSError(11, "Resource temporarily unavailable"), "the server: Resource temporarily unavailable: "),
        (OSError("timed out"), "the server: timed out: "),
    ],
)
def test_whatever_linux_refuses_is_named(refusal: OSError, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: ServerOptions) -> None:
        raise refusal

    monkeypatch.setattr("server.launch.check_options", refuse)
    with pytest.raises(CannotStart, match=f"^{reason}check that this user may use it"):
        TritonServer(OPTIONS).start()


#: In a mount namespace of the test's own: the command that follows, with memory where only so much fits.
SMALL = 'mount -t tmpfs -o size="$1" none "$2" || exit 77; shift 2; exec "$@"'
FULL = 'mount -t tmpfs -o size=64k none "$2" && head -c 64k /dev/zero > "$2/data" || exit 77; shift 2; exec "$@"'


@pytest.mark.parametrize(
    ("script", "place", "problem"),
    [
        (SMALL, "/dev/shm", "/dev/shm has 20 MiB free and Triton needs 40: free some"),
        (FULL, "disk", "--log-file: "),
    ],
)
def test_a_server_that_is_short_of_room_says_so(
    script: str, place: str, problem: str, engines: Path, tmp_path: Path
) -> None:
    """As a user meets it: one line, exit code 1, nothing left."""
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    server = [sys.executable, "-m", "server", "--engines", str(engines), "--log-file", str(tmp_path / "disk" / "log")]
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "-", "20m", str(folder)]
    (tmp_path / "disk").mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            [*command, *server, "--grpc-port", "0", "--metrics-port", "0"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    # A server of another test may just have been killed: what it left is swept, which has a line of its own.
    (line,) = [line for line in done.stderr.splitlines() if "what dead servers left" not in line]
    assert line.startswith(f"vita-audio server: cannot start: {problem}")
    assert done.returncode == 1
    assert os.listdir(tmp_path / "disk") == []
