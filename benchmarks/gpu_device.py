"""The device a table was measured on: what its memory moves, and how to time work on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

#: Memory bandwidth by the vendors' datasheets, TB/s; the first name found in the device's name counts.
DATASHEET_TB_S = {
    "H200": 4.8,
    "H100 PCIe": 2.0,
    "H100 NVL": 3.9,
    "H100": 3.35,
    "H800": 3.35,
    "A100-SXM4-80GB": 2.039,
    "A100 80GB PCIe": 1.935,
    "L40S": 0.864,
    "L4": 0.3,
    "RTX 4090": 1.008,
}


def datasheet_tb_s(device: torch.device) -> float | None:
    """TB/s of the device's memory by its datasheet, None where this table does not know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_properties(device).name
    return next((rate for key, rate in DATASHEET_TB_S.items() if key in name), None)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of one call, the device's work included."""
    times, warm_up = [], min(3, repeats)
    for turn in range(warm_up + repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if turn >= warm_up:
            times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s of a large device-to-device copy, read plus written: the roofline of this run."""
    count = 2**32 if device.type == "cuda" else 2**25
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / (milliseconds(lambda: target.copy_(source), device, repeats=10) * 1e-3)
