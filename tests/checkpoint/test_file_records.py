"""A written folder is complete or not there, whatever ends the writing; and what commands say that draw one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from build_engines import random_engines
from vita_audio.checkpoint.file_records import whole_folder
from vita_audio.checkpoint.random_weights import __main__ as random_checkpoint
from vita_audio.checkpoint.random_weights.language_model import drawing_device
from vita_audio.contract.errors import EngineError


def write(out: Path, fault: BaseException | None = None) -> None:
    with whole_folder(out, EngineError) as folder:
        (folder / "a").write_text("a")
        if fault is not None:
            raise fault


def test_it_is_moved_to_its_place_with_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "usual"):  # not there, or empty
        mode = (tmp_path / "usual").stat().st_mode
        write(out)
        assert [path.name for path in out.iterdir()] == ["a"]
        assert out.stat().st_mode == mode
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "out", "a", "usual"}


@pytest.mark.parametrize("fault", [SystemExit(143), KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_nothing_stays_of_a_failed_one(fault: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(fault)):
        write(tmp_path / "out", fault)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"^--out: .*/out cannot be written \(No space left on device\)"):
        write(tmp_path / "out", OSError(28, "No space left on device"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(EngineError, match="the disk is full at"):  # tokenizers raises a bare Exception
        write(tmp_path / "out", Exception("No space left on device (os error 28)"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for out, said in (
        (Path(), "is the current folder"),
        (tmp_path.parent, "is not empty"),
        (Path("file"), "is a file"),
        (Path("file/out"), "cannot be written"),
    ):
        with pytest.raises(EngineError, match=f"^--out: .*{said}"):
            write(out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_runs_do_not_touch_each_other(tmp_path: Path) -> None:
    second = whole_folder(tmp_path / "out", EngineError)
    folder = second.__enter__()
    (folder / "b").touch()
    write(tmp_path / "out")
    assert (folder / "b").exists()
    with pytest.raises(EngineError, match="cannot be written"):
        second.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vita_audio.checkpoint.random_weights",
        "--size",
        "0.5b",
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.rglob("model.safetensors")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from vita_audio.checkpoint.file_records import whole_folder\n"
        "from vita_audio.contract.errors import EngineError\n"
        "with whole_folder(Path(sys.argv[1]), EngineError) as folder:\n"
        "    (folder / 'a').touch(); print('written', flush=True); time.sleep(600)"
    )
    out = tmp_path / "out"
    for name in (".out-is-mine", ".other-abcdefgh", ".out-kept.txt"):
        (tmp_path / name).mkdir()
    kept = {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        (left,) = {path.name for path in tmp_path.iterdir()} - kept
        write(tmp_path / "more" / "out")
        write(out)  # while the other one runs it is left alone
        assert (tmp_path / left / "out" / "a").exists()
        shutil.rmtree(out)
        process.kill()
    assert (tmp_path / left / "out" / "a").exists()
    write(out)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "out", "more"}


def test_devices() -> None:
    assert drawing_device("cpu").type == "cpu"
    for name, said in (
        ("banana", "'banana' is not valid: cpu, cuda or cuda:N"),
        ("cuda:99", "'cuda:99' is not there"),
    ):
        with pytest.raises(EngineError, match=f"^--device: {said}"):
            drawing_device(name)


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (random_checkpoint, "--device banana", "error: --device: 'banana' is not valid"),
        (random_engines, "--device banana", "error: --device: 'banana' is not valid"),
        (random_engines, "--device cpu --max-tokens 0", "error: --max-tokens: 0 is not valid: at least 1"),
        (random_engines, "--device cpu --context-tokens 0", "error: --context-tokens: 0 is not valid: at least 1"),
    ],
)
def test_refused_before_weights_are_drawn(
    command: object, arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*ignored: object) -> None:
        raise AssertionError("weights are drawn")

    monkeypatch.setattr(random_engines, "_networks", drawn)
    monkeypatch.setattr(random_checkpoint, "_write_language_model", drawn)
    app = typer.Typer()
    app.command()(command.main)  # type: ignore[attr-defined]
    result = CliRunner().invoke(app, ["--size", "tiny", "--out", str(tmp_path / "out"), *arguments.split()])
    assert result.exit_code == 1
    assert said in result.output
    assert list(tmp_path.iterdir()) == []
