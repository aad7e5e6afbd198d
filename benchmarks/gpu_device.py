"""The device a table was measured on: what its memory moves, what it multiplies, and how to time work on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

#: Memory bandwidth (TB/s) and dense bf16 products (TFLOP/s) by the vendors' datasheets; the first name found in the
#: device's name counts.
DATASHEET = {
    "H200": (4.8, 989.0),
    "H100 PCIe": (2.0, 756.0),
    "H100 NVL": (3.9, 835.0),
    "H100": (3.35, 989.0),
    "H800": (3.35, 989.0),
    "A100-SXM4-80GB": (2.039, 312.0),
    "A100 80GB PCIe": (1.935, 312.0),
    "L40S": (0.864, 362.0),
    "L4": (0.3, 121.0),
    "RTX 4090": (1.008, 165.0),
}


def datasheet_peaks(device: torch.device) -> tuple[float, float] | None:
    """TB/s and TFLOP/s of the device by its datasheet, None where this table does not know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_properties(device).name
    return next((peaks for key, peaks in DATASHEET.items() if key in name), None)


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


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations/s of a large matrix product: the other roofline of this run."""
    size = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    target = torch.empty_like(left)
    return 2.0 * size**3 / (milliseconds(lambda: torch.mm(left, right, out=target), device, repeats=10) * 1e-3)
