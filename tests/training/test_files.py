"""Files and folders that are whole or as they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from training.__main__ import app
from training.errors import TrainingError
from training.files import one_training, whole_file, whole_folder


def test_one_training_at_a_time(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from training.files import one_training\n"
    code += "with one_training(Path(sys.argv[1])): print('holds', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=Path(__file__).resolve().parents[2],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        for command in (
            ["--config", "tiny", "--out", str(tmp_path / "out"), "--resume"],
            ["finetune", "--checkpoint", "x", "--data", "x", "--out", str(tmp_path / "out")],
        ):
            second = CliRunner().invoke(app, command)
            assert second.exit_code == 1
            assert second.stderr.endswith("another training is running there; wait for it, or stop it\n")
    finally:
        first.kill()
        first.communicate()
    with one_training(tmp_path / "out"):
        pass


def half_file(path: Path, fault: BaseException) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise fault


def half_folder(folder: Path, fault: BaseException) -> None:
    with whole_folder(folder) as place:
        (place / "old").write_text("half")
        raise fault


FULL = OSError(28, "No space left on device")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "below" / "weights"
    with whole_file(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(TrainingError, match=r"weights: cannot be written .*No space left"):
        half_file(path, FULL)
    with pytest.raises(KeyboardInterrupt):
        half_file(path, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    for text in ("older", "old"):
        with whole_folder(folder) as place:
            (place / text).write_text(text)
    with pytest.raises(TrainingError, match="No space left"):
        half_folder(folder, FULL)
    with pytest.raises(KeyboardInterrupt):
        half_folder(folder, KeyboardInterrupt())
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert (folder / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_as_torch_reports_it(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        with whole_file(path) as temporary:
            temporary.symlink_to("/dev/full")
            torch.save({"x": torch.zeros(100_000)}, temporary)

    with pytest.raises(TrainingError, match="cannot be written"):
        save(tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []
