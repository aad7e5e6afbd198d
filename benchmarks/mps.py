"""NVIDIA's Multi-Process Service around a block: a server's processes then share the GPU instead of taking turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = "nvidia-cuda-mps-control"
_TIMEOUT_S = 20.0


@contextmanager
def mps(wanted: bool) -> Iterator[str]:
    """Run the block with a control daemon of its own, in whose environment children are started.

    Yields:
        What is so: "off", "on", "no MPS daemon here" or why it did not start.
    """
    if not wanted or shutil.which(_CONTROL) is None:
        yield "no MPS daemon here" if wanted else "off"
        return
    with tempfile.TemporaryDirectory(prefix="vita-audio-mps-") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in variables.values():
            os.mkdir(path)
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            made = subprocess.run([_CONTROL, "-d"], capture_output=True, text=True, timeout=_TIMEOUT_S)
            if made.returncode:
                _restore(before)
                yield f"did not start: {(made.stderr or made.stdout).strip()[-300:]}"
                return
            try:
                yield "on"
            finally:
                subprocess.run([_CONTROL], input="quit\n", text=True, capture_output=True, timeout=_TIMEOUT_S)
        finally:
            _restore(before)


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
