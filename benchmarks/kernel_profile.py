"""What the device does in one call: its kernels by time, how many are launched, and how long it waits between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_device import synchronize

_NAME_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Kernel:
    """All launches of one kernel in a call."""

    name: str
    launches: int
    busy_us: float


@dataclass(frozen=True, slots=True)
class CallProfile:
    """One call on the device, in microseconds.

    Attributes:
        kernels: the most expensive first; copies count as kernels.
        span_us: from the start of the first to the end of the last.
        busy_us: in which at least one ran.
        longest_gap_us: without any.
    """

    kernels: tuple[Kernel, ...]
    span_us: float
    busy_us: float
    longest_gap_us: float

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    def table(self, most: int = 40) -> str:
        """As text, at most `most` kernels."""
        lines = [
            f"{self.launches} launches, {self.span_us / 1e3:.3f} ms from first to last, "
            f"{self.busy_us / 1e3:.3f} ms busy, {(self.span_us - self.busy_us) / 1e3:.3f} ms of gaps, "
            f"the longest {self.longest_gap_us:.1f} us",
            f"{'us in all':>10} {'share':>6} {'launches':>8} {'us each':>8}  kernel",
        ]
        for one in self.kernels[:most]:
            share, each = one.busy_us / max(self.busy_us, 1e-9), one.busy_us / one.launches
            lines.append(f"{one.busy_us:10.1f} {share:6.1%} {one.launches:8d} {each:8.2f}  {one.name[:_NAME_WIDTH]}")
        return "\n".join(lines) + "\n"


def profile_call(work: Callable[[], object], device: torch.device) -> CallProfile:
    """One call of `work`, warmed up with and without the profiler. On a CPU its operators stand for kernels."""
    on_gpu = device.type == "cuda"
    work()
    for _ in range(2):
        synchronize(device)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as record:
            work()
            synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return summarise(
        (event.name, event.time_range.start, event.time_range.end)
        for event in record.events() or ()
        if event.device_type == wanted and not event.cpu_children
    )


def summarise(events: Iterable[tuple[str, float, float]]) -> CallProfile:
    """(name, start, end) of every launch, in microseconds, in any order."""
    ordered = sorted(events, key=lambda event: event[1])
    total: dict[str, list[float]] = defaultdict(list)
    busy = longest = 0.0
    reached = ordered[0][1] if ordered else 0.0
    begin = reached
    for name, start, end in ordered:
        total[name].append(end - start)
        longest = max(longest, start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    kernels = (Kernel(name, len(times), sum(times)) for name, times in total.items())
    return CallProfile(tuple(sorted(kernels, key=lambda one: -one.busy_us)), reached - begin, busy, longest)
