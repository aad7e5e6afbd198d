"""Threads that compute the parts of one step, one core each.

On a CPU, small networks gain twice from two of them where two threads within an operation gain little, and collapse
when the cores are shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

#: Runs a function over parts of a step (batches, optimizers) and gives the results in their order.
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
P = TypeVar("P")


def worker_count(asked: int, device: torch.device, parts: int) -> int:
    """Threads for a step of `parts` parts: `asked`, or with 0 one for each core; a GPU has one."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked or cores, parts)


@contextmanager
def workers(count: int) -> Iterator[Each]:
    """How to run a function over parts: one after the other, or each in a thread with one core."""
    if count == 1:
        yield map
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def add_gradients(
    each: Each, parameters: Sequence[nn.Parameter], loss_of: Callable[[P], tuple[Tensor, Tensor]], parts: Sequence[P]
) -> Tensor:
    """Add the gradients of all parts' losses to `parameters`, in the parts' order, so that a resume is exact.

    Args:
        loss_of: a part -> its loss [], and values [N] to know.

    Returns:
        The values summed over the parts, without gradients.
    """

    def gradients(part: P) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss, values = loss_of(part)
        return values.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

    total: Tensor | None = None
    for values, found in each(gradients, parts):
        total = values if total is None else total + values
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    if total is None:
        raise ValueError("add_gradients: parts is empty")
    return total
