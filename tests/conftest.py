"""Fixtures every test may use: the golden data and the engines built once per run."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.launch import TritonServer
from server.options import ServerOptions

# Before PyTorch is loaded, here or in a child: with as many threads as cores in each of several processes its threads
# wait for each other, and a test may take twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
#: Doubles of programs that may be missing.
PROGRAMS = ROOT / "tests" / "helpers" / "programs"
if shutil.which("flite") is None:
    os.environ["PATH"] += os.pathsep + str(PROGRAMS)
#: Files of more than half a minute, the longest first. They begin before all others, so that no worker is left with
#: one of them at the end (`--dist loadfile --no-loadscope-reorder`).
LONG = (
    *("training/test_pipeline.py", "engines/torch_cuda/test_compiles.py", "server/test_supervisor.py"),
    *("server/test_streams.py", "server/test_cancel.py", "benchmarks/test_gpu_session.py", "benchmarks/test_faults.py"),
    *("generation/test_engines.py", "build_engines/test_conformance.py", "client/test_pipes.py"),
    *("loadtest/test_locust.py", "engines/torch_cuda/kernels/test_interpreted.py", "benchmarks/test_gpu_serving.py"),
    *("deploy/test_offline.py", "training/language_model/test_finetune.py", "server/test_outbound.py"),
    *("loadtest/test_truth.py", "benchmarks/test_paper_tables.py", "engines/torch_cuda/test_dispatch.py"),
    *("gateway/web/test_page_in_browser.py", "server/test_environment.py", "server/test_lifetime.py"),
    *("training/test_data.py", "build_engines/test_sources.py", "engines/torch_cuda/kernels/test_linear_compiles.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begins = {ROOT / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: begins.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that ran in the test's process has set up its logging: to a stream that ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in handlers and type(handler) is logging.StreamHandler:  # pytest's own are of other classes
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Golden data computed by the authors' own code (`VITA_GOLDEN`, else tests/golden)."""
    folder = Path(os.environ.get("VITA_GOLDEN", ROOT / "tests" / "golden"))
    if not folder.is_dir():
        pytest.fail(f"golden data not found at {folder}: it is part of the repository (tests/golden)")
    return folder


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CPU engines of the tiny random-weight checkpoint (real architecture, K = 10), built as a user builds them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers of one run share them
        folder = folder.parent
    checkpoint, out = folder / "served" / "checkpoint", folder / "served" / "engines"
    with (folder / "served.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "manifest.json").exists():
            for command in (
                ["vita_audio.checkpoint.random_weights", "--size", "tiny", "--out", str(checkpoint)],
                ["build_engines", "--checkpoint", str(checkpoint), "--target", "cpu", "--out", str(out)],
            ):
                subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="session")
def server(engines: Path) -> Iterator[TritonServer]:
    """A real Triton on free loopback ports, shared by tests that leave it as they found it."""
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=8, queue=32)) as running:
        yield running
