"""Kernels, interpreted on the CPU: the files `interpreted_*.py` beside this one, in a process of their own, since the
switch of the GPU language Triton is read when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="the GPU language Triton is not installed")
@pytest.mark.timeout(900)  # on a busy machine; alone it takes a tenth of that
def test_interpreted() -> None:
    assert len(FILES) == 5
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    plugins = ("-p", "no:cacheprovider", "-p", "triton_interpreter")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *map(str, FILES)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-8000:]
