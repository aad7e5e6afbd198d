"""One engine call for all inputs of equal shape, results back in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from vita_audio.engines.interface import Floats

Item = TypeVar("Item")


def run_grouped(
    items: Sequence[Item], key: Callable[[Item], Hashable], run: Callable[[list[Item]], Floats]
) -> list[Floats]:
    """Call `run` once for each group of items with equal `key`; it returns [group, ...]. One result per item."""
    groups: dict[Hashable, list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault(key(item), []).append(position)
    results: list[Floats] = [np.zeros(0, np.float32)] * len(items)
    for positions in groups.values():
        for position, result in zip(positions, run([items[position] for position in positions]), strict=True):
            results[position] = result
    return results
