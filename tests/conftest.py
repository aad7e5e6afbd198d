"""Fixtures every test may use: the golden data and the engines built once per run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Golden data computed by the authors' own code (`VITA_GOLDEN`, else beside the checkout)."""
    folder = Path(os.environ.get("VITA_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"golden data not found at {folder}: set VITA_GOLDEN")
    return folder
