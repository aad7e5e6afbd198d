"""Fixtures of GPU builds: a tiny checkpoint, stand-ins for the compilers, the machine a build finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_builds import Compilers
from gpu_machines import CONTAINER
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.engines.gpu_machine import GpuMachine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    write_random_checkpoint(folder, TINY, seed=0)
    return folder


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Compilers:
    made = Compilers()
    made.install(monkeypatch)
    return made


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[GpuMachine], None]:
    """Builds run on one H100 in the container; a call replaces that machine."""

    def be(machine: GpuMachine) -> None:
        monkeypatch.setattr("build_engines.pipeline.find_machine", lambda: machine)

    be(CONTAINER)
    return be
