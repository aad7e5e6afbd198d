"""What stands against sharing a GPU, as nvidia-smi tells it; what a client of MPS gets of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.shared_gpu import refusal, without_indices

GPUS = """0, GPU-aa, Default, Disabled, NVIDIA H100
1, GPU-bb, Exclusive_Process, [N/A], NVIDIA L4
2, GPU-cc, Prohibited, Disabled, NVIDIA T4
3, GPU-dd, Default, Enabled, NVIDIA A100"""


@pytest.fixture(autouse=True)
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that lists four GPUs and, of the second, the processes in the file that is returned."""
    apps = tmp_path / "apps"
    apps.write_text("4711, nvidia-cuda-mps-server\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$*" in *compute-apps*) cat {apps};; *) echo "{GPUS}";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return apps


@pytest.mark.parametrize("visible", [None, "", "0", "0,1", "GPU-aa", "7", "MIG-dd/1/0"])
def test_nothing_is_known_against_it(visible: str | None) -> None:
    assert refusal({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) is None


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        (
            "1",
            "NVIDIA L4 is in compute mode Exclusive_Process and process 4711 (nvidia-cuda-mps-server) has it: end that "
            "process, or share the GPU with nvidia-smi -i 1 -c DEFAULT",
        ),
        ("GPU-c", "NVIDIA T4 is in compute mode Prohibited: nvidia-smi -i 2 -c DEFAULT"),
        (
            "3",
            "NVIDIA A100 is divided (MIG): name one instance, CUDA_VISIBLE_DEVICES=MIG-... (nvidia-smi -L lists them)",
        ),
    ],
)
def test_what_stands_against_it_is_one_line_with_a_remedy(visible: str, said: str) -> None:
    assert refusal({"CUDA_VISIBLE_DEVICES": visible}) == said


def test_an_exclusive_gpu_that_nobody_has_can_be_shared(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("")
    assert refusal({"CUDA_VISIBLE_DEVICES": "1"}) is None


def test_a_machine_without_nvidia_smi_or_with_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert refusal({}) is None
    (tmp_path / "nvidia-smi").unlink()
    assert refusal({}) is None


@pytest.mark.parametrize(("visible", "kept"), [("1", None), ("0,GPU-aa", None), ("GPU-aa, GPU-bb", "GPU-aa, GPU-bb")])
def test_indices_are_not_handed_on(visible: str, kept: str | None) -> None:
    assert without_indices({"CUDA_VISIBLE_DEVICES": visible, "HOME": "/"}) == (
        {"HOME": "/"} if kept is None else {"CUDA_VISIBLE_DEVICES": kept, "HOME": "/"}
    )
    assert without_indices({"HOME": "/"}) == {"HOME": "/"}
