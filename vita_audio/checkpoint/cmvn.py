"""Mean and variance of SenseVoice's features, from the text file `am.mvn` beside its weights (docs/plus.md)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vita_audio.checkpoint.weight_files import read_text
from vita_audio.contract.errors import CheckpointError
from vita_audio.engines.interface import Floats

CMVN_FILE = "am.mvn"


def read_cmvn(path: str | Path, width: int = 560) -> tuple[Floats, Floats]:
    """Shift and scale of the stacked features: float32 [width] each; normalised features are (x + shift) * scale.

    Raises:
        CheckpointError: the file is missing, or one of its two tables is not `width` finite numbers.
    """
    path = Path(path)
    text = read_text(path)
    return _table(text, "AddShift", path, width), _table(text, "Rescale", path, width)


def _table(text: str, tag: str, path: Path, width: int) -> Floats:
    # Other blocks come before and have brackets of their own: only the one on this tag's <LearnRateCoef> line counts.
    found = re.search(rf"<{tag}>[^<\[]*<LearnRateCoef>\s+\S+\s+\[([^\]<]*)\]", text)
    if found is None:
        raise CheckpointError(f"{path}: has no table <{tag}> ... [ {width} numbers ]; copy the file again")
    try:
        values = np.array(found[1].split(), np.float32)
    except ValueError as error:
        raise CheckpointError(f"{path}: <{tag}>: {error}; copy the file again") from error
    if len(values) != width or not np.isfinite(values).all():
        finite = int(np.isfinite(values).sum())
        raise CheckpointError(
            f"{path}: <{tag}> has {len(values)} numbers, {finite} of them finite, must be {width}; "
            "use the file that came with the weights"
        )
    return values
