"""Engines packed as their difference from a checkpoint come back byte by byte, without PyTorch, or not at all."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bsdiff4
import pytest

import build_engines.packaged
from build_engines.packaged import pack, unpack
from vita_audio.contract.errors import EngineError
from vita_audio.engines.manifest import check_manifest, load_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(engines: Path) -> Path:
    return engines.parent / "checkpoint"


@pytest.fixture(scope="module")
def packaged(engines: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaged") / "cpu"
    sizes: dict[str, tuple[int, int]] = {}
    pack(checkpoint, engines, folder, lambda name, size, difference: sizes.update({name: (size, difference)}))
    assert sizes.keys() == load_manifest(engines).files.keys()
    whole, small = (sum(size[i] for size in sizes.values()) for i in (0, 1))
    assert small < whole / 4
    return folder


def test_unpacked_engines_are_those_that_were_packed(
    engines: Path, checkpoint: Path, packaged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "engines"
    assert unpack(checkpoint, packaged, out)
    for name in load_manifest(engines).files:
        assert (out / name).read_bytes() == (engines / name).read_bytes(), name
    check_manifest(out, checkpoint)
    assert not unpack(checkpoint, packaged, out)
    (out / "vocoder.onnx").write_bytes(b"damaged")
    assert unpack(checkpoint, packaged, out)
    check_manifest(out, checkpoint)


def test_packing_again_keeps_differences_that_still_fit(
    engines: Path, checkpoint: Path, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = shutil.copytree(packaged, tmp_path / "again")
    (again / "vocoder_f0.onnx.bsdiff").write_bytes(b"damaged")
    made: list[bytes] = []
    diff = bsdiff4.diff
    monkeypatch.setattr(bsdiff4, "diff", lambda old, new: made.append(new) or diff(old, new))
    pack(checkpoint, engines, again, lambda *_: None)
    assert made == [(engines / "vocoder_f0.onnx").read_bytes()]
    assert unpack(checkpoint, again, tmp_path / "engines")


def test_the_command_needs_no_pytorch(checkpoint: Path, packaged: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from build_engines.packaged import app; app(prog_name='packaged')"
    arguments = ["unpack", "--checkpoint", checkpoint, "--packaged", packaged, "--out", tmp_path / "engines"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_manifest(tmp_path / "engines", checkpoint)


def test_another_checkpoint_is_refused(checkpoint: Path, packaged: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = other / "language_model" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(EngineError, match="checkpoint_sha256"):
        unpack(other, packaged, tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_a_damaged_difference_is_refused(checkpoint: Path, packaged: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(packaged, tmp_path / "damaged")
    file = damaged / "flow_condition.onnx.bsdiff"
    other = damaged / "flow_velocity.onnx.bsdiff"
    file.write_bytes(other.read_bytes())  # a sound file of the wrong content
    with pytest.raises(EngineError, match="flow_condition"):
        unpack(checkpoint, damaged, tmp_path / "engines")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(EngineError, match=r"flow_condition.*applied"):
        unpack(checkpoint, damaged, tmp_path / "engines")
    file.unlink()
    with pytest.raises(EngineError, match="flow_condition"):
        unpack(checkpoint, damaged, tmp_path / "engines")
    assert not (tmp_path / "engines").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_of_something_else_is_left_alone(checkpoint: Path, packaged: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("dear")
    with pytest.raises(EngineError, match="letters"):
        unpack(checkpoint, packaged, tmp_path / "letters")
    assert (tmp_path / "letters" / "to_mother.txt").read_text() == "dear"


def test_two_processes_at_once_restore_one_folder(checkpoint: Path, packaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    code = "import sys; from build_engines.packaged import app; print('ready', flush=True); sys.stdin.readline(); app()"
    command = [sys.executable, "-c", code, "unpack", "--checkpoint", checkpoint, "--packaged", packaged, "--out", out]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:  # both at once: what they import takes longer than the work
        each.stdin.write("\n")
        each.stdin.flush()
    said = [(*each.communicate(timeout=300), each.returncode) for each in running]
    assert [code for *_, code in said] == [0, 0], said
    assert sorted(stdout.split()[-1] for stdout, *_ in said) == ["restored", "unchanged"]
    check_manifest(out, checkpoint)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_process_that_waited_finds_the_engines_restored(
    checkpoint: Path, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engines"

    @contextmanager
    def after_another(engines: Path) -> Iterator[None]:
        monkeypatch.undo()
        assert unpack(checkpoint, packaged, engines)
        yield

    monkeypatch.setattr(build_engines.packaged, "_unpack_lock", after_another)
    assert not unpack(checkpoint, packaged, out)


def test_a_full_disk_is_not_called_a_damaged_difference(
    checkpoint: Path, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EngineError, match=r"engines: cannot be written \(No space left on device\); free space"):
        unpack(checkpoint, packaged, tmp_path / "engines")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_of_something_else_is_refused_before_the_work(
    checkpoint: Path, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("dear")
    monkeypatch.setattr(bsdiff4, "patch", lambda *_: pytest.fail("a file was restored for nothing"))
    with pytest.raises(EngineError, match="letters"):
        unpack(checkpoint, packaged, tmp_path / "letters")
