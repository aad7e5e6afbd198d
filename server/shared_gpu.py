"""What of the GPU stands against sharing it under MPS: its compute mode, who has it, and MIG (all from nvidia-smi)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from vita_audio.machine import gpu_fields

#: Which GPUs CUDA shows to a process, by index or by UUID; the first is the one that serves.
VISIBLE = "CUDA_VISIBLE_DEVICES"
MIG_UUID, UUIDS = "MIG-", ("GPU-", "MIG-")

_FIELDS = "index,uuid,compute_mode,mig.mode.current,name"
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: str
    uuid: str
    compute_mode: str
    mig: str
    name: str


def refusal(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why MPS cannot share the GPU that serves, and what to do; None if nothing is known against it."""
    visible = environment.get(VISIBLE, "").split(",")[0].strip()
    if visible.startswith(MIG_UUID):  # an instance of one, which is shared like a GPU
        return None
    gpu = _find(visible)
    if gpu is None:
        return None
    if gpu.mig == "Enabled":
        return f"{gpu.name} is divided (MIG): name one instance, {VISIBLE}=MIG-... (nvidia-smi -L lists them)"
    if gpu.compute_mode == "Prohibited":
        return f"{gpu.name} is in compute mode Prohibited: nvidia-smi -i {gpu.index} -c DEFAULT"
    owner = _owner(gpu) if gpu.compute_mode == "Exclusive_Process" else None
    if owner is not None:
        return (
            f"{gpu.name} is in compute mode Exclusive_Process and {owner} has it: end that process, or share the GPU "
            f"with nvidia-smi -i {gpu.index} -c DEFAULT"
        )
    return None


def without_indices(environment: Mapping[str, str]) -> dict[str, str]:
    """What a client of MPS gets of the environment that the daemon was started in.

    The daemon shows its clients only the GPUs that it sees itself, and numbers them anew: indices would choose twice.
    """
    kept = dict(environment)
    if not all(name.strip().startswith(UUIDS) for name in kept.get(VISIBLE, "").split(",")):
        kept.pop(VISIBLE, None)
    return kept


def _find(visible: str) -> _Gpu | None:
    """The GPU that `visible` names, by default the first; None where nvidia-smi shows no such one."""
    rows = [[field.strip() for field in line.split(",", 4)] for line in gpu_fields(_FIELDS).splitlines()]
    gpus = [_Gpu(*row) for row in rows if len(row) == 5]
    named = [gpu for gpu in gpus if visible in ("", gpu.index) or gpu.uuid.startswith(visible)]
    return named[0] if named else None


def _owner(gpu: _Gpu) -> str | None:
    """A process that has a context on the GPU, in words."""
    query = ["nvidia-smi", "-i", gpu.index, "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    try:
        made = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    pid, _, name = (made.stdout.splitlines() or [""])[0].partition(",")
    return f"process {pid.strip()} ({name.strip()})" if pid.strip().isdigit() else None
