"""Files and folders that are whole or as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.errors import TrainingError
from training.files import whole_file, whole_folder


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
