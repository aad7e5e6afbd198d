"""`am.mvn`: the right tables are read, and each fault has one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vita_audio.checkpoint.cmvn import read_cmvn
from vita_audio.contract.errors import CheckpointError

TEXT = """<Nnet>
<Splice> 3 3
[ 0 ]
<AddShift> 3 3
<LearnRateCoef> 0 [ -8.5 1e-1 2 ]
<Rescale> 3 3
<LearnRateCoef> 0 [ 0.25 0.5 1 ]
</Nnet>
"""


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "am.mvn").write_text(TEXT)
    shift, scale = read_cmvn(tmp_path / "am.mvn", width=3)
    assert shift.dtype == scale.dtype == np.float32
    np.testing.assert_allclose(shift, [-8.5, 0.1, 2])
    np.testing.assert_allclose(scale, [0.25, 0.5, 1])


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<AddShift>", "<Shift>", r"has no table <AddShift>"),
        (TEXT[TEXT.index("<Rescale>") :], "", r"has no table <Rescale> \.\.\. \[ 3 numbers \]; copy the file again"),
        ("0.5 1 ]", "0.5", r"has no table <Rescale>"),  # cut off
        ("0.25 0.5 1", "0.25 0.5", r"<Rescale> has 2 numbers, 2 of them finite, must be 3"),
        ("-8.5", "nan", r"<AddShift> has 3 numbers, 2 of them finite, must be 3"),
        ("-8.5", "minus", r"<AddShift>: could not convert string to float: 'minus'; copy the file again"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, fault: str) -> None:
    (tmp_path / "am.mvn").write_text(TEXT.replace(old, new))
    with pytest.raises(CheckpointError, match=rf"am\.mvn: {fault}") as error:
        read_cmvn(tmp_path / "am.mvn", width=3)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"am\.mvn: file is missing"):
        read_cmvn(tmp_path / "am.mvn")
