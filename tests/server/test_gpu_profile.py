"""`--profile gpu` on a real Triton with torch_cuda engines on the CPU: the whole GPU path but for the GPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.stages import run_build
from gpu_machines import CONTAINER
from server.launch import TritonServer
from server.options import ServerOptions
from triton_probe import Probe, in_flight, public, wait_idle
from vita_client import Client

pytestmark = pytest.mark.server

SPEECH = np.random.default_rng(7).normal(0, 0.1, 24_000).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one with a language model that bfloat16 holds exactly: both profiles then compute the same."""
    folder = tmp_path_factory.mktemp("rounded") / "checkpoint"
    shutil.copytree(engines.parent / "checkpoint", folder)
    weights = folder / "language_model" / "model.safetensors"
    save_file({key: value.bfloat16().float() for key, value in load_file(weights).items()}, weights)
    return folder


@pytest.fixture(scope="module")
def profiles(
    engines: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, TritonServer]]:
    """A server of each profile."""
    out = tmp_path_factory.mktemp("profiles")
    shutil.copytree(engines, out / "cpu")  # all but the language model is built there
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("build_engines.pipeline.find_machine", lambda: CONTAINER)
            run_build(Build(checkpoint, out / "gpu", "gpu", gpu=GpuOptions(engine="torch_cuda", head="full")))
            run_build(Build(checkpoint, out / "cpu"))
        yield {
            profile: running.enter_context(
                TritonServer(
                    ServerOptions(
                        engines=out / profile, profile=profile, device="cpu", grpc_port=0, metrics_port=0, slots=2
                    )
                )
            )
            for profile in ("cpu", "gpu")
        }


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "Read this aloud.", "task": "tts", "mode": "boost", "temperature": 1.0, "top_k": 20},
        {"audio": SPEECH, "mode": "turbo"},
    ],
    ids=["tts", "spoken question"],
)
def test_both_profiles_answer_the_same(profiles: dict[str, TritonServer], fields: dict) -> None:
    made = {}
    for profile, server in profiles.items():
        with Client(server.grpc_url) as client:
            made[profile] = client.collect(**fields, max_tokens=60, seed=3, timeout_s=60)
    cpu, gpu = made["cpu"], made["gpu"]
    assert gpu.status is not None
    assert cpu.status is not None
    assert gpu.tokens == cpu.tokens
    assert gpu.text == cpu.text != ""
    assert (gpu.status.state, gpu.status.reason) == (cpu.status.state, cpu.status.reason)
    assert set(gpu.status.timings_ms) == set(cpu.status.timings_ms)
    assert gpu.pcm.shape == cpu.pcm.shape
    assert np.abs(cpu.pcm).max() > 1000
    assert np.abs(gpu.pcm.astype(int) - cpu.pcm).max() <= 2  # ONNX Runtime's float32 against PyTorch's


def test_one_final_and_nothing_left(profiles: dict[str, TritonServer]) -> None:
    server = profiles["gpu"]
    probe = Probe(server)
    answers = list(probe.stream(public(TEXT="Read this aloud.", TASK="tts", MAX_TOKENS=60, SEED=3)))
    probe.close()
    assert not any(answer.error_message for answer in answers)
    finals = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers]
    assert finals == [False] * (len(finals) - 1) + [True]
    assert set(wait_idle(server).values()) == {0.0}
    assert in_flight(server) == 0
    assert "(GPU device" not in server.log()  # no instance of Triton's own on a GPU
